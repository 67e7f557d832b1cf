"""Evaluations beside an adapter: the newest that is one counts, whatever else lies there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.registry.evaluations import DIRECTORY, newest_evaluation

WHOLE: dict[str, Any] = {
    "arms": [{"name": "base", "metrics": {"bits_per_byte": 1}}],
    "metrics": {},
    "files": [],
    "comparisons": [],
}


@pytest.mark.parametrize(
    "damage",
    [
        {"arms": 3}, {"arms": [3]}, {"arms": [{"name": "base"}]}, {"arms": [{"metrics": {}}]}, {"arms": []},
        {"metrics": None}, {"metrics": {"bits": "1"}}, {"files": None}, {"files": [{"path": "a.py"}]}, {"files": ["a.py"]},
        {"comparisons": [{"arm": "adapter"}]},
    ],
    ids=str,
)  # fmt: skip
def test_an_evaluation_that_lacks_what_is_read_of_it_is_passed_over(
    tmp_path: Path, damage: dict[str, Any]
) -> None:
    """`show`, `diff` and `report` took it for the newest, and ended with a KeyError."""
    (tmp_path / DIRECTORY).mkdir()
    for year, evidence in ((2030, WHOLE), (2031, {**WHOLE, **damage})):
        text = json.dumps({"evidence": evidence})
        (tmp_path / DIRECTORY / f"{year}-01-01T00-00-00Z.json").write_text(text)
    newest = newest_evaluation(tmp_path)
    assert newest is not None and newest.evidence == WHOLE
