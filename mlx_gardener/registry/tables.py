"""Every question and change that the rest of the package has for the database, one method each.

In: names and records. Out: records; a change is one transaction. Cost: a read is some 20 microseconds, a write under a
millisecond where nobody else writes.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import shlex
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_gardener.errors import (
    ConfigError,
    GardenerError,
    RegistryError,
    RegistryUnavailableError,
    TrainingError,
)
from mlx_gardener.events import TrainingPhase, TrainingProgress
from mlx_gardener.platform.files import make_private
from mlx_gardener.platform.home import default_home
from mlx_gardener.registry.adapter_rows import forget_adapter, insert_adapter
from mlx_gardener.registry.database import BUSY_TIMEOUT_SECONDS, Database
from mlx_gardener.registry.deletion import delete_with
from mlx_gardener.registry.lost import unknown_repository
from mlx_gardener.registry.names import check_project_name, holds_secret, what_is_kept
from mlx_gardener.registry.processes import is_alive, start_time
from mlx_gardener.registry.queue import TrainingQueue
from mlx_gardener.registry.records import (
    ERROR,
    INTERRUPTED,
    LEFT_NOTHING,
    LIVE,
    AdapterRecord,
    Project,
    TrainingRecord,
    TrainingStatus,
    adapter_of,
    project_of,
    training_of,
)
from mlx_gardener.registry.rows import label, readable, wrong_in

logger = logging.getLogger(__name__)

_END_PHASE = {
    TrainingStatus.COMPLETED: TrainingPhase.COMPLETED,
    TrainingStatus.FAILED: TrainingPhase.FAILED,
    TrainingStatus.CANCELLED: TrainingPhase.CANCELLED,
}
_SILENT_DEATH = "Its process ended without a word."


class Tables:
    """Projects, trainings and adapters; `ProjectRegistry` adds their upkeep.

    Safe to share between threads and to open in many processes at once.

    Args:
        home: its directory; `default_home` when None. Nothing is made before the first use.

    Every method raises `RegistryError` when the database cannot be read or written.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.home = (Path(home) if home is not None else default_home()).absolute()
        self._database = Database(self.home)
        #: Projects that wait for their training.
        self.queue = TrainingQueue(self._database, self.get_project)

    @property
    def exists(self) -> bool:
        """Whether there is a registry yet; asking makes none."""
        return self._database.path.exists()

    def close(self) -> None:
        """Close the calling thread's connection, so that the home may be moved; the next use opens it again."""
        self._database.leave()

    # Projects.

    def register_project(self, name: str, path: str | Path, *, replace: bool = False) -> Project:
        """Make ``name`` stand for the repository at ``path``; registering the same pair again changes nothing.

        A repository that moved keeps its name: where its old place is gone, or holds the same one by its first commit.
        So does one whose repository a repair or an adoption could not know.

        Raises:
            ConfigError: the name cannot be one, or is new and seems to hold a secret.
            RegistryError: the name stands for another repository, and ``replace`` is off.
        """
        check_project_name(name)
        resolved, now = str(Path(path).resolve()), time.time()
        with self._database.read() as connection:  # compared before the transaction, as git may take a while
            rows = connection.execute(_PROJECTS + " WHERE projects.name = ?", (name,)).fetchall()
        if not rows and holds_secret(name):
            raise ConfigError(
                "This project name seems to hold a secret, and names stand in manifests, reports and logs.",
                next_step="Choose another name with --project.",
            )
        old = next((row["path"] for row in readable("projects", rows)), None)
        moved = old not in (None, resolved) and _has_moved(Path(old), Path(resolved))
        with self._database.write() as connection:
            row = connection.execute("SELECT path FROM projects WHERE name = ?", (name,)).fetchone()
            accepted = {resolved, str(unknown_repository(self.home, name)), *([old] if moved else [])}
            if row is not None and row["path"] not in accepted and not replace:
                raise RegistryError(
                    f"The project {name!r} already stands for {row['path']}.",
                    next_step="Choose another name with --project, or remove the old project first.",
                )
            same = connection.execute(
                "SELECT name FROM projects WHERE name = ? COLLATE NOCASE AND name != ?", (name, name)
            ).fetchone()
            if same is not None:  # many file systems would give both one directory
                raise RegistryError(
                    f"The project {name!r} differs from {same['name']!r} in upper and lower case only.",
                    next_step="Choose another name with --project.",
                )
            connection.execute(
                "INSERT INTO projects (name, path, created_at, updated_at) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET path = excluded.path",
                (name, resolved, now, now),
            )
        return self.get_project(name)

    @contextmanager
    def registering(self, name: str, path: str | Path) -> Iterator[Project]:
        """`register_project` for what the block begins with it; where the block raises, the registry is as it was before.

        A project that has a training, an adapter or a place in the queue by then stays.

        Raises:
            ConfigError, RegistryError: as `register_project`.
        """
        with self._database.read() as connection:
            row = connection.execute("SELECT path FROM projects WHERE name = ?", (name,)).fetchone()
        project = self.register_project(name, path)
        try:
            yield project
        except BaseException:
            if row is not None:
                with self._database.write() as connection:
                    connection.execute("UPDATE projects SET path = ? WHERE name = ?", (row["path"], name))
            elif not self._is_used(name):
                self.remove_project(name)
            raise

    def _is_used(self, project: str) -> bool:
        with self._database.read() as connection:
            return any(
                connection.execute(f"SELECT 1 FROM {table} WHERE project = ?", (project,)).fetchone()
                for table in ("trainings", "adapters", "queue")
            )

    def get_project(self, name: str) -> Project:
        """The project called ``name``.

        Raises:
            RegistryError: there is none; offers near names.
        """
        with self._database.read() as connection:
            row = connection.execute(_PROJECTS + " WHERE projects.name = ?", (name,)).fetchone()
        if row is None:
            names = [project.name for project in self.list_projects()]
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = (
                f"Did you mean {', '.join(near)}?" if near else "`mlx-gardener projects` lists what there is."
            )
            raise RegistryError(f"There is no project {name!r}.", next_step=hint)
        return project_of(self._sound("projects", row))

    def list_projects(self) -> list[Project]:
        """All projects, by name."""
        with self._database.read() as connection:
            rows = connection.execute(_PROJECTS + " ORDER BY projects.name").fetchall()
        return [project_of(row) for row in readable("projects", rows)]

    def _sound(self, table: str, row: sqlite3.Row) -> sqlite3.Row:
        """``row``, when this program could have written it.

        Raises:
            RegistryError: it could not.
        """
        wrong = wrong_in(table, row, self.home)
        if wrong:
            raise RegistryError(
                f"The registry holds a row that cannot be used ({label(table, row)}): {wrong}.",
                next_step="`mlx-gardener registry repair` puts it out of use, and keeps what is good.",
            )
        return row

    def remove_project(self, name: str, *, delete_files: bool = True) -> None:
        """Forget a project with its trainings and adapters; its repository is never touched.

        Raises:
            RegistryError: there is no such project, or it is being trained.
        """
        self.get_project(name)
        self.close_dead_trainings()
        directory = self.project_directory(name)
        with delete_with(self._database, directory if delete_files else None) as connection:
            if connection.execute(
                f"SELECT 1 FROM trainings WHERE project = ? AND {LIVE}", (name,)
            ).fetchone():
                raise RegistryError(
                    f"{name!r} is being trained.", next_step=f"Stop it first: `mlx-gardener cancel {name}`."
                )
            connection.execute("DELETE FROM projects WHERE name = ?", (name,))

    def set_active_project(self, name: str) -> None:
        """Make ``name`` the project that other programs use when none is named.

        Raises:
            RegistryError: there is no such project.
        """
        with self._database.write() as connection:
            self.get_project(name)
            connection.execute("UPDATE projects SET active = 0 WHERE active = 1")
            connection.execute("UPDATE projects SET active = 1 WHERE name = ?", (name,))

    def get_active_project(self) -> Project | None:
        """The active project, if one was chosen."""
        with self._database.read() as connection:
            row = connection.execute(_PROJECTS + " WHERE projects.active = 1").fetchone()
        return None if row is None else project_of(self._sound("projects", row))

    def project_directory(self, name: str) -> Path:
        """Where the runs and adapters of a project lie; always below the home.

        Raises:
            ConfigError: the name cannot be one.
        """
        return self.home / "projects" / check_project_name(name)

    # Trainings.

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

    # Adapters.

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
                f"The project {project!r} has no adapter yet.", next_step=self._way_to_an_adapter(project)
            )
        known = ", ".join(adapter.version for adapter in adapters)
        what = "active adapter" if version is None else f"adapter version {version!r}"
        raise RegistryError(f"The project {project!r} has no {what}.", next_step=f"It has: {known}.")

    def _way_to_an_adapter(self, project: str) -> str:
        """What a project without an adapter waits for, in a sentence."""
        if any(record.project == project for record in self.active_trainings()):
            return f"It is being trained: `mlx-gardener attach {project}` shows it."
        if any(entry.project == project for entry in self.queue.entries()):
            return "It waits for its training: `mlx-gardener queue list` shows its place."
        last = self.latest_training(project)
        train = f"Train one with `mlx-gardener train {shlex.quote(str(self.get_project(project).path))}`."
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

    # What projects forget, and where local models lie.

    def forget_path(self, project: str, path: str) -> None:
        """Leave ``path`` (a file or directory of the repository) out of the project's trainings from now on.

        Raises:
            RegistryError: there is no such project.
        """
        self.get_project(project)
        with self._database.write() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO forgotten (project, path, forgotten_at) VALUES (?, ?, ?)",
                (project, path, time.time()),
            )

    def remember_path(self, project: str, path: str) -> bool:
        """Undo `forget_path`; whether it was forgotten."""
        with self._database.write() as connection:
            done = connection.execute(
                "DELETE FROM forgotten WHERE project = ? AND path = ?", (project, path)
            ).rowcount
        return bool(done)

    def forgotten_paths(self, project: str) -> list[str]:
        """What the project's trainings leave out, sorted."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM forgotten WHERE project = ? ORDER BY path", (project,)
            ).fetchall()
        return [row["path"] for row in readable("forgotten", rows)]

    def note_local_model(self, model_id: str, path: Path) -> None:
        """Remember where the local base model ``model_id`` lies; adapters say its name only."""
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO local_models (id, path) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET path = excluded.path",
                (model_id, str(path)),
            )

    def local_model(self, model_id: str) -> Path | None:
        """Where a local base model lies, as far as it is known."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM local_models WHERE id = ?", (model_id,)).fetchall()
        return next((Path(row["path"]) for row in readable("local_models", rows)), None)


_PROJECTS = (
    "SELECT projects.*, CASE WHEN EXISTS (SELECT 1 FROM queue WHERE project = projects.name AND training_id IS NULL) "
    "THEN 'queued' ELSE (SELECT status FROM trainings WHERE project = projects.name AND NOT (status = 'failed' AND "
    "(projects.active_adapter IS NOT NULL OR "
    f"CASE WHEN json_valid(result) THEN coalesce(json_extract(result, '$.{LEFT_NOTHING}'), 0) ELSE 0 END)) "
    "ORDER BY number DESC LIMIT 1) END AS status FROM projects"
)


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


def _has_moved(old: Path, new: Path) -> bool:
    """Whether the repository of ``old`` is now (or also) at ``new``."""
    from mlx_gardener.source.walk import origin_of

    if not new.is_dir():
        return False
    try:
        old.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # it may be there, and be another one
    origin = origin_of(old)
    return origin is not None and origin == origin_of(new)


def _begin_queued(connection: sqlite3.Connection, number: int, training_id: str) -> None:
    changed = connection.execute(
        "UPDATE queue SET training_id = ?, begun = begun + 1 WHERE number = ? AND training_id IS NULL",
        (training_id, number),
    )
    if not changed.rowcount:
        raise TrainingError("The entry of the queue was taken out, or another process has begun it.")


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
