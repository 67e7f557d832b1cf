"""The audit of dependencies: a weakness that can be mended is an error, a database that does not answer is none."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from click.testing import CliRunner

from tests.support.scripts import load_script


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("scripts/audit.py", monkeypatch)


def answer(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, stdout: str) -> tuple[int, str]:
    """What the audit makes of something that pip-audit says."""
    program = f"import sys; sys.stdout.write({stdout!r})"
    real = audit.subprocess.run
    monkeypatch.setattr(
        audit.subprocess, "run", lambda command, **options: real((sys.executable, "-c", program), **options)
    )
    done = CliRunner().invoke(audit.main)
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "said", ["", "no JSON", "{}", '{"dependencies": [{"name": "a", "skip_reason": "not found"}]}']
)
def test_no_database_is_said_and_no_error(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    code, output = answer(audit, monkeypatch, said)
    assert code == 0 and "no database answers" in output


@pytest.mark.parametrize(("fixes", "code"), [(["1.1"], 1), ([], 0)])
def test_a_weakness_is_named_and_an_error_where_it_can_be_mended(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, fixes: list[str], code: int
) -> None:
    package = {"name": "a", "version": "1.0", "vulns": [{"id": "X-1", "fix_versions": fixes}]}
    seen, output = answer(audit, monkeypatch, json.dumps({"dependencies": [package]}))
    assert seen == code and "a 1.0: X-1" in output
