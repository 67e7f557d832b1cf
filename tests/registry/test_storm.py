"""Processes that change the registry at once lose nothing; fifty of them by benchmarks/registry_storm.py."""

from __future__ import annotations

from pathlib import Path

from tests.registry.storm import blow


def test_nothing_is_lost_when_many_processes_change_the_registry_at_once(home: Path) -> None:
    result = blow(home, processes=5, operations=25)
    assert result["operations"] == 5 * 25
    assert result["differences"] == []
    assert result["problems_afterwards"] == []
    assert result["checks_meanwhile"] > 0 and result["problems_meanwhile"] == []
