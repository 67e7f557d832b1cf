"""Values kept between runs: private, whole, and never more than there is room for."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from mlx_gardener.platform import kept
from mlx_gardener.platform.kept import FILE_NAME, KeptValues


def test_values_are_kept_by_topic_and_added_to(tmp_path: Path) -> None:
    store = KeptValues(tmp_path / "a" / "b")
    assert store.read("losses", ["x"]) == {}
    store.add("losses", {"x": 1.5})
    store.add("losses", {"y": ["text", True, [1, 2]], "x": 2.5})
    assert store.read("losses", ["y", "x", "z"]) == {"x": 2.5, "y": ["text", True, [1, 2]]}
    assert store.read("losses", ["y"]) == {"y": ["text", True, [1, 2]]}
    assert store.read("answers", ["x"]) == {} == store.read("losses", [])
    assert [file.name for file in store.directory.iterdir()] == [FILE_NAME]


def test_any_number_of_values_is_read_at_once(tmp_path: Path) -> None:
    store, many = KeptValues(tmp_path), {str(number): number for number in range(2500)}
    store.add("losses", many)
    assert store.read("losses", list(many)) == many


def test_only_the_owner_may_read_them(tmp_path: Path) -> None:
    store = KeptValues(tmp_path / "kept")
    store.add("answers", {"x": "def secret"})
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert (store.directory / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_the_oldest_values_of_all_topics_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 2**20)
    store, value = KeptValues(tmp_path), "x" * 10_000
    for number in range(300):
        store.add(f"of {number % 2}", {str(number): value})
    left = [number for number in range(300) if store.read(f"of {number % 2}", [str(number)])]
    assert left == list(range(left[0], 300)) and 50 < len(left) < 110, (
        "the newest, as many as there is room for"
    )
    assert (store.directory / FILE_NAME).stat().st_size < 1.2 * 2**20


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    store = KeptValues(tmp_path)
    store.add("losses", {"x": 1.5})
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 100)
    assert store.read("losses", ["x"]) == {}
    store.add("losses", {"x": 2.5})
    assert store.read("losses", ["x"]) == {"x": 2.5}
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE kept SET value = 'no JSON'")
    assert store.read("losses", ["x"]) == {}


def test_of_two_that_add_at_once_neither_loses_anything(tmp_path: Path) -> None:
    def add(name: str) -> None:
        for number in range(50):
            KeptValues(tmp_path).add("losses", {f"{name}{number}": number})

    threads = [threading.Thread(target=add, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [f"{name}{number}" for name in "ab" for number in range(50)]
    assert len(KeptValues(tmp_path).read("losses", keys)) == 100
