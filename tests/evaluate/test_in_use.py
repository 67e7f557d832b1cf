"""What stays of completions in use: by hashes, by lines that are new, and base against adapter by file."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from mlx_gardener.evaluate.in_use import figures
from mlx_gardener.evaluate.offers import (
    MOST_DAYS,
    Offer,
    Offered,
    OfferStore,
    Seen,
    line_hash,
    offered_lines,
    path_inside,
    salt_of,
)

MINUTE = 60.0
BEFORE = "def area(self):\n    total = 1\n    return total\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "code"
    (directory / "src").mkdir(parents=True)
    (directory / "src" / "a.py").write_text(BEFORE)
    return directory


@pytest.fixture
def store(tmp_path: Path) -> OfferStore:
    (tmp_path / "kept").mkdir()
    return OfferStore(tmp_path / "kept" / "in-use", salt_of(tmp_path / "kept"))


def offer(store: OfferStore, root: Path, *lines: str, at: float = 0.0, arm: str = "adapter") -> bool:
    hashes = tuple(line_hash(store._salt, line) for line in lines)
    return store.add(Offer(at, "v1", arm, False, False, 20, 80.0, "src/a.py", hashes), root)


def seen(store: OfferStore) -> list[tuple[int, int, int, bool]]:
    return [(one.minutes, one.lines, one.stayed, one.first) for one in store.seen()]


def write(root: Path, text: str) -> None:
    (root / "src" / "a.py").write_text(text)


def test_lines_are_those_of_the_file_once_the_answer_stands_in_it() -> None:
    assert offered_lines("x = 1\n    y = ", "two()\n    z = y", ")\nrest", whole=True) == [
        "y = two()",
        "z = y)",
    ]
    assert offered_lines("done", "\n    return 1\n", "\nrest", whole=True) == ["return 1"]
    assert offered_lines("", "a = 1\nb = ", "", whole=False) == ["a = 1"], "its last line is cut anywhere"
    assert offered_lines("", "a = ", "", whole=False) == []
    assert offered_lines("    ", ")\n}\n", "", whole=True) == [], "brackets say nothing of who wrote them"


def test_what_stays_is_counted_after_each_time_and_a_line_that_was_there_is_not(
    store: OfferStore, root: Path
) -> None:
    assert offer(store, root, "total = 1", "scale = 2", "return scale")
    assert store.look(root, 0.5 * MINUTE) == 0, "it is too early"
    assert store.look(root, 2 * MINUTE) == 1 and seen(store) == [(1, 3, 0, False)], (
        "what stood there is no news"
    )
    assert store.look(root, 2 * MINUTE) == 0, "each look is taken once"
    write(root, BEFORE + "        scale = 2\n    total = 1\n")
    assert store.look(root, 11 * MINUTE) == 1 and seen(store)[1] == (10, 3, 2, True)
    write(root, "scale = 2")
    assert store.look(root, 61 * MINUTE) == 1 and seen(store)[2] == (60, 3, 1, False)
    assert store.look(root, 600 * MINUTE) == 0


def test_looks_that_nobody_took_in_time_are_one_look_later_and_none_after_a_day(
    store: OfferStore, root: Path
) -> None:
    assert offer(store, root, "scale = 2")
    write(root, "scale = 2\n")
    assert store.look(root, 200 * MINUTE) == 1 and seen(store) == [(60, 1, 1, True)]
    assert offer(store, root, "other = 2", at=300 * MINUTE)
    assert store.look(root, 3000 * MINUTE) == 1 and len(seen(store)) == 1


def test_the_same_answer_again_is_no_other_offer(store: OfferStore, root: Path) -> None:
    """An editor asks at every key."""
    assert offer(store, root, "scale = 2")
    assert not offer(store, root, "scale = 2", at=5.0)
    assert offer(store, root, "scale = 2", at=5.0, arm="base") and offer(store, root, "scale = 3", at=6.0)
    assert sum(item.offers for item in store.offered()) == 3


def test_nothing_readable_is_kept_and_after_the_last_look_not_even_hashes(
    store: OfferStore, root: Path, tmp_path: Path
) -> None:
    offer(store, root, "very_telling_name = 7")
    place = next((tmp_path / "kept" / "in-use").iterdir())
    digest = line_hash(store._salt, "very_telling_name = 7")
    data = place.read_bytes()
    assert b"telling" not in data and digest in data and b"src/a.py" in data
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "kept" / "in-use-salt").stat().st_mode) == 0o600
    assert line_hash(salt_of(tmp_path / "kept"), "  very_telling_name = 7") == digest, "the key stays"
    assert line_hash(b"o" * 32, "very_telling_name = 7") != digest, "another home has other hashes"
    store.look(root, 61 * MINUTE)
    data = place.read_bytes()
    assert digest not in data and b"src/a.py" not in data


def test_records_are_bounded_in_number_and_age(
    store: OfferStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_gardener.evaluate.offers.MOST_OFFERS", 5)
    for number in range(8):
        offer(store, root, f"line = {number}", at=float(number))
    assert store.offered()[0].offers == 5
    store.look(root, 2 * MINUTE)
    offer(store, root, "new = 1", at=MOST_DAYS * 86_400.0 + 100)
    assert store.offered()[0].offers == 1 and store.seen() == []


def test_a_damaged_file_begins_anew(store: OfferStore, root: Path, tmp_path: Path) -> None:
    offer(store, root, "a = 1")
    place = next((tmp_path / "kept" / "in-use").iterdir())
    place.write_bytes(b"no database" * 500)
    assert store.seen() == [] and offer(store, root, "a = 1")
    with sqlite3.connect(place) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_key_that_could_not_be_written_whole_is_made_by_the_next_offer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, flags: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.fchmod", full)  # the file is there, and nothing can be written to it
        disk.setattr("mlx_gardener.evaluate.offers.secrets.token_bytes", lambda size: b"")
        with pytest.raises(OSError):
            salt_of(tmp_path)
    salt = salt_of(tmp_path)
    assert len(salt) == 32 and salt_of(tmp_path) == salt
    assert [file.name for file in tmp_path.iterdir()] == ["in-use-salt"]
    assert stat.S_IMODE((tmp_path / "in-use-salt").stat().st_mode) == 0o600


def test_only_plain_files_of_the_repository_are_looked_at(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("x = 1\n")
    (root / "link.py").symlink_to(tmp_path / "secret.py")
    odd = os.fsdecode(b"\xff.py")
    (root / odd).write_text("x = 1\n")
    (root / "inner.py").symlink_to(root / "src" / "a.py")
    for sent in (
        "../secret.py",
        str(tmp_path / "secret.py"),
        "link.py",
        "src",
        "gone.py",
        "",
        "a\0b",
        odd,
        "\ud83d",
        "file://[",
    ):
        assert path_inside(root, sent) is None, sent
    full = str(root / "src" / "a.py")
    for sent in ("src/a.py", "./src/../src/a.py", full, f"file://{full}", "inner.py"):
        assert path_inside(root, sent) == "src/a.py", sent


def test_a_file_that_comes_to_lie_elsewhere_is_not_read(
    store: OfferStore, root: Path, tmp_path: Path
) -> None:
    offer(store, root, "x = 1")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    (root / "src" / "a.py").unlink()
    (root / "src").rmdir()
    (root / "src").symlink_to(tmp_path / "src")
    assert store.look(root, 2 * MINUTE) == 1 and seen(store) == [(1, 1, 0, False)]


def test_base_and_adapter_are_compared_by_file_on_what_chance_chose() -> None:
    offered = [Offered("v1", "adapter", 60, 0, 6, 90.0, 30.0), Offered("v2", "adapter", 1, 0, 1, 90.0, 30.0)]
    some = [
        Seen("v1", arm, drawn, bytes([file]), 10, 2, 2 if good else 0, good)
        for file in range(6)
        for arm, drawn, goods in (("adapter", True, 6), ("base", True, 3), ("adapter", False, 0))
        for good in [True] * goods + [False] * (8 - goods)
    ]
    found = figures(offered, some)
    assert [item.offered.version for item in found.survival] == ["v2", "v1"], "the newest first"
    assert found.survival[1].stayed[0].first_line == pytest.approx(6 / 16)
    change = next(item for item in found.changes if item.measure == "first_line")
    assert (change.base, change.adapter, change.files) == (3 / 8, 6 / 8, 6), (
        "those that were not drawn do not count"
    )
    assert change.change == pytest.approx(3 / 8) and change.low > 0
    assert found.to_json()["comparisons"][0]["minutes"] == 10
