"""Evaluations beside an adapter: the newest that is one counts, whatever else lies there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.registry.evaluations import DIRECTORY, counting_evaluation, newest_that_counts

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
    newest = counting_evaluation(tmp_path)
    assert newest is not None and newest.evidence == WHOLE


def measured(size: int, **more: Any) -> dict[str, Any]:
    file = {"path": "a.py", "bytes": size, "base_bits_per_byte": 1.0, "adapter_bits_per_byte": 0.9}
    return {**WHOLE, "files": [file], **more}


def test_what_measured_little_does_not_hide_what_measured_much(tmp_path: Path) -> None:
    """`eval --timeout 5` took the place of what an hour had found, for `report`, `show` and what `serve` decides by."""
    assert newest_that_counts([measured(100), measured(50)]) == 1
    assert newest_that_counts([measured(100), measured(49)]) == 0
    assert newest_that_counts([measured(100), measured(300), measured(149), measured(150), {}]) == 3
    assert newest_that_counts([{}, {}]) == 1
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {}, "evidence": measured(100)}))
    for year, size, expected in ((2030, 40, None), (2031, 60, 60), (2032, 40, 60), (2033, 400, 400)):
        text = json.dumps({"evidence": measured(size)})
        (tmp_path / DIRECTORY / f"{year}-01-01T00-00-00Z.json").write_text(text)
        newest = counting_evaluation(tmp_path)
        seen = None if newest is None else newest.evidence["files"][0]["bytes"]
        assert seen == expected, year
