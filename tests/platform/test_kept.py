"""Values kept between runs: private, whole, and never more than can be read at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.platform import kept
from mlx_gardener.platform.kept import KeptValues


def test_values_are_kept_by_topic_and_added_to(tmp_path: Path) -> None:
    store = KeptValues(tmp_path / "a" / "b")
    assert store.read("losses") == {}
    store.add("losses", {"x": 1.5})
    store.add("losses", {"y": ["text", True, [1, 2]], "x": 2.5})
    assert store.read("losses") == {"x": 2.5, "y": ["text", True, [1, 2]]}
    assert store.read("answers") == {}
    assert [file.name for file in store.directory.iterdir()] == ["losses.json"]


def test_only_the_owner_may_read_them(tmp_path: Path) -> None:
    store = KeptValues(tmp_path / "kept")
    store.add("answers", {"x": "def secret"})
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert (store.directory / "answers.json").stat().st_mode & 0o777 == 0o600


def test_the_oldest_values_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST", 3)
    store = KeptValues(tmp_path)
    store.add("losses", {str(number): number for number in range(3)})
    store.add("losses", {"3": 3})
    assert list(store.read("losses")) == ["1", "2", "3"]
