"""Deleting directories together with their rows: both are gone, or neither, for whoever looks meanwhile or afterwards.

A directory is renamed into ``.trash`` in the transaction that forgets it, and its files are deleted after that. What a
crash leaves in ``.trash`` bears its old place in its name: what still has its row goes back there, all else was meant to be
deleted (`remnants`). It is locked while somebody deletes it.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_gardener.errors import RegistryError
from mlx_gardener.platform.locks import hold
from mlx_gardener.registry.database import Database
from mlx_gardener.registry.scarcity import room_to_delete

TRASH_NAME = ".trash"


@contextmanager
def delete_with(database: Database, directory: Path | None) -> Iterator[sqlite3.Connection]:
    """A transaction with which ``directory`` goes too, if it is there; undone when the block raises.

    Raises:
        RegistryError: the database cannot be written, or the files cannot be moved (nothing has changed) or deleted
            (they are in ``.trash``).
    """
    with room_to_delete(database.home):
        if directory is None or not directory.exists():
            with database.write() as connection:
                yield connection
            return
        with _moved(database, directory) as connection:
            yield connection


@contextmanager
def _moved(database: Database, directory: Path) -> Iterator[sqlite3.Connection]:
    place = "+".join(directory.relative_to(database.home).parts)
    doomed = database.home / TRASH_NAME / f"{place}-{uuid.uuid4().hex[:8]}"
    try:
        with hold(directory):
            moved = False
            try:
                with database.write() as connection:
                    yield connection
                    doomed.parent.mkdir(exist_ok=True, mode=0o700)
                    directory.rename(doomed)
                    moved = True
            except BaseException:
                if moved:
                    doomed.rename(directory)
                raise
            if doomed.is_dir():
                shutil.rmtree(doomed)
            else:
                doomed.unlink()
    except OSError as error:
        raise RegistryError(
            f"The files in {directory} cannot be deleted ({error.strerror}).",
            next_step="Check their rights, and who uses them.",
        ) from error


def origin_of(home: Path, trashed: Path) -> Path | None:
    """Where something in ``.trash`` lay; None where its name does not say it."""
    name = re.fullmatch(r"(projects\+.+)-[0-9a-f]{8}", trashed.name)
    parts = name[1].split("+") if name else []
    return home.joinpath(*parts) if parts and not {"", ".", ".."} & set(parts) else None


def tree_bytes(path: Path) -> int:
    """Bytes of the files at or below ``path``; what goes away meanwhile counts as nothing."""
    total = 0
    for file in [path, *path.rglob("*")]:
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        total += 0 if file.is_dir() and not file.is_symlink() else status.st_size
    return total
