"""Values that are kept between runs, by topic and key, in one private SQLite file.

What is kept can be made again, so a damaged file is begun anew. Cost: what is asked for is read, what is added is written, some
kilobytes for a row's likeliest tokens; at most `MOST_BYTES` on the disk.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gardener.platform.private_database import private_database

FILE_NAME = "kept.sqlite3"
#: Of all topics together: the likeliest tokens of some fifty thousand rows. The oldest values go first.
MOST_BYTES = 256 * 2**20
#: Keys of one question; SQLite allows 999 before 3.32.
_AT_ONCE = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (
    number INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    UNIQUE (topic, key) ON CONFLICT REPLACE
);
"""
_USED = """
SELECT (page_count - freelist_count) * page_size
FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""


@dataclass(frozen=True)
class KeptValues:
    """Values in a file of 0600 below ``directory``, which is made when something is kept or asked for."""

    directory: Path

    def read(self, topic: str, keys: Sequence[str]) -> dict[str, Any]:
        """What was kept of ``topic`` for those of ``keys`` that are known; empty where nothing can be read."""
        found = dict[str, Any]()
        with suppress(OSError, ValueError), self._open() as connection:
            for at in range(0, len(keys), _AT_ONCE):
                some = keys[at : at + _AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = connection.execute(
                    f"SELECT key, value FROM kept WHERE topic = ? AND key IN ({marks})", (topic, *some)
                )
                found |= {row["key"]: json.loads(row["value"]) for row in rows}
        return found

    def add(self, topic: str, found: Mapping[str, Any]) -> None:
        """Keep ``found`` (JSON types) beside what there is, whole or not at all; a full disk keeps nothing."""
        if not found:
            return
        rows = [(topic, key, json.dumps(value)) for key, value in found.items()]
        with suppress(OSError), self._open() as connection:
            connection.executemany("INSERT INTO kept (topic, key, value) VALUES (?, ?, ?)", rows)
            if connection.execute(_USED).fetchone()[0] > MOST_BYTES:
                connection.execute(
                    "DELETE FROM kept WHERE number IN (SELECT number FROM kept ORDER BY number LIMIT"
                    " (SELECT 1 + count(*) / 4 FROM kept))"
                )

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return private_database(self.directory / FILE_NAME, _SCHEMA, lasting=False)
