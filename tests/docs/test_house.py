"""What CONTRIBUTING.md promises of the package's sizes and of what tests share, and that their script explains itself."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

from tests.docs.commands import ROOT

PACKAGE = ROOT / "mlx_gardener"
MOST_LINES, MOST_ROOMS = 400, 25


def says_why(module: Path) -> bool:
    """Whether the docstring speaks of its module's lines."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return re.search(r"\blines\b", docstring) is not None


def test_a_module_of_more_than_400_lines_says_why() -> None:
    modules = {path: path.read_text(encoding="utf-8").count("\n") for path in PACKAGE.rglob("*.py")}
    long = {str(path.relative_to(ROOT)): lines for path, lines in modules.items() if lines > MOST_LINES}
    assert len(modules) > 100
    assert [name for name in long if not says_why(ROOT / name)] == [], long


def test_the_package_has_at_most_25_rooms_and_top_level_modules() -> None:
    modules = [path.stem for path in PACKAGE.glob("*.py")]
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert len(modules) + len(rooms) <= MOST_ROOMS, sorted(modules + rooms)


def test_nothing_is_imported_from_a_conftest_which_has_fixtures_and_hooks_only() -> None:
    modules = [path for room in ("tests", "benchmarks", "scripts") for path in (ROOT / room).rglob("*.py")]
    importing = [
        str(path.relative_to(ROOT))
        for path in modules
        if re.search(r"^\s*(from|import) .*\bconftest\b", path.read_text(encoding="utf-8"), re.M)
    ]
    assert len(modules) > 200
    assert importing == []


def test_the_script_of_the_tests_says_what_it_does_without_installing_anything() -> None:
    environment = {"PATH": os.environ["PATH"]}
    told = subprocess.run(
        ["bash", "scripts/test", "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(f"scripts/test {flag}" in told.stdout for flag in ("--slow", "--browser", "--parity", "-k"))
    assert told.stderr == ""
