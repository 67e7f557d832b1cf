"""Whether database and files fit together, and mending what does not.

Processes may train, write adapters and remove them meanwhile: what they have under their hands is locked
(`platform.locks`) or has a living owner, and is neither reported nor touched. Mending deletes nothing that could be a
good adapter: what is sound is registered again, the rest is moved to ``lost+found`` in the home. Cost: with hashes,
reading all adapters once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_gardener.errors import RegistryError
from mlx_gardener.platform.locks import is_held
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.sealed import read_sealed
from mlx_gardener.registry.adapter_files import MANIFEST_NAME, differences, manifest_facts
from mlx_gardener.registry.adapter_rows import forget_adapter, insert_adapter
from mlx_gardener.registry.database import Database, is_damage
from mlx_gardener.registry.deletion import delete_with
from mlx_gardener.registry.lost import lost_directory, move_to_lost
from mlx_gardener.registry.names import INDEX_NAME
from mlx_gardener.registry.processes import is_alive
from mlx_gardener.registry.records import AdapterRecord, Problem
from mlx_gardener.registry.remnants import clear, is_known, name_of, remnants
from mlx_gardener.registry.row_repair import bad_rows, mend_row
from mlx_gardener.registry.schema import schema_difference
from mlx_gardener.registry.tables import Tables

#: What is mended before the rest is looked at again: a version whose removal is undone is no missing one.
_FIRST = ("bad_row", "leftover")

Tell = Callable[[str], None]


def check(
    registry: Tables, database: Database, *, hashes: bool = True, tell: Tell | None = None
) -> list[Problem]:
    """Everything that does not fit together; nothing is changed.

    Kinds: damaged_database (then nothing else can be looked at), bad_row, dead_training, stale_queue, missing_files,
    wrong_files, wrong_index, missing_version, orphan_project, orphan_files, leftover. Subjects are project names, training ids,
    ``project/version``, ``TABLE row NUMBER``, or paths below the home.

    Args:
        hashes: compare every file of every adapter with its manifest, not only look whether there is one.
        tell: called with what is looked at next.

    Raises:
        RegistryError: the database cannot be read, for another reason than damage.
    """
    tell = tell or (lambda text: None)
    tell("the database")
    damage = integrity(database)
    if damage:
        return [
            Problem(
                "damaged_database", database.path.name, f"The registry's database is damaged: {damage}.", True
            )
        ]
    try:
        problems = [*bad_rows(database), *_trainings(registry, database)]
        problems += _adapters(registry, database, hashes, tell)
        tell("files nobody knows")
        problems += _indexes(database, hashes)
        return [*problems, *_orphans(database), *_leftovers(database)]
    except OSError as error:
        raise RegistryError(
            f"The files in {registry.home} cannot be looked at ({reason_of(error)}).",
            next_step="Check their rights.",
        ) from error


def integrity(database: Database) -> str:
    """What SQLite finds wrong with the file, a phrase; empty where it is sound.

    Raises:
        RegistryError: it cannot be read, for another reason than damage.
    """
    try:
        with database.read() as connection:
            lines = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
            schema = schema_difference(connection)
            broken = None if schema else connection.execute("PRAGMA foreign_key_check").fetchone()
    except RegistryError as error:
        if not is_damage(error.__cause__):
            raise
        return str(error.__cause__)
    if lines != ["ok"]:
        return "; ".join(" ".join(line.split()) for line in lines)
    if schema:
        return schema
    return "" if broken is None else f"a row of {broken[0]} belongs to nothing"


def _trainings(registry: Tables, database: Database) -> Iterator[Problem]:
    for row in registry.live_rows():
        if not is_alive(row["pid"], row["pid_started"]):
            message = f"Training {row['id']} of {row['project']} has no living process."
            yield Problem("dead_training", row["id"], message, True)
    with database.read() as connection:
        rows = connection.execute(
            "SELECT project FROM queue WHERE training_id IS NOT NULL AND training_id NOT IN (SELECT id FROM trainings)"
        ).fetchall()
    for row in rows:
        message = f"The queue waits for a training of {row['project']} that there is not."
        yield Problem("stale_queue", row["project"], message, True)


def _adapters(registry: Tables, database: Database, hashes: bool, tell: Tell) -> Iterator[Problem]:
    for project in registry.list_projects():
        adapters = _adapters_of(registry, project.name)
        if project.active_adapter is not None and project.active_adapter not in adapters:
            with database.settled():
                now = {item.name: item.active_adapter for item in registry.list_projects()}.get(project.name)
                gone = now is not None and now not in _adapters_of(registry, project.name)
            if gone:
                message = f"The active version of {project.name} is gone."
                yield Problem("missing_version", project.name, message, True)
        for adapter in adapters.values():
            subject = f"{adapter.project}/{adapter.version}"
            tell(subject)
            problem = _adapter(adapter, subject, hashes)
            if problem is None:
                continue
            with database.settled():  # nobody is about to remove it
                now_there = _adapters_of(registry, project.name).get(adapter.version)
            if now_there is not None and now_there.manifest_sha256 == adapter.manifest_sha256:
                yield problem


def _adapter(adapter: AdapterRecord, subject: str, hashes: bool) -> Problem | None:
    if not (adapter.directory / MANIFEST_NAME).is_file():
        return Problem("missing_files", subject, f"The files of {subject} are gone.", True)
    wrong = differences(adapter.directory, adapter.manifest_sha256) if hashes else []
    if not wrong:
        return None
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return Problem("wrong_files", subject, f"In the adapter {subject}, {wrong[0]}{more}.", True)


def _indexes(database: Database, hashes: bool) -> Iterator[Problem]:
    """Indexes for retrieval that are not what was written; with hashes, as they are read whole."""
    for path in sorted((database.home / "projects").glob(f"*/{INDEX_NAME}")) if hashes else ():
        try:
            read_sealed(path)
        except FileNotFoundError:
            continue  # removed meanwhile
        except (OSError, ValueError) as error:
            subject = path.relative_to(database.home).as_posix()
            yield Problem("wrong_index", subject, f"{subject} cannot be used ({reason_of(error)}).", True)


def _adapters_of(registry: Tables, project: str) -> dict[str, AdapterRecord]:
    try:
        return {adapter.version: adapter for adapter in registry.list_adapters(project)}
    except RegistryError:
        if any(item.name == project for item in registry.list_projects()):
            raise
        return {}  # removed meanwhile


def _orphans(database: Database) -> Iterator[Problem]:
    """Directories that no row knows."""
    for path in sorted((database.home / "projects").glob("*")):
        subject = path.relative_to(database.home).as_posix()
        if _is_surely_orphan(database, path):
            yield Problem("orphan_project", subject, f"There is no project for the files in {subject}.", True)
            continue
        for inner in sorted([*(path / "adapters").glob("*"), *(path / "runs").glob("*")]):
            if _is_surely_orphan(database, inner):
                subject = inner.relative_to(database.home).as_posix()
                yield Problem("orphan_files", subject, f"Nobody knows the files in {subject}.", True)


def _is_surely_orphan(database: Database, path: Path) -> bool:
    """As `_is_orphan`, which is asked again while no transaction is under way that makes or takes a directory."""
    if not _is_orphan(database, path):
        return False
    with database.settled():
        return _is_orphan(database, path)


def _is_orphan(database: Database, path: Path) -> bool:
    """Whether no row knows a directory of a project, run or adapter, and nobody is writing it."""
    if path.name.startswith(".") or is_held(path):
        return False
    if path.parent.name == "runs" and path.is_dir() and not any(path.iterdir()):
        return False  # a remnant
    return not is_known(database, path) and (path.exists() or path.is_symlink())


def _leftovers(database: Database) -> Iterator[Problem]:
    """What a process that is gone was writing beside, or deleting."""
    for path in remnants(database):
        subject = name_of(database, path)
        yield Problem("leftover", subject, f"{subject} was left half written or half deleted.", True)


def repair(registry: Tables, database: Database, *, tell: Tell | None = None) -> list[str]:
    """Mend everything that `check` finds, as it is at that moment; what was done, a sentence each.

    A damaged database is rebuilt from what can be read of it; rows that cannot be used are put out of use. Dead
    trainings are closed, adapters whose files are wrong
    are taken out of use and moved to ``lost+found``, unknown directories are registered again where they are good
    adapters of a known project and moved to ``lost+found`` else, and half-written ones are deleted.

    Raises:
        RegistryError: the database or a file cannot be written; what was mended before stays mended.
    """
    done: list[str] = []
    problems = check(registry, database, tell=tell)
    if any(problem.kind == "damaged_database" for problem in problems):
        from mlx_gardener.registry.salvage import rebuild

        done += rebuild(database, lost_directory(registry.home, database.path.name))
        problems = check(registry, database, tell=tell)
    for first in _FIRST:
        if any(problem.kind == first for problem in problems):
            done += _mend_all(registry, database, [item for item in problems if item.kind == first], tell)
            problems = check(registry, database, tell=tell)
    return done + _mend_all(registry, database, problems, tell)


def _mend_all(registry: Tables, database: Database, problems: list[Problem], tell: Tell | None) -> list[str]:
    done = []
    for problem in problems:
        if tell is not None:
            tell(problem.subject)
        try:
            said = _mend(registry, database, problem)
        except OSError as error:
            raise RegistryError(
                f"{problem.subject} cannot be mended ({error.strerror or error}).",
                next_step="Check rights and disk space.",
            ) from error
        done += [said] if said else []
    return done


def _mend(registry: Tables, database: Database, problem: Problem) -> str:
    """Mend one problem if it is still there; what was done, empty where nothing was."""
    subject = problem.subject
    path = registry.home / subject if not subject.startswith("../") else registry.home.parent / subject[3:]
    if problem.kind == "bad_row":
        return mend_row(database, subject)
    if problem.kind == "dead_training":
        registry.close_dead_trainings()
        return f"Training {subject}, whose process is gone, is closed as failed; its checkpoints are kept."
    if problem.kind == "stale_queue":
        with database.write() as connection:
            connection.execute(
                "UPDATE queue SET training_id = NULL WHERE training_id NOT IN (SELECT id FROM trainings)"
            )
        return f"{subject} waits in the queue again."
    if problem.kind == "missing_version":
        registry.activate_adapter(subject, None)
        return f"{subject} has no active adapter now; choose one with `mlx-gardener activate`."
    if problem.kind in ("missing_files", "wrong_files"):
        return _take_out_of_use(registry, database, problem)
    if problem.kind in ("orphan_files", "orphan_project"):
        return _find_a_place(database, path)
    if problem.kind == "wrong_index":
        with delete_with(database, path):
            pass  # no row names it
        return f"{subject} is gone; it is made anew when the adapter is served."
    return clear(database, path)


def _take_out_of_use(registry: Tables, database: Database, problem: Problem) -> str:
    project, _, version = problem.subject.partition("/")
    adapter = registry.get_adapter(project, version)
    with database.write() as connection:
        forget_adapter(connection, project, version)
        moved = move_to_lost(registry.home, adapter.directory)
    where = f"; its files are in {moved}" if moved else ""
    now = (
        f" {project} has no active adapter now; choose one with `mlx-gardener activate`."
        if adapter.active
        else ""
    )
    return f"{problem.message} {problem.subject} is out of use{where}.{now}"


def _find_a_place(database: Database, path: Path) -> str:
    """Register a good adapter again; move anything else to ``lost+found``, where it is in nobody's way."""
    subject = path.relative_to(database.home).as_posix()
    parts = Path(subject).parts
    facts = manifest_facts(path) if len(parts) == 4 and parts[2] == "adapters" else None
    with database.write() as connection:
        if not _is_orphan(database, path):
            return ""
        if facts is not None and (facts.project, facts.version) == (parts[1], parts[3]):
            values = (facts.base_model, json.dumps(facts.metrics), facts.manifest_sha256, facts.created_at)
            try:
                insert_adapter(connection, facts.project, facts.version, subject, values)
                return (
                    f"{subject} is a good adapter and registered again; `mlx-gardener activate {facts.project} "
                    f"{facts.version}` puts it to use."
                )
            except sqlite3.IntegrityError:
                pass  # another directory has this version: it cannot stay here
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
            return f"{subject} was empty and is gone."
        moved = move_to_lost(database.home, path)
    return f"{subject} belongs to nothing the registry knows; it is in {moved} now."
