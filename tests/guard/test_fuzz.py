"""The fuzzer runs, counts, and writes down what it finds; the long run is `benchmarks/fuzz.py`."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from tests.support.scripts import load_script


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("benchmarks/fuzz.py", monkeypatch)


def test_a_short_run_counts_what_it_did(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("atheris", reason="the fuzzer's engine is not installed")
    import machine

    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    (tmp_path / "fuzz.json").write_text('{"targets": {"gguf": {"executions": 7}}}')
    done = CliRunner().invoke(fuzz.main, ["names", "--minutes", "0.05", "--work", str(tmp_path / "work")])
    assert done.exit_code == 0, done.output
    targets = json.loads((tmp_path / "fuzz.json").read_text())["targets"]
    found = targets["names"]
    assert targets["gguf"] == {"executions": 7}, "what was told of other targets stays"
    assert found["executions"] > 100 and found["edges"] > 10 and found["findings"] == []


def test_an_exception_is_written_down_once(fuzz: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "findings").mkdir()

    def fail() -> None:
        raise KeyError("missing")

    for data in (b"first", b"second"):
        try:
            fail()
        except KeyError as error:
            fuzz.note(error, data, tmp_path / "findings")
    (tmp_path / "findings" / "timeout-abc").write_bytes(b"slow")
    title, slow = sorted(fuzz.titles_of(tmp_path).values())
    assert title.startswith("KeyError at test_fuzz.py:") and slow == "timeout-abc"


def test_a_finding_is_tried_again(fuzz: ModuleType, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(b"projects/own/runs/a")
    bad.mkdir()
    assert fuzz.is_answered("names", good, tmp_path) and not fuzz.is_answered("names", bad, tmp_path)
