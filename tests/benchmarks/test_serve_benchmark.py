"""The serving benchmark in short: a server process, four projects, several clients, every answer its project's own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


def test_served_answers_are_the_offline_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "serve", raising=False)
    result = importlib.import_module("serve").measure(1.5, 4, places=5, turn_count=2)
    assert result["requests"] >= 1
    assert result["different"] == 0, result["different_examples"]
    assert result["failed"] == 0, result["failed_examples"]
    assert result["places_where_all_projects_answer_differently"] >= 2  # else equality would prove little
    assert result["footprint_mib"]["most"] < 2000
    assert result["mlx_lm_server"]["changing_ms"]["rounds"] == 2
