"""How far an update or a validation is told to be."""

from __future__ import annotations

import pytest

from mlx_gardener.training import advance
from mlx_gardener.training.advance import Advance


def test_what_is_computed_again_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(advance, "TELL_SECONDS", 0.0)
    told: list[tuple[float, float]] = []
    clock = iter(range(100))
    between = Advance(lambda: None, lambda *what: told.append(what), lambda: float(next(clock)), parts=2)
    at = between.place
    for share in (0.5, 0.9):  # the first batch, which passes the budget
        between(share)
    between.place = at
    for share in (0.5, 1.0):
        between(share)
    at = between.place
    between(0.5)  # the second one, which does too
    between.place = at
    for share in (0.5, 1.0):
        between(share)
    assert [share for share, _ in told] == [0.25, 0.45, 0.25, 0.5, 0.75, 0.75, 1.0]
    assert all(left >= 0 for _, left in told) and told[-1][1] == 0
