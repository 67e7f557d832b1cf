"""Rows that this program would not write: found by table and number, mended or put out of use, and kept to be read.

A project's row has adapters and history hanging on it, so that what can be guessed of it is: unknown times become now, a
repository that nobody can name a place where there is none. Any other row goes into a JSON file in ``lost+found``; an adapter
whose files are whole is registered again from them afterwards. Cost: every row is read once.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from mlx_gardener.platform.files import write_private
from mlx_gardener.registry.database import Database
from mlx_gardener.registry.lost import lost_directory, unknown_repository
from mlx_gardener.registry.records import Problem
from mlx_gardener.registry.rows import TABLES, label, wrong_in


def bad_rows(database: Database) -> Iterator[Problem]:
    """A problem ``bad_row`` for each; its subject is ``TABLE row NUMBER``."""
    for table in TABLES:
        with database.read() as connection:
            rows = connection.execute(f"SELECT rowid AS place, * FROM {table}").fetchall()
        for row in rows:
            if wrong := wrong_in(table, row, database.home):
                message = f"A row cannot be used ({label(table, row)}): {wrong}."
                yield Problem("bad_row", f"{table} row {row['place']}", message, True)


def mend_row(database: Database, subject: str) -> str:
    """Mend a bad row or put it out of use, if it still is one; what was done, empty where nothing was."""
    table, place = subject.split(" row ")
    with database.write() as connection:
        row = _row(connection, table, place)
        if row is None or not (wrong := wrong_in(table, row, database.home)):
            return ""
        what = f"A row could not be used ({label(table, row)}): {wrong}."
        kept = lost_directory(database.home, f"{table}-row-{place}.json")
        write_private(kept, json.dumps({"wrong": wrong, "table": table, "row": _shown(row)}, indent=2))
        where = kept.relative_to(database.home).as_posix()
        if table == "projects" and mend_project(connection, row, database.home):
            return f"{what} It is mended; what it said is in {where}."
        connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (place,))
    return f"{what} It is out of use; what it said is in {where}."


def mend_project(connection: sqlite3.Connection, row: sqlite3.Row, home: Path) -> bool:
    """Give a project's row values that can be used where it has others; False where not even its name can be."""
    place, now = row["place"], time.time()
    guesses: dict[str, list[object]] = {
        "path": [_decoded(row["path"]), str(unknown_repository(home, str(row["name"])))],
        "active": [0],
        "active_adapter": [None],
        "created_at": [now],
        "updated_at": [now],
    }
    while wrong := wrong_in("projects", row):
        column = wrong.split()[1]
        if not guesses.get(column):
            return False
        connection.execute(
            f"UPDATE projects SET {column} = ? WHERE rowid = ?", (guesses[column].pop(0), place)
        )
        found = _row(connection, "projects", place)
        assert found is not None
        row = found
    return True


def _row(connection: sqlite3.Connection, table: str, place: str | int) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(
        f"SELECT rowid AS place, * FROM {table} WHERE rowid = ?", (place,)
    ).fetchone()
    return row


def _decoded(value: object) -> str:
    """What a path that is no text may have been; empty (and refused) where it cannot be told."""
    try:
        return value.decode() if isinstance(value, bytes) else ""
    except UnicodeDecodeError:
        return ""


def _shown(row: sqlite3.Row) -> dict[str, object]:
    """A row's values as JSON types: bytes in hexadecimal, what is no number in words."""
    return {
        name: value.hex() if isinstance(value, bytes) else value if isinstance(value, (str, int, type(None))) else repr(value)
        for name, value in dict(row).items()
    }  # fmt: skip
