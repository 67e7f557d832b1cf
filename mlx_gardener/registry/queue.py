"""TrainingQueue: projects that wait for their training, in the registry's database.

An entry stays until its training has ended, so that what was queued survives a reboot. The training's row and the entry's
``training_id`` are written in one transaction (`registry.trainings`), so that no two processes begin a training for the same entry.
Higher priority first, then first come. Cost: one SQL statement a call.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import RegistryError, TrainingError
from mlx_gardener.registry.rows import readable

if TYPE_CHECKING:
    from mlx_gardener.registry.database import Database


@dataclass(frozen=True)
class QueueEntry:
    """A project that waits, or whose training the queue has begun.

    Attributes:
        number: grows with every entry ever made; the order among equal priorities.
        priority: higher ones first; 0 is usual.
        config: its settings, as JSON types.
        budget_bytes: what its training may take of memory.
        fresh: whether it begins anew where there is an unfinished training.
        training_id: the training that does it, None while it waits.
        begun: how often a training was begun for it.
    """

    number: int
    project: str
    priority: int
    config: dict[str, Any]
    budget_bytes: int
    fresh: bool
    training_id: str | None
    begun: int
    enqueued_at: float


class TrainingQueue:
    """The queue of a registry; safe under many threads and processes.

    Args:
        check_project: raises `RegistryError` where there is no project of a name.

    Every method raises `RegistryError` when the database cannot be read or written.
    """

    def __init__(self, database: Database, check_project: Callable[[str], object]) -> None:
        self._database, self._check_project = database, check_project

    def add(
        self,
        project: str,
        config: dict[str, Any],
        *,
        budget_bytes: int,
        priority: int = 0,
        fresh: bool = False,
    ) -> QueueEntry:
        """Put a registered project at the end of its priority.

        Raises:
            TrainingError: it is in the queue already.
            RegistryError: there is no such project.
        """
        self._check_project(project)
        try:
            with self._database.write() as connection:
                connection.execute(
                    "INSERT INTO queue (project, priority, config, budget_bytes, fresh, enqueued_at) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (project, priority, json.dumps(config), budget_bytes, fresh, time.time()),
                )
        except RegistryError as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                raise TrainingError(
                    f"{project!r} is in the queue already.",
                    next_step=f"See `mlx-gardener queue list`; `mlx-gardener queue remove {project}` takes it out.",
                ) from error
            raise
        return next(entry for entry in self.entries() if entry.project == project)

    def entries(self) -> list[QueueEntry]:
        """All entries, those that come first first; entries whose training was begun stand in their place."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM queue ORDER BY priority DESC, number").fetchall()
        return [
            QueueEntry(
                number=row["number"],
                project=row["project"],
                priority=row["priority"],
                config=json.loads(row["config"]),
                budget_bytes=row["budget_bytes"],
                fresh=bool(row["fresh"]),
                training_id=row["training_id"],
                begun=row["begun"],
                enqueued_at=row["enqueued_at"],
            )
            for row in readable("queue", rows)
        ]

    def remove(self, project: str) -> bool:
        """Take a project out; whether it was in. A training that was begun goes on."""
        with self._database.write() as connection:
            return connection.execute("DELETE FROM queue WHERE project = ?", (project,)).rowcount > 0

    def remove_waiting(self, project: str) -> bool:
        """Take a project out unless its training was begun; whether it was taken out."""
        with self._database.write() as connection:
            deleted = connection.execute(
                "DELETE FROM queue WHERE project = ? AND training_id IS NULL", (project,)
            )
            return deleted.rowcount > 0

    def set_priority(self, project: str, priority: int) -> None:
        """Change when a project comes.

        Raises:
            RegistryError: it is not in the queue.
        """
        with self._database.write() as connection:
            changed = connection.execute(
                "UPDATE queue SET priority = ? WHERE project = ?", (priority, project)
            )
            if not changed.rowcount:
                raise RegistryError(
                    f"{project!r} is not in the queue.",
                    next_step="See `mlx-gardener queue list`; `mlx-gardener train --queue` puts a project in.",
                )

    def done(self, entry: QueueEntry) -> None:
        """Forget an entry whose training has ended."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM queue WHERE number = ?", (entry.number,))

    def wait_again(self, entry: QueueEntry) -> None:
        """Let an entry whose training was interrupted wait for its next one, which goes on from its checkpoint."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE queue SET training_id = NULL, fresh = 0 WHERE number = ? AND training_id = ?",
                (entry.number, entry.training_id),
            )
