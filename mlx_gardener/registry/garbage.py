"""What a registry can do without: what killed writers left, checkpoints of completed runs, old runs and adapter versions, and
indexes for retrieval and records of use where no adapter is left that could use them.

A project that is being trained is left alone as a whole. Everything is judged again in the transaction that deletes it,
so that a version which was activated, or a run which was resumed a moment ago, stays.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_gardener.platform.read_folders import unused_folders, unused_packages
from mlx_gardener.registry.adapter_rows import forget_adapter
from mlx_gardener.registry.database import Database
from mlx_gardener.registry.deletion import delete_with, tree_bytes
from mlx_gardener.registry.names import CHECKPOINTS_NAME, IN_USE_NAME, INDEX_NAME
from mlx_gardener.registry.records import LIVE, Garbage, GarbagePolicy, TrainingStatus
from mlx_gardener.registry.remnants import clear, name_of, remnants
from mlx_gardener.registry.tables import Tables

_DAY_SECONDS = 86_400.0
#: Below a run's directory; the second one holds those of a training that began anew.
_CHECKPOINTS = (CHECKPOINTS_NAME, f"{CHECKPOINTS_NAME}.old")

#: Whether something is still to go, asked in the transaction, which then takes it out of the tables.
_Forget = Callable[[sqlite3.Connection], bool]


class _KeptError(Exception):
    """It is needed after all."""


def collect(registry: Tables, database: Database, policy: GarbagePolicy, *, dry_run: bool) -> list[Garbage]:
    """Delete what ``policy`` does not keep.

    Args:
        dry_run: only say what would be deleted.

    Raises:
        RegistryError: database or files cannot be changed; what was deleted before stays deleted.
    """
    registry.close_dead_trainings()
    found = []
    for path in remnants(database):
        item = Garbage("leftover", name_of(database, path), tree_bytes(path))
        if dry_run or clear(database, path):
            found.append(item)
    cache, before = database.home / "cache", time.time() - policy.run_days * _DAY_SECONDS
    unused = [
        *(("package", path) for path in unused_packages(cache / "packages", cache / "bases", before)),
        *(("base", folder) for folder in unused_folders(cache / "bases", before)),
    ]
    for kind, path in unused:
        found.append(Garbage(kind, path.name, tree_bytes(path)))
        if not dry_run:
            with delete_with(database, path):
                pass  # no row names it
    for project in registry.list_projects():
        if _is_live(database, project.name):
            continue
        for item, directory, forget in _of_project(database, project.name, policy):
            if dry_run:
                found.append(item)
                continue
            try:
                with delete_with(database, directory) as connection:
                    if _is_live(database, project.name) or not forget(connection):
                        raise _KeptError
            except _KeptError:
                continue
            found.append(item)
    return found


def _is_live(database: Database, project: str) -> bool:
    with database.read() as connection:
        question = f"SELECT 1 FROM trainings WHERE project = ? AND {LIVE}"
        return connection.execute(question, (project,)).fetchone() is not None


def _of_project(
    database: Database, project: str, policy: GarbagePolicy
) -> Iterator[tuple[Garbage, Path, _Forget]]:
    """First what no row has to be written for, which makes room on a full disk."""
    old_runs = _old_runs(database, project, policy.run_days)
    index = database.home / "projects" / project / INDEX_NAME
    in_use = database.home / "projects" / project / IN_USE_NAME
    for kind, path in (("index", index), ("in_use", in_use)):
        if path.exists() and not _has_adapters(database, project):
            item = Garbage(kind, path.relative_to(database.home).as_posix(), tree_bytes(path))
            yield item, path, lambda connection: True
    for run in () if policy.keep_checkpoints else _completed_runs(database, project):
        for checkpoints in (database.home / run / name for name in _CHECKPOINTS):
            if run not in old_runs and checkpoints.is_dir():
                item = Garbage("checkpoints", f"{run}/{checkpoints.name}", tree_bytes(checkpoints))
                yield item, checkpoints, lambda connection: True
    for run in old_runs:
        item = Garbage("run", run, tree_bytes(database.home / run))
        yield item, database.home / run, _forget_run(project, run)
    for version, directory in _old_versions(database, project, policy.keep_versions):
        item = Garbage("version", f"{project}/{version}", tree_bytes(database.home / directory))
        yield item, database.home / directory, _forget_version(project, version)


def _has_adapters(database: Database, project: str) -> bool:
    with database.read() as connection:
        return (
            connection.execute("SELECT 1 FROM adapters WHERE project = ?", (project,)).fetchone() is not None
        )


def _old_versions(database: Database, project: str, keep: int) -> list[tuple[str, str]]:
    with database.read() as connection:
        rows = connection.execute(
            "SELECT version, directory FROM adapters WHERE project = ? ORDER BY created_at DESC, version DESC",
            (project,),
        ).fetchall()
        active = _active_version(connection, project)
    return [(row["version"], row["directory"]) for row in rows[max(1, keep) :] if row["version"] != active]


def _forget_version(project: str, version: str) -> _Forget:
    def forget(connection: sqlite3.Connection) -> bool:
        if _active_version(connection, project) == version:
            return False
        forget_adapter(connection, project, version)
        return True

    return forget


def _active_version(connection: sqlite3.Connection, project: str) -> str | None:
    row = connection.execute("SELECT active_adapter FROM projects WHERE name = ?", (project,)).fetchone()
    return None if row is None else row["active_adapter"]


def _old_runs(database: Database, project: str, days: float) -> list[str]:
    """Directories of finished runs, but for the latest, on which the project's status and a resuming rest."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT run_dir, max(number) AS latest, max(coalesce(finished_at, ?)) AS finished FROM trainings "
            "WHERE project = ? GROUP BY run_dir ORDER BY latest",
            (time.time(), project),
        ).fetchall()
    return [row["run_dir"] for row in rows[:-1] if row["finished"] < time.time() - days * _DAY_SECONDS]


def _forget_run(project: str, run: str) -> _Forget:
    def forget(connection: sqlite3.Connection) -> bool:
        latest = connection.execute(
            "SELECT run_dir FROM trainings WHERE project = ? ORDER BY number DESC LIMIT 1", (project,)
        ).fetchone()
        queued = connection.execute(
            "SELECT 1 FROM queue WHERE training_id IN (SELECT id FROM trainings WHERE run_dir = ?)", (run,)
        ).fetchone()
        if latest is None or latest["run_dir"] == run or queued is not None:
            return False
        connection.execute("DELETE FROM trainings WHERE run_dir = ?", (run,))
        return True

    return forget


def remove_run(database: Database, project: str, run_dir: Path) -> bool:
    """See `ProjectRegistry.remove_run`."""
    forget = _forget_run(project, run_dir.relative_to(database.home).as_posix())
    try:
        with delete_with(database, run_dir) as connection:
            if _is_live(database, project) or not forget(connection):
                raise _KeptError
    except _KeptError:
        return False
    return True


def _completed_runs(database: Database, project: str) -> list[str]:
    """Directories of runs whose last training came to its end."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT run_dir, status, max(number) FROM trainings WHERE project = ? GROUP BY run_dir",
            (project,),
        ).fetchall()  # SQLite takes status from the row of the maximum
    return [row["run_dir"] for row in rows if row["status"] == TrainingStatus.COMPLETED]
