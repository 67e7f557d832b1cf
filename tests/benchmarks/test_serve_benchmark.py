"""The serving benchmarks in short: four projects, several clients, every answer its own; and the event loop under a long body."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


def test_served_answers_are_the_offline_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "serve", raising=False)
    module = importlib.import_module("serve")
    monkeypatch.setattr(module, "TOKENS", 8)
    monkeypatch.setattr(module, "LINES_BEFORE", 10)
    result = module.measure(1.0, 4, places=4, turn_count=1)  # a place a way of asking
    assert result["requests"] >= 1
    assert result["different"] == 0, result["different_examples"]
    assert result["failed"] == 0, result["failed_examples"]
    assert result["places_where_all_projects_answer_differently"] >= 2  # else equality would prove little
    assert result["footprint_mib"]["most"] < 2000
    assert result["mlx_lm_server"]["changing_ms"]["rounds"] == 1


def test_the_event_loop_is_looked_at_while_bodies_come(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "serve_loop", raising=False)
    rows = importlib.import_module("serve_loop").measure(1)["bodies"]
    assert [(row["path"], row["status"]) for row in rows] == [("/infill", "200")]
    assert rows[0]["bytes"] > 4_000_000 and rows[0]["without_a_turn_seconds"] > 0
