"""Completions that were offered in use, and what stayed of them: one SQLite file a project, of hashes and numbers and no text.

In: an answer that an editor got, and later the file it was for. Out: rows that `evaluate.in_use` makes figures of. A line is kept as
8 bytes of BLAKE2b under a key of the home's own (``in-use-salt``, 0600), and only for as long as its file is still to be looked at:
after the last look an offer is numbers, a version and a hash that stands for its file. There are at most `MOST_OFFERS` of a project,
none older than `MOST_DAYS`. A damaged file begins anew: it decides nothing. Cost: a millisecond an offer, and of a look
the reading of one file.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.platform.files import path_of_address, write_whole
from mlx_gardener.platform.private_database import private_database
from mlx_gardener.platform.untrusted import read_bytes

#: Minutes after which a file is looked at.
LOOKS = (1, 10, 60)
MOST_OFFERS, MOST_DAYS = 20_000, 180
#: A last look that is so late says nothing about an hour any more.
LATE_HOURS = 24
#: Longest file that is looked at, and lines of an answer that are counted.
MOST_BYTES, MOST_LINES = 2 * 2**20, 256
SALT_NAME = "in-use-salt"
_FILE_NAME, _HASH_BYTES, _MOST_COUNTED = "offers.sqlite3", 8, 255
_SCHEMA = """
CREATE TABLE IF NOT EXISTS offers (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, version TEXT NOT NULL, arm TEXT NOT NULL, retrieval INTEGER NOT NULL,
    drawn INTEGER NOT NULL, characters INTEGER NOT NULL, latency_ms REAL NOT NULL, lines INTEGER NOT NULL,
    file BLOB NOT NULL, path TEXT, hashes BLOB, before BLOB, seen INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS looks (
    offer INTEGER NOT NULL REFERENCES offers (id), minutes INTEGER NOT NULL, stayed INTEGER NOT NULL, first INTEGER NOT NULL,
    PRIMARY KEY (offer, minutes));
"""


@dataclass(frozen=True)
class Offer:
    """An answer that was offered.

    Attributes:
        at: when, seconds since the epoch.
        version: of the adapter that answered, or would have.
        arm: "adapter", or "base" where the base answered in its place.
        retrieval: whether code of the repository stood in front.
        drawn: whether chance chose the arm.
        path: of the file, from the repository's root.
        hashes: of the lines that it makes, without blank ones.
    """

    at: float
    version: str
    arm: str
    retrieval: bool
    drawn: bool
    characters: int
    latency_ms: float
    path: str
    hashes: tuple[bytes, ...]


@dataclass(frozen=True)
class Seen:
    """An offer with what stayed of it at one look: lines, and whether the first one did."""

    version: str
    arm: str
    drawn: bool
    file: bytes
    minutes: int
    lines: int
    stayed: int
    first: bool


@dataclass(frozen=True)
class Offered:
    """What was offered by one version and arm: offers, files, median milliseconds and characters."""

    version: str
    arm: str
    offers: int
    with_retrieval: int
    files: int
    latency_ms: float
    characters: float


def salt_of(home: Path) -> bytes:
    """The home's key for hashes, made on first use.

    Raises:
        OSError: it can be neither read nor made.
    """
    place = home / SALT_NAME
    if not place.exists():
        # Whole or not at all: a full disk leaves no part of a key there for ever.
        write_whole(place, secrets.token_bytes(32), lasting=False)
    found = read_bytes(place, max_bytes=64)
    if len(found) != 32:
        raise OSError(f"{SALT_NAME} is not what was written")
    return found


def line_hash(salt: bytes, line: str) -> bytes:
    """What stands for a line, whatever its indentation."""
    return hashlib.blake2b(
        line.strip().encode(errors="replace"), key=salt, digest_size=_HASH_BYTES, person=b"line"
    ).digest()


def path_inside(root: Path, sent: str) -> str | None:
    """The path, from the repository's root, of the file that a client names; None where it lies elsewhere, or is no plain file.

    Args:
        sent: relative to the root, or in full, also as ``file://`` address.
    """
    try:
        root = root.resolve()
        file = (root / path_of_address(sent)).resolve(strict=True)
        if not file.is_relative_to(root) or not file.is_file():
            return None
        path = file.relative_to(root).as_posix()
        path.encode()
    except (OSError, RuntimeError, ValueError):  # a loop of links; a NUL; a name that is no text
        return None
    return path


def _path_hash(salt: bytes, path: str) -> bytes:
    return hashlib.blake2b(
        path.encode(errors="replace"), key=salt, digest_size=_HASH_BYTES, person=b"path"
    ).digest()


class OfferStore:
    """The offers of one project.

    Args:
        directory: of the project's offers, made on first use.
        salt: see `salt_of`.
    """

    def __init__(self, directory: Path, salt: bytes) -> None:
        self._place = directory / _FILE_NAME
        self._salt = salt

    def add(self, offer: Offer, root: Path) -> bool:
        """Keep an offer; False where the same one is waiting for its looks already, or its file cannot be read.

        Args:
            root: of the repository.

        Raises:
            OSError: it cannot be written.
        """
        there = self._lines_in(root, offer.path)
        if there is None:
            return False
        hashes = b"".join(offer.hashes)
        before = bytes(min(there[one], _MOST_COUNTED) for one in offer.hashes)
        with self._open() as connection:
            known = connection.execute(
                "SELECT 1 FROM offers WHERE path = ? AND version = ? AND arm = ? AND hashes = ?",
                (offer.path, offer.version, offer.arm, hashes),
            ).fetchone()
            if known is not None:
                return False
            connection.execute(
                "INSERT INTO offers (at, version, arm, retrieval, drawn, characters, latency_ms, lines, file, path, hashes, before) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    offer.at, offer.version, offer.arm, offer.retrieval, offer.drawn, offer.characters, offer.latency_ms,
                    len(offer.hashes), _path_hash(self._salt, offer.path), offer.path, hashes, before,
                ),
            )  # fmt: skip
            self._bound(connection, offer.at)
        return True

    def look(self, root: Path, now: float) -> int:
        """Look at the files of all offers that are due, and count what stayed; how many offers that were.

        Where several looks of an offer are due, as nobody was there to take them, only the last one is taken: each says what stayed
        after about its time, and not after the time of another.

        Raises:
            OSError: it cannot be written.
        """
        if not self._place.is_file():
            return 0
        ages = " OR ".join("(seen < ? AND at <= ?)" for _ in LOOKS)
        limits = [value for minutes in LOOKS for value in (minutes, now - 60 * minutes)]
        with self._open() as connection:
            due = connection.execute(
                f"SELECT id, at, path, hashes, before FROM offers WHERE path IS NOT NULL AND ({ages}) ORDER BY path",
                limits,
            ).fetchall()
            path, there = "", Counter[bytes]()
            for row in due:
                if row["path"] != path:
                    path = row["path"]
                    there = self._lines_in(root, path) or Counter()
                minutes = max(one for one in LOOKS if row["at"] <= now - 60 * one)
                is_late = now - row["at"] > 3600 * LATE_HOURS
                if not is_late:
                    stayed, first = _stayed(row["hashes"], row["before"], there)
                    connection.execute(
                        "INSERT OR REPLACE INTO looks (offer, minutes, stayed, first) VALUES (?, ?, ?, ?)",
                        (row["id"], minutes, stayed, first),
                    )
                connection.execute("UPDATE offers SET seen = ? WHERE id = ?", (minutes, row["id"]))
                if minutes == LOOKS[-1]:
                    connection.execute(
                        "UPDATE offers SET path = NULL, hashes = NULL, before = NULL WHERE id = ?",
                        (row["id"],),
                    )
            self._bound(connection, now)
        return len(due)

    def seen(self) -> list[Seen]:
        """Every look that was taken."""
        with self._open() as connection:
            rows = connection.execute(
                "SELECT version, arm, drawn, file, minutes, lines, stayed, first FROM looks JOIN offers ON id = offer ORDER BY id"
            ).fetchall()
        return [
            Seen(
                row["version"], row["arm"], bool(row["drawn"]), row["file"], row["minutes"],
                row["lines"], row["stayed"], bool(row["first"]),
            )
            for row in rows
        ]  # fmt: skip

    def offered(self) -> list[Offered]:
        """What each version and arm offered, looked at or not."""
        from statistics import fmean, median

        groups: dict[tuple[str, str], list[sqlite3.Row]] = {}
        with self._open() as connection:
            for row in connection.execute("SELECT * FROM offers ORDER BY id"):
                groups.setdefault((row["version"], row["arm"]), []).append(row)
        return [
            Offered(
                version,
                arm,
                len(rows),
                sum(row["retrieval"] for row in rows),
                len({row["file"] for row in rows}),
                median(row["latency_ms"] for row in rows),
                fmean(row["characters"] for row in rows),
            )
            for (version, arm), rows in groups.items()
        ]

    def _lines_in(self, root: Path, path: str) -> Counter[bytes] | None:
        """How often each line stands in a file; None where it cannot be read, or is not in the repository (any more)."""
        try:
            if path_inside(root, path) != path:
                return None
            text = read_bytes(root / path, max_bytes=MOST_BYTES, follow_links=False).decode(errors="replace")
        except (OSError, ValueError):
            return None
        return Counter(line_hash(self._salt, line) for line in text.splitlines() if line.strip())

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction; a file that is damaged is begun anew.

        Raises:
            OSError: the file cannot be read or written, or turned out to be damaged.
        """
        return private_database(self._place, _SCHEMA)

    def _bound(self, connection: sqlite3.Connection, now: float) -> None:
        """Let go of the oldest offers."""
        old = (
            "SELECT id FROM offers WHERE at < ? OR id <= (SELECT max(id) FROM offers) - ?",
            (now - MOST_DAYS * 86_400, MOST_OFFERS),
        )
        connection.execute(f"DELETE FROM looks WHERE offer IN ({old[0]})", old[1])
        connection.execute(f"DELETE FROM offers WHERE id IN ({old[0]})", old[1])


def _stayed(hashes: bytes, before: bytes, there: Counter[bytes]) -> tuple[int, bool]:
    """(lines that stand in the file oftener than before the offer, whether the first one does)."""
    ones = [hashes[at : at + _HASH_BYTES] for at in range(0, len(hashes), _HASH_BYTES)]
    room = {one: there[one] - count for one, count in zip(ones, before, strict=True)}
    first = room[ones[0]] > 0
    stayed = 0
    for one in ones:
        if room[one] > 0:
            room[one] -= 1
            stayed += 1
    return stayed, first


def offered_lines(before: str, text: str, after: str, *, whole: bool) -> list[str]:
    """The lines that an answer makes, with what stands before and after it on its first and last line: the first `MOST_LINES` of
    those that say something.

    Args:
        before, after: around the caret.
        whole: whether the answer ended by itself; else its last line is cut anywhere, and is left out.
    """
    parts = text.split("\n")
    ends = len(parts) - 1
    found: Sequence[str] = [
        (before.rpartition("\n")[2] if at == 0 else "")
        + part
        + (after.partition("\n")[0] if at == ends else "")
        for at, part in enumerate(parts)
        if part.strip() and (whole or at < ends)
    ]
    return [line.strip() for line in found if any(character.isalnum() for character in line)][:MOST_LINES]
