"""Locks exclude others, are made where there is nothing, and are given back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_gardener.platform.locks import hold, is_held, take_lock


def test_a_lock_is_made_where_there_is_nothing_and_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    lock = tmp_path / "one.lock"
    with pytest.raises(FileNotFoundError):
        take_lock(lock)
    assert not is_held(lock)
    with hold(lock, make=True):
        assert is_held(lock) and lock.stat().st_mode & 0o777 == 0o600
        assert take_lock(lock) is None
        with pytest.raises(BlockingIOError), hold(lock, wait_seconds=0):
            raise AssertionError("not reached")
    assert not is_held(lock)


def test_a_lock_that_is_shared_keeps_only_those_away_who_want_it_alone(tmp_path: Path) -> None:
    one, two = take_lock(tmp_path, shared=True), take_lock(tmp_path, shared=True)
    assert one is not None and two is not None
    os.close(one)
    assert take_lock(tmp_path) is None
    os.close(two)
    alone = take_lock(tmp_path)
    assert alone is not None
    os.close(alone)
