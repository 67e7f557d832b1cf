"""Adapters: the versions of each project, which is active, and which were before.

In: projects and versions by name. Out: `AdapterRecord`s; a change is one transaction. Cost: a read is some 20
microseconds, a write under a millisecond where nobody else writes.
"""

from __future__ import annotations

import json
import shlex
import sqlite3
import time
from pathlib import Path
from typing import Any

from mlx_gardener.errors import RegistryError, TrainingError
from mlx_gardener.registry.adapter_rows import forget_adapter, insert_adapter
from mlx_gardener.registry.deletion import delete_with
from mlx_gardener.registry.records import AdapterRecord, TrainingStatus, adapter_of
from mlx_gardener.registry.rows import readable
from mlx_gardener.registry.trainings import Trainings


class Adapters(Trainings):
    """The adapter versions of all projects."""

    def add_adapter(
        self,
        project: str,
        version: str,
        directory: Path,
        *,
        base_model: str,
        metrics: dict[str, Any],
        manifest_sha256: str,
        activate: bool = True,
        created_at: float | None = None,
        training_id: str | None = None,
    ) -> AdapterRecord:
        """Record an adapter version whose files are in place below the home.

        Until then whoever puts them there locks the directory (`platform.locks.hold`), or `repair` may step in.

        Doing it twice does no more than doing it once.

        Args:
            created_at: seconds since the epoch; now when None.
            training_id: the training that made it, which must be the project's newest.

        Raises:
            RegistryError: the version is recorded already, with another manifest, or there is no such project.
            TrainingError: another training of the project has begun since, as this one was taken for dead.
        """
        self.get_project(project)
        now = time.time()
        with self._database.write() as connection:
            values = (
                base_model,
                json.dumps(metrics),
                manifest_sha256,
                now if created_at is None else created_at,
            )
            if training_id is not None:
                _refuse_older(connection, project, training_id)
            if not _is_recorded(connection, project, version, manifest_sha256):
                insert_adapter(connection, project, version, str(directory.relative_to(self.home)), values)
            if activate:
                _activate(connection, project, version)
        return self.get_adapter(project, version)

    def list_adapters(self, project: str) -> list[AdapterRecord]:
        """The project's adapter versions, oldest first."""
        active = self.get_project(project).active_adapter
        rows = readable("adapters", self._adapter_rows(project), self.home)
        return [adapter_of(row, self.home, active) for row in rows]

    def _adapter_rows(self, project: str) -> list[sqlite3.Row]:
        with self._database.read() as connection:
            return connection.execute(
                "SELECT * FROM adapters WHERE project = ? ORDER BY created_at, version", (project,)
            ).fetchall()

    def get_adapter(self, project: str, version: str | None = None) -> AdapterRecord:
        """A version of the project's adapter; the active one when ``version`` is None.

        Raises:
            RegistryError: there is no such project, version, or no active one.
        """
        adapters = self.list_adapters(project)
        for adapter in adapters:
            if adapter.version == version or (version is None and adapter.active):
                return adapter
        wanted = self.get_project(project).active_adapter if version is None else version
        for row in self._adapter_rows(project):
            if row["version"] == wanted:
                self._sound("adapters", row)
        if not adapters:
            raise RegistryError(
                f"The project {project!r} has no adapter yet.", next_step=self.way_to_an_adapter(project)
            )
        known = ", ".join(adapter.version for adapter in adapters)
        what = "active adapter" if version is None else f"adapter version {version!r}"
        raise RegistryError(f"The project {project!r} has no {what}.", next_step=f"It has: {known}.")

    def way_to_an_adapter(self, project: str) -> str:
        """What a project without an adapter waits for, in a sentence."""
        if any(record.project == project for record in self.active_trainings()):
            return f"It is being trained: `mlx-gardener attach {project}` shows it."
        if any(entry.project == project for entry in self.queue.entries()):
            return "It waits for its training: `mlx-gardener queue list` shows its place."
        last = self.latest_training(project)
        place = shlex.quote(str(self.get_project(project).path))
        train = f"Train one with `mlx-gardener train {place} --project {project}`."
        ended = {TrainingStatus.FAILED: "failed", TrainingStatus.CANCELLED: "was cancelled"}
        if last is None or last.status not in ended:
            return train
        return f"Its last training {ended[last.status]}: `mlx-gardener status {project}` says why. {train}"

    def activate_adapter(self, project: str, version: str | None) -> None:
        """Choose the version other programs pick up; None chooses none.

        Raises:
            RegistryError: there is no such project or version.
        """
        with self._database.write() as connection:
            if version is not None:
                self.get_adapter(project, version)
            _activate(connection, project, version)

    def versions_before(self, project: str) -> list[str]:
        """Versions that were active before the active one and are still there, the latest first.

        After `step_back` those that were active later do not count any more.
        """
        known = {adapter.version for adapter in self.list_adapters(project)}
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM activations WHERE project = ? ORDER BY number DESC", (project,)
            ).fetchall()
        versions = [row["version"] for row in readable("activations", rows)]
        active = self.get_project(project).active_adapter
        return [version for version in dict.fromkeys(versions) if version in known and version != active]

    def step_back(self, project: str, version: str) -> None:
        """Make the version active again that was before, and forget that later ones were.

        Raises:
            RegistryError: there is no such project or version.
        """
        with self._database.write() as connection:
            self.get_adapter(project, version)
            connection.execute(
                "DELETE FROM activations WHERE project = ? AND number > "
                "(SELECT coalesce(max(number), 0) FROM activations WHERE project = ? AND version = ?)",
                (project, project, version),
            )
            _activate(connection, project, version)

    def remove_adapter(self, project: str, version: str, *, delete_files: bool = False) -> None:
        """Forget an adapter version.

        Args:
            delete_files: delete its directory too; else that is the caller's to do.

        Raises:
            RegistryError: there is no such project or version, or its files cannot be deleted.
        """
        directory = self.get_adapter(project, version).directory
        with delete_with(self._database, directory if delete_files else None) as connection:
            forget_adapter(connection, project, version)


def _is_recorded(connection: sqlite3.Connection, project: str, version: str, manifest_sha256: str) -> bool:
    return (
        connection.execute(
            "SELECT 1 FROM adapters WHERE project = ? AND version = ? AND manifest_sha256 = ?",
            (project, version, manifest_sha256),
        ).fetchone()
        is not None
    )


def _refuse_older(connection: sqlite3.Connection, project: str, training_id: str) -> None:
    newest = connection.execute(
        "SELECT id FROM trainings WHERE project = ? ORDER BY number DESC LIMIT 1", (project,)
    ).fetchone()
    if newest is None or newest["id"] != training_id:
        raise TrainingError(
            f"Another training of {project!r} has begun since, so the adapter of this one is not registered.",
            next_step=f"`mlx-gardener attach {project}` shows the other one.",
        )


def _activate(connection: sqlite3.Connection, project: str, version: str | None) -> None:
    """Make a version the active one, and remember that it was."""
    now = time.time()
    connection.execute(
        "UPDATE projects SET active_adapter = ?, updated_at = ? WHERE name = ?", (version, now, project)
    )
    if version is not None:
        connection.execute(
            "INSERT INTO activations (project, version, activated_at) SELECT name, ?, ? FROM projects WHERE name = ? "
            "AND ? IS NOT (SELECT version FROM activations WHERE project = ? ORDER BY number DESC LIMIT 1)",
            (version, now, project, version, project),
        )
