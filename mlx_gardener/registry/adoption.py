"""Adapters in ``lost+found`` registered again: those that are whole and say themselves whose they are.

A repair moves a project whose row is gone to ``lost+found`` with all that is in it. A manifest names its project and
version, and the sha256 of every file, so that no row is needed. Cost: every adapter there is read once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_gardener.errors import RegistryError
from mlx_gardener.platform.files import make_private
from mlx_gardener.registry.adapter_files import MANIFEST_NAME, ManifestFacts, manifest_facts
from mlx_gardener.registry.adapter_rows import insert_adapter
from mlx_gardener.registry.database import Database
from mlx_gardener.registry.lost import LOST_NAME, unknown_repository

#: A project's directory in ``lost+found`` holds adapters two levels further down.
_DEPTHS = ("*", "*/adapters/*")


def adopt(database: Database, *, tell: Callable[[str], None] | None = None) -> list[str]:
    """Register every whole adapter in ``lost+found`` again, not active; what was done or not, a sentence each.

    A project that is not registered any more is registered for a repository that nobody knows, until a training names one.

    Raises:
        RegistryError: the database or a file cannot be written; what was done before stays done.
    """
    said = []
    for directory in _candidates(database.home):
        subject = directory.relative_to(database.home).as_posix()
        if tell is not None:
            tell(subject)
        facts = manifest_facts(directory)
        if facts is None:
            said.append(f"{subject} is not whole, or does not say whose it is; it stays.")
            continue
        try:
            said.append(_adopt(database, directory, facts))
        except OSError as error:
            raise RegistryError(
                f"{subject} cannot be moved to its place ({error.strerror or error}).",
                next_step="Check rights and disk space.",
            ) from error
    return said


def _candidates(home: Path) -> Iterator[Path]:
    for depth in _DEPTHS:
        for manifest in sorted((home / LOST_NAME).glob(f"{depth}/{MANIFEST_NAME}")):
            yield manifest.parent


def _adopt(database: Database, directory: Path, facts: ManifestFacts) -> str:
    name = f"{facts.project}/{facts.version}"
    subject = directory.relative_to(database.home).as_posix()
    place = database.home / "projects" / facts.project / "adapters" / facts.version
    with database.write() as connection:
        row = connection.execute(
            "SELECT manifest_sha256 FROM adapters WHERE project = ? AND version = ?",
            (facts.project, facts.version),
        ).fetchone()
        if row is not None and row["manifest_sha256"] == facts.manifest_sha256:
            return f"{subject} is {name}, which is registered already; it stays."
        if row is not None or place.exists():
            return f"{subject} was {name}, but there is another {name} now; it stays."
        other = connection.execute(
            "SELECT name FROM projects WHERE name = ? COLLATE NOCASE AND name != ?",
            (facts.project, facts.project),
        ).fetchone()
        if other is not None:
            return f"{subject} was of {facts.project}, which is too like {other['name']}; it stays."
        repository = str(unknown_repository(database.home, facts.project))
        now = time.time()
        new = connection.execute(
            "INSERT OR IGNORE INTO projects (name, path, created_at, updated_at) VALUES (?, ?, ?, ?)",
            (facts.project, repository, now, now),
        ).rowcount
        values = (facts.base_model, json.dumps(facts.metrics), facts.manifest_sha256, facts.created_at)
        relative = place.relative_to(database.home).as_posix()
        insert_adapter(connection, facts.project, facts.version, relative, values)
        make_private(place.parent)
        directory.rename(place)
    where = (
        f" Its repository is not known: `mlx-gardener train PATH --project {facts.project}` names it."
        if new
        else ""
    )
    return (
        f"{name} is registered again; `mlx-gardener activate {facts.project} {facts.version}` puts it to use."
        f"{where}"
    )
