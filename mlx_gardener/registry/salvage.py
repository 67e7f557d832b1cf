"""A damaged database: what can be read of it goes into a new one, row by row; the damaged one is kept.

In: the file that `database.is_damage` speaks of; called by `registry repair`. Out: a whole file in its place, the damaged one
under another name, and a sentence on what was saved. Cost: a read of every row.

Where SQLite can still open the file, the new content is written into it under SQLite's own locks, so that other
processes may have it open. Where it cannot, the file is moved away, which needs it alone.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlx_gardener.errors import RegistryError
from mlx_gardener.platform.locks import hold
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.registry.database import Database, alone
from mlx_gardener.registry.row_repair import mend_project
from mlx_gardener.registry.rows import TABLES, surrogates, wrong_in
from mlx_gardener.registry.schema import apply_migrations


def rebuild(database: Database, kept: Path) -> list[str]:
    """Replace a damaged database by what can be read of it; what was done, a sentence each.

    Args:
        kept: where the damaged one goes.

    Raises:
        RegistryError: the file cannot be written, or has to be moved while others have it open.
    """
    where = kept.relative_to(database.home).as_posix()
    with tempfile.TemporaryDirectory(dir=database.home, prefix=".rebuild-") as scratch, hold(Path(scratch)):
        new = sqlite3.connect(Path(scratch) / "new.sqlite3", isolation_level=None)
        new.row_factory, new.text_factory = sqlite3.Row, surrogates
        try:
            apply_migrations(new)
            counts = _read_into(database.path, new)
            _replace(database, new, kept, Path(scratch))
        except (sqlite3.Error, OSError) as error:
            raise RegistryError(
                f"The database {database.path} cannot be rebuilt ({reason_of(error)}).",
                next_step="Free disk space, or restore a backup: `mlx-gardener registry restore`.",
            ) from error
        finally:
            new.close()
    saved = ", ".join(f"{count} {table}" for table, count in counts.items() if count) or "no row"
    return [
        f"The database was damaged and is made anew with what could be read: {saved}. The old one is {where}."
    ]


def _read_into(damaged: Path, new: sqlite3.Connection) -> dict[str, int]:
    """Copy every row that can be read and makes sense; counts by table."""
    tables = [row[0] for row in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    tables = [name for name in tables if not name.startswith("sqlite_")]
    try:
        old = sqlite3.connect(damaged, isolation_level=None)
        old.row_factory, old.text_factory = sqlite3.Row, surrogates
        for table in tables:
            for row in _rows(old, table):
                _insert(new, table, row)
        old.close()
    except sqlite3.DatabaseError:
        pass  # no database at all: the new one stays empty, and that is said
    _drop_nonsense(new, damaged.parent)
    for table in tables:
        for broken in new.execute(f"PRAGMA foreign_key_check({table})").fetchall():
            new.execute(f"DELETE FROM {table} WHERE rowid = ?", (broken["rowid"],))
    return {table: new.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def _rows(old: sqlite3.Connection, table: str) -> Iterator[dict[str, object]]:
    """Rows of a table from its beginning to the damage, then from its end to the damage."""
    for order in ("ASC", "DESC"):
        try:
            for row in old.execute(f"SELECT * FROM {table} NOT INDEXED ORDER BY rowid {order}"):
                yield dict(row)
            return
        except sqlite3.DatabaseError:
            continue


def _insert(new: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    """A row of the damaged database, as far as the new table has its columns; one that does not fit is left out."""
    known = {item["name"] for item in new.execute(f"PRAGMA table_info({table})")}
    values = {name: _bindable(value) for name, value in row.items() if name in known}
    with contextlib.suppress(sqlite3.Error):  # read twice, or not a row of this table any more
        new.execute(
            f"INSERT OR IGNORE INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
            tuple(values.values()),
        )


def _bindable(value: object) -> object:
    """Text that is no UTF-8 as the bytes it is, which `wrong_in` refuses afterwards."""
    if not isinstance(value, str):
        return value
    data = value.encode(errors="surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _drop_nonsense(new: sqlite3.Connection, home: Path) -> None:
    """Delete rows that could be read, and not used; a project's are mended where they can be."""
    for table in TABLES:
        for row in new.execute(f"SELECT rowid AS place, * FROM {table}").fetchall():
            if not wrong_in(table, row):
                continue
            if table != "projects" or not mend_project(new, row, home):
                new.execute(f"DELETE FROM {table} WHERE rowid = ?", (row["place"],))


def _replace(database: Database, new: sqlite3.Connection, kept: Path, scratch: Path) -> None:
    """Keep the damaged database as ``kept``, with ``new`` in its place: under SQLite's locks, else by moving files."""
    database.leave()
    try:
        old = sqlite3.connect(database.path, isolation_level=None)
        try:
            copy = sqlite3.connect(scratch / "damaged.sqlite3")
            old.backup(copy)  # page by page, damage and all
            copy.close()
            (scratch / "damaged.sqlite3").rename(kept)
            new.backup(old)
        finally:
            old.close()
    except sqlite3.DatabaseError:
        kept.unlink(missing_ok=True)
        with alone(database.home):
            target = sqlite3.connect(scratch / "whole.sqlite3")
            new.backup(target)
            target.close()
            (scratch / "whole.sqlite3").chmod(0o600)
            os.link(database.path, kept)
            for ending in ("-wal", "-shm"):
                file = database.path.with_name(database.path.name + ending)
                if file.exists():
                    file.rename(kept.with_name(kept.name + ending))
            (scratch / "whole.sqlite3").replace(
                database.path
            )  # killed before, and the damaged one is still there
