"""What the benchmark of next edits says of windows that were read."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.dataset import EditTask


def test_kinds_of_windows_are_told_apart_and_held_against_their_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = __import__("next_edits")
    tasks = [EditTask(f"{at % 3}.py", at, (5, 6), (7,), is_due=at < 6) for at in range(16)]
    base, adapter = [at < 1 or at > 9 for at in range(16)], [at < 3 or at > 6 for at in range(16)]
    found = module.figures(tasks, base, adapter)
    due, quiet = found["an edit is due"], found["no edit is due"]
    assert (due["windows"], due["files"], due["base_right"], due["adapter_right"]) == (6, 3, 1, 3)
    assert (quiet["windows"], quiet["base_right"], quiet["adapter_right"]) == (10, 6, 9)
    assert due["change"]["change"] == pytest.approx(2 / 6)
    assert [row["met"] for row in module.bars_of(found)] == [True, True]
    found = module.figures(tasks, base, base)
    assert [row["met"] for row in module.bars_of(found)] == [False, False]
    nothing = [False] * 16
    assert not module.bars_of(module.figures(tasks, nothing, nothing))[0]["met"], "twice nothing is nothing"
