"""A SQLite file of what can be done without: for its owner's eyes only, and begun anew where it is damaged.

Cost: opening it takes about a millisecond, a transaction that lasts through a loss of power some more.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mlx_gardener.platform.files import make_private, private

#: How long another process's transaction is waited for.
_PATIENCE_SECONDS = 10.0


@contextmanager
def private_database(place: Path, schema: str, *, lasting: bool = True) -> Iterator[sqlite3.Connection]:
    """A transaction on the file ``place``, which is made with ``schema`` where it is not there; what is deleted is overwritten.

    Args:
        schema: statements that change nothing where they were done before.
        lasting: also through a loss of power; else that may cost the whole file, and nothing waits for the disk.

    Raises:
        OSError: the file cannot be read or written, or turned out to be damaged; a damaged one is deleted.
    """
    try:
        try:
            connection = _connected(place, schema, lasting)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            place.unlink(missing_ok=True)
            connection = _connected(place, schema, lasting)
        with closing(connection), connection:
            yield connection
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            place.unlink(missing_ok=True)
        raise OSError(f"{place.name}: {error}") from error


def _connected(place: Path, schema: str, lasting: bool) -> sqlite3.Connection:
    make_private(place.parent)
    os.close(private(str(place), os.O_RDWR | os.O_CREAT))  # SQLite's own would follow the umask
    connection = sqlite3.connect(place, timeout=_PATIENCE_SECONDS)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA secure_delete = ON")
        if not lasting:
            connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection
