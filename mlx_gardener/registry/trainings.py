"""Trainings: begun, claimed by a process, told of, and closed, also those whose process died.

In: projects by name, what workers tell. Out: `TrainingRecord`s; a change is one transaction. Cost: a read is some 20
microseconds, a write under a millisecond where nobody else writes.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_gardener.errors import GardenerError, RegistryError, RegistryUnavailableError, TrainingError
from mlx_gardener.events import TrainingPhase, TrainingProgress
from mlx_gardener.platform.files import make_private
from mlx_gardener.registry.database import BUSY_TIMEOUT_SECONDS
from mlx_gardener.registry.names import what_is_kept
from mlx_gardener.registry.processes import is_alive, start_time
from mlx_gardener.registry.projects import Projects
from mlx_gardener.registry.records import (
    ERROR,
    INTERRUPTED,
    LIVE,
    TrainingRecord,
    TrainingStatus,
    training_of,
)
from mlx_gardener.registry.rows import readable

logger = logging.getLogger(__name__)

_END_PHASE = {
    TrainingStatus.COMPLETED: TrainingPhase.COMPLETED,
    TrainingStatus.FAILED: TrainingPhase.FAILED,
    TrainingStatus.CANCELLED: TrainingPhase.CANCELLED,
}
_SILENT_DEATH = "Its process ended without a word."


class Trainings(Projects):
    """The trainings of all projects."""

    def begin_training(
        self,
        project: str,
        config: dict[str, Any],
        *,
        run_dir: Path | None = None,
        queue_number: int | None = None,
    ) -> TrainingRecord:
        """Open a training, owned by this process until a worker claims it.

        Args:
            config: its settings, as JSON types.
            run_dir: the directory of an earlier run that this one goes on with; a new one when None.
            queue_number: the entry of the queue that it does, which is told so in the same transaction.

        Raises:
            TrainingError: the project is being trained already, by whichever process, or the entry is gone or begun.
            RegistryError: there is no such project.
        """
        self.get_project(project)
        self.close_dead_trainings()
        training_id, now = uuid.uuid4().hex[:12], time.time()
        directory = run_dir or self.project_directory(project) / "runs" / training_id
        values = (
            training_id, project, TrainingStatus.QUEUED, TrainingPhase.INITIALIZING, 0.0, "Waiting to start", "{}",
            str(directory.relative_to(self.home)), os.getpid(), start_time(os.getpid()), json.dumps(config), "{}", now, now,
        )  # fmt: skip
        try:
            with self._database.write() as connection:
                connection.execute(
                    "INSERT INTO trainings (id, project, status, phase, percent, message, details, run_dir, pid, "
                    "pid_started, config, result, started_at, updated_at) VALUES ("
                    + ", ".join("?" * 14)
                    + ")",
                    values,
                )
                if queue_number is not None:
                    _begin_queued(connection, queue_number, training_id)
                make_private(directory)  # last: a refusal leaves none behind
        except OSError as error:
            raise RegistryError(
                f"The run's directory {directory} cannot be made ({error.strerror}).",
                next_step="Make the home writable, or name another one in MLX_GARDENER_HOME.",
            ) from error
        except RegistryError as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                self.get_project(project)  # was there at first
                raise TrainingError(
                    f"{project!r} is already being trained.",
                    next_step=f"`mlx-gardener attach {project}` shows it, `mlx-gardener cancel {project}` stops it.",
                ) from error
            raise
        return self.get_training(training_id)

    def claim_training(self, training_id: str, pid: int) -> bool:
        """Make the process ``pid`` the owner of a training; False (and nothing is done) where it is closed."""
        with self._database.write() as connection:
            claimed = connection.execute(
                "UPDATE trainings SET pid = ?, pid_started = ?, status = ? WHERE id = ? AND finished_at IS NULL",
                (pid, start_time(pid), TrainingStatus.TRAINING, training_id),
            )
            return claimed.rowcount > 0

    def update_training(
        self,
        training_id: str,
        progress: TrainingProgress,
        *,
        patience_seconds: float = BUSY_TIMEOUT_SECONDS,
    ) -> None:
        """Record a training's progress: the one hot write, one row by its key.

        Args:
            patience_seconds: how long others may write first.
        """
        with self._database.write(patience_seconds=patience_seconds) as connection:
            connection.execute(
                "UPDATE trainings SET phase = ?, percent = ?, message = ?, details = ?, updated_at = ? "
                "WHERE id = ? AND finished_at IS NULL",
                (
                    progress.phase,
                    progress.progress_percent,
                    progress.message,
                    json.dumps(progress.details),
                    progress.timestamp,
                    training_id,
                ),
            )

    def finish_training(
        self, training_id: str, status: TrainingStatus, message: str, result: dict[str, Any]
    ) -> bool:
        """Close a training as completed, failed or cancelled; False where it is closed, and stays as it is."""
        now, completed = time.time(), status is TrainingStatus.COMPLETED
        with self._database.write() as connection:
            closed = connection.execute(
                "UPDATE trainings SET status = ?, phase = ?, message = ?, result = ?, updated_at = ?, finished_at = ?, "
                "percent = CASE WHEN ? THEN 100.0 ELSE percent END WHERE id = ? AND finished_at IS NULL",
                (status, _END_PHASE[status], message, json.dumps(result), now, now, completed, training_id),
            )
            return closed.rowcount > 0

    def request_cancel(self, training_id: str) -> None:
        """Leave the wish that a training stop; its worker asks for it several times a second."""
        with self._database.write() as connection:
            connection.execute("UPDATE trainings SET cancel_requested = 1 WHERE id = ?", (training_id,))

    def cancel_requested(self, training_id: str) -> bool:
        """Whether somebody wished the training to stop."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT cancel_requested FROM trainings WHERE id = ?", (training_id,)
            ).fetchone()
        return row is not None and bool(row["cancel_requested"])

    def get_training(self, training_id: str) -> TrainingRecord:
        """A training by its id.

        Raises:
            RegistryError: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute("SELECT * FROM trainings WHERE id = ?", (training_id,)).fetchone()
        if row is None:
            raise RegistryError(f"There is no training {training_id!r}.")
        return training_of(self._sound("trainings", row), self.home)

    def latest_training(self, project: str) -> TrainingRecord | None:
        """The project's newest training, under way or ended; None when it was never trained."""
        self.close_dead_trainings()
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM trainings WHERE project = ? ORDER BY number DESC", (project,)
            )
            row = next(readable("trainings", rows, self.home), None)
        return None if row is None else _as_it_is(training_of(row, self.home), row)

    def training_that_made(self, project: str, version: str) -> TrainingRecord | None:
        """The training that made a version; None for imports, and where `collect_garbage` took its run."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM trainings WHERE project = ? ORDER BY number", (project,))
            records = [training_of(row, self.home) for row in readable("trainings", rows, self.home)]
        return next((item for item in records if item.result.get("adapter_version") == version), None)

    def active_trainings(self) -> list[TrainingRecord]:
        """Trainings waiting or under way, in the order they were begun."""
        self.close_dead_trainings()
        rows = [row for row in self.live_rows() if is_alive(row["pid"], row["pid_started"])]
        return [training_of(row, self.home) for row in rows]

    def close_dead_trainings(self) -> list[str]:
        """Mark trainings whose process is gone as failed; returns their ids.

        Where the registry cannot be written at the moment, that is left to whoever looks next.
        """
        dead = [row for row in self.live_rows() if not is_alive(row["pid"], row["pid_started"])]
        closed = []
        for row in dead:
            message = _silent_death(self.home / row["run_dir"])
            try:
                self.finish_training(row["id"], TrainingStatus.FAILED, message, {INTERRUPTED: True})
            except RegistryUnavailableError as error:
                logger.info("the dead training %s cannot be closed now (%s)", row["id"], error)
                break
            closed.append(row["id"])
        return closed

    def explain_death(
        self,
        training_id: str,
        message: str,
        *,
        interrupted: bool = False,
        error: GardenerError | None = None,
    ) -> None:
        """Say how a training's process died, also where only its silence was recorded so far.

        Args:
            interrupted: whether it may just go on; it was not the training that failed.
            error: what ended it, where that is known.
        """
        result: dict[str, Any] = {INTERRUPTED: True} if interrupted else {}
        if error is not None:
            result[ERROR] = error.to_json()
        self.finish_training(training_id, TrainingStatus.FAILED, message, result)
        with self._database.write() as connection:
            connection.execute(
                "UPDATE trainings SET message = ? WHERE id = ? AND substr(message, 1, ?) = ?",
                (message, training_id, len(_SILENT_DEATH), _SILENT_DEATH),
            )

    def live_rows(self) -> list[sqlite3.Row]:
        """Rows of trainings that have not ended, whether or not their process lives; for `health`."""
        with self._database.read() as connection:
            rows = connection.execute(f"SELECT * FROM trainings WHERE {LIVE} ORDER BY number").fetchall()
        return list(readable("trainings", rows, self.home))


def _silent_death(run_dir: Path) -> str:
    return f"{_SILENT_DEATH} {what_is_kept(run_dir)}"


def _as_it_is(record: TrainingRecord, row: sqlite3.Row) -> TrainingRecord:
    """A training whose process is gone has failed, also where that cannot be written at the moment."""
    if not record.status.is_live or is_alive(row["pid"], row["pid_started"]):
        return record
    return replace(
        record,
        status=TrainingStatus.FAILED,
        phase=TrainingPhase.FAILED,
        message=_silent_death(record.run_dir),
        result={INTERRUPTED: True},
        finished_at=record.updated_at,
    )


def _begin_queued(connection: sqlite3.Connection, number: int, training_id: str) -> None:
    changed = connection.execute(
        "UPDATE queue SET training_id = ?, begun = begun + 1 WHERE number = ? AND training_id IS NULL",
        (training_id, number),
    )
    if not changed.rowcount:
        raise TrainingError("The entry of the queue was taken out, or another process has begun it.")
