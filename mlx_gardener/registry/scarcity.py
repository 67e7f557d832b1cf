"""A registry where nothing can be written: read all the same, and on a full disk still able to delete.

SQLite's log wants a file beside the database even to read it, which a read-only home has no place for; and to forget a row
it writes first, so that a full disk could never be freed. A file of a megabyte, `RESERVE_NAME`, is kept in the home to be
given up for that. In: a home, or the database in it. Out: a connection for `database`, room for what deletes. Cost: that megabyte.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from mlx_gardener.platform.files import write_private

RESERVE_NAME = ".reserve"
_RESERVE_BYTES = 1 << 20
#: With less than this free, the space is left to others.
_PLENTY_BYTES = 64 << 20


def keep_reserve(home: Path) -> None:
    """See that the reserve is there, where there is plenty of space; where it cannot be written, there is none."""
    reserve = home / RESERVE_NAME
    with contextlib.suppress(OSError):
        if not reserve.exists() and shutil.disk_usage(home).free > _PLENTY_BYTES:
            write_private(
                reserve, os.urandom(_RESERVE_BYTES)
            )  # zeros would take no space on some file systems


@contextmanager
def room_to_delete(home: Path) -> Iterator[None]:
    """Space for the rows of a deletion while the block runs: on a full disk the reserve is given up for it."""
    with contextlib.suppress(
        OSError
    ):  # of a home that is not there or cannot be changed; the deletion says it
        if shutil.disk_usage(home).free < 2 * _RESERVE_BYTES:
            (home / RESERVE_NAME).unlink(missing_ok=True)
    try:
        yield
    finally:
        keep_reserve(home)


def open_read_only(path: Path) -> sqlite3.Connection | None:
    """A connection that only reads, to the file or to a copy of what it holds now; None where it cannot be read at all."""
    log = path.with_name(f"{path.name}-wal")
    has_log = log.exists() and log.stat().st_size > 0
    for option in ("mode=ro", "immutable=1")[: 1 if has_log else 2]:
        connection = None
        try:
            connection = sqlite3.connect(f"file:{quote(str(path))}?{option}", uri=True, isolation_level=None)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return connection
        except sqlite3.OperationalError:
            if connection is not None:
                connection.close()
    return _copy(path, log) if has_log else None


def _copy(path: Path, log: Path) -> sqlite3.Connection | None:
    """What file and log hold, in memory: of a log that nobody can write beside, SQLite reads nothing."""
    try:
        with tempfile.TemporaryDirectory(prefix="mlx-gardener-") as scratch:
            for file in (path, log):
                shutil.copyfile(file, Path(scratch) / file.name)
            memory = sqlite3.connect(":memory:", isolation_level=None)
            with closing(sqlite3.connect(Path(scratch) / path.name)) as copied:
                copied.backup(memory)
            return memory
    except (OSError, sqlite3.Error):
        return None
