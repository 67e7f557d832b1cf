"""What a writer that was killed leaves: every kind, how it is told from what somebody alive is writing, and how it goes.

This is the one list. `health` reports and mends by it, `garbage` and the next training (`recovery`) or import of a project sweep
by it. A backup and an export lie outside of the home, where nobody could look for them; they sweep their own
(`platform.beside`). Cost: a few directory listings a run.

| left by | where | alive while |
|---|---|---|
| a training's or import's adapter | ``projects/P/adapters/.new-*`` | it is locked, or empty and young |
| a checkpoint, written or dropped | ``projects/P/runs/R/checkpoints*/.step-*`` | the run is live or its lock is held |
| ``job.json``, ``result.json`` | ``projects/P/runs/R/*.new`` | the same |
| a training that was not begun after all | ``projects/P/runs/R``, empty and in no row | it is young |
| an evaluation of an adapter | ``projects/P/adapters/V/evaluations/*.new`` | it is young |
| an index for retrieval | ``projects/P/.retrieval.safetensors.*.new`` | it is young |
| a page with what stayed in use | ``projects/P/in-use/.*.new`` | it is young |
| the key of its hashes | ``.in-use-salt.*.new`` | it is young |
| remove, gc, forget | ``.trash/*`` | it is locked |
| repair of a damaged database | ``.rebuild-*`` | it is locked |
| connecting an editor | ``editors/.*.new`` | it is locked, or empty and young |
| caches | ``cache/.*.json.*``, ``cache/bases/.*.json.*`` | it is young |
| a GGUF file being read | ``cache/bases/.reading-*`` | ``cache/bases/.reading.lock`` is held |
| restore | ``.HOME.XXXXXXXX.new`` beside the home | it is locked, or empty and young |
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_gardener.errors import RegistryError
from mlx_gardener.platform.beside import is_young, left_beside
from mlx_gardener.platform.locks import hold, is_held, take_lock
from mlx_gardener.platform.read_folders import LOCK_NAME, STAGED
from mlx_gardener.registry.adapter_files import manifest_facts
from mlx_gardener.registry.database import Database
from mlx_gardener.registry.deletion import TRASH_NAME, delete_with, origin_of, tree_bytes
from mlx_gardener.registry.lost import move_to_lost
from mlx_gardener.registry.names import IN_USE_NAME, INDEX_NAME, RUN_LOCK_NAME
from mlx_gardener.registry.records import LIVE

_IN_RUN = ("*.new", "checkpoints/.step-*", "checkpoints.old/.step-*")
#: Files that are written in one go and renamed, beside whose directory nobody has a lock.
_FILES = (
    "projects/*/adapters/*/evaluations/*.new",
    f"projects/*/.{INDEX_NAME}.*.new",
    f"projects/*/{IN_USE_NAME}/.*.new",
    ".in-use-salt.*.new",
    "cache/.*.json.*",
    "cache/bases/.*.json.*",
)
#: Directories that their writers lock.
_LOCKED = (".rebuild-*", "editors/.*.new")
_YOUNG_FILE_SECONDS = 600.0


class _InUseError(Exception):
    """Somebody has begun to use what was to be deleted."""


def remnants(database: Database, project: str = "*") -> list[Path]:
    """What writers that are gone have left, sorted.

    Args:
        project: of this project alone, and not of the home as a whole.
    """
    home = database.home
    projects = home / "projects"
    found = [
        path
        for path in projects.glob(f"{project}/adapters/.new-*")
        if not is_held(path) and not is_young(path)
    ]
    for pattern in _IN_RUN:
        found += projects.glob(f"{project}/runs/*/{pattern}")
    found += [path for path in projects.glob(f"{project}/runs/*") if _is_empty(path)]
    if project == "*":
        found += [path for path in home.glob(f"{TRASH_NAME}/*") if not is_held(path)]
        for pattern in _LOCKED:
            found += [path for path in home.glob(pattern) if not is_held(path) and not is_young(path)]
        found += [path for pattern in _FILES for path in home.glob(pattern) if _is_old(path)]
        bases = home / "cache" / "bases"
        if any(bases.glob(f"{STAGED}*")) and not is_held(bases / LOCK_NAME):
            found += bases.glob(f"{STAGED}*")
        found += left_beside(home)
    return sorted(path for path in found if not _is_in_use(database, path) and os.path.lexists(path))


def clear(database: Database, path: Path, *, keep_whole: bool = True) -> str:
    """Delete a remnant, if it still is one; what was done, a sentence, empty where nothing was.

    Args:
        keep_whole: a whole adapter that was only not put in its place goes to ``lost+found``.

    Raises:
        RegistryError: the database or the files cannot be changed.
    """
    subject = name_of(database, path)
    try:
        if path.parent.name == TRASH_NAME:
            return _end_deletion(database, path, subject)
        if keep_whole and path.parent.name == "adapters" and manifest_facts(path) is not None:
            with database.write():
                if is_held(path):
                    return ""
                moved = move_to_lost(database.home, path)
            return f"{subject} is a good adapter that was not put in its place; it is in {moved} now."
        size = tree_bytes(path)
        with _alone_in_run(database, path):
            if not path.is_relative_to(database.home):
                with hold(path, wait_seconds=0):
                    shutil.rmtree(path)
            else:
                with delete_with(database, path):
                    if _has_row_in_use(database, path):
                        raise _InUseError
    except (_InUseError, BlockingIOError, FileNotFoundError):
        return ""
    except OSError as error:
        raise RegistryError(
            f"{subject} cannot be deleted ({error.strerror or error}).",
            next_step="Check rights and who uses it.",
        ) from error
    return f"{subject} was half written or half deleted, and is gone ({size:,} bytes)."


def name_of(database: Database, path: Path) -> str:
    """How a remnant is called: its path below the home, or beside it."""
    if path.is_relative_to(database.home):
        return path.relative_to(database.home).as_posix()
    return f"../{path.name}"


def clear_run(run_dir: Path) -> None:
    """Delete what earlier workers left half written in a run; for the worker that has its lock."""
    for pattern in _IN_RUN:
        for path in run_dir.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _end_deletion(database: Database, path: Path, subject: str) -> str:
    """Delete what its row went before; put back what still has its row, as its deletion was never decided."""
    size = tree_bytes(path)
    with hold(path, wait_seconds=0):
        origin = origin_of(database.home, path)
        with database.write() as connection:
            if origin is not None and not os.path.lexists(origin) and _has_row(connection, database, origin):
                path.rename(origin)
                place = name_of(database, origin)
                return f"{place} was being removed by a process that died; it is back in its place."
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"{subject} was half written or half deleted, and is gone ({size:,} bytes)."


def _has_row(connection: sqlite3.Connection, database: Database, path: Path) -> bool:
    """Whether a row knows the directory of a project, run or adapter."""
    subject = path.relative_to(database.home)
    if len(subject.parts) == 2:
        question, value = "SELECT 1 FROM projects WHERE name = ?", path.name
    elif len(subject.parts) == 4 and subject.parts[2] == "adapters":
        question, value = "SELECT 1 FROM adapters WHERE directory = ?", str(subject)
    elif len(subject.parts) == 4:
        question, value = "SELECT 1 FROM trainings WHERE run_dir = ?", str(subject)
    else:
        return False
    return connection.execute(question, (value,)).fetchone() is not None


def is_known(database: Database, path: Path) -> bool:
    """Whether a row knows the directory of a project, run or adapter."""
    with database.read() as connection:
        return _has_row(connection, database, path)


def _run_of(database: Database, path: Path) -> Path | None:
    """The run's directory that a path is or lies in."""
    if not path.is_relative_to(database.home / "projects"):
        return None
    parts = path.relative_to(database.home).parts
    return database.home.joinpath(*parts[:4]) if len(parts) >= 4 and parts[2] == "runs" else None


def _is_in_use(database: Database, path: Path) -> bool:
    """Whether a path lies in a run that is under way, or is a run's directory that has a row."""
    run = _run_of(database, path)
    if run is None:
        return False
    return _has_row_in_use(database, path) or (run != path and is_held(run / RUN_LOCK_NAME))


def _has_row_in_use(database: Database, path: Path) -> bool:
    """The same by the rows alone: a worker whose row was closed may still write."""
    run = _run_of(database, path)
    if run is None:
        return False
    with database.read() as connection:
        question = "SELECT 1 FROM trainings WHERE run_dir = ?" + ("" if run == path else f" AND {LIVE}")
        return connection.execute(question, (str(run.relative_to(database.home)),)).fetchone() is not None


@contextmanager
def _alone_in_run(database: Database, path: Path) -> Iterator[None]:
    """Where ``path`` lies in a run: keep workers from beginning in it; one whose row is closed may still write."""
    run = _run_of(database, path)
    lock = None if run is None or run == path else run / RUN_LOCK_NAME
    if lock is None or not lock.exists():
        yield
        return
    descriptor = take_lock(lock)
    if descriptor is None:
        raise _InUseError
    try:
        yield
    finally:
        os.close(descriptor)


def _is_empty(path: Path) -> bool:
    try:
        return path.is_dir() and not path.is_symlink() and not any(path.iterdir()) and not is_young(path)
    except FileNotFoundError:
        return False


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > _YOUNG_FILE_SECONDS
    except FileNotFoundError:
        return False
