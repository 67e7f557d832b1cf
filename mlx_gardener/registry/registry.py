"""ProjectRegistry: every question and change the rest of the package has for the database, one method each."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from mlx_gardener.errors import RegistryError, TrainingError
from mlx_gardener.events import TrainingPhase, TrainingProgress
from mlx_gardener.platform.files import make_private
from mlx_gardener.registry.database import Database
from mlx_gardener.registry.names import check_project_name, place_below
from mlx_gardener.registry.records import (
    AdapterRecord,
    Problem,
    Project,
    TrainingRecord,
    TrainingStatus,
)

_END_PHASE = {
    TrainingStatus.COMPLETED: TrainingPhase.COMPLETED,
    TrainingStatus.FAILED: TrainingPhase.FAILED,
    TrainingStatus.CANCELLED: TrainingPhase.CANCELLED,
}
_SILENT_DEATH = (
    "Its process ended without a word. Its last checkpoint is kept: go on with `mlx-gardener train --resume`."
)
#: How far a process's start time may lie from the recorded one and still be the same process, seconds.
_START_TOLERANCE = 2.0


def default_home() -> Path:
    """``MLX_GARDENER_HOME``, or the platform's directory for user data."""
    return Path(
        os.environ.get("MLX_GARDENER_HOME") or platformdirs.user_data_dir("mlx-gardener", appauthor=False)
    )


class ProjectRegistry:
    """Projects, trainings and adapters; safe to share between threads and to open in many processes at once.

    Args:
        home: its directory; `default_home` when None. Nothing is made before the first use.

    Every method raises `RegistryError` when the database cannot be read or written.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.home = (Path(home) if home is not None else default_home()).absolute()
        self._database = Database(self.home)

    # Projects.

    def register_project(self, name: str, path: Path, *, replace: bool = False) -> Project:
        """Make ``name`` stand for the repository at ``path``; registering the same pair again changes nothing.

        Raises:
            ConfigError: the name cannot be one.
            RegistryError: the name stands for another path, and ``replace`` is off.
        """
        check_project_name(name)
        resolved, now = str(Path(path).resolve()), time.time()
        with self._database.write() as connection:
            row = connection.execute("SELECT path FROM projects WHERE name = ?", (name,)).fetchone()
            if row is not None and row["path"] != resolved and not replace:
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
        return _project(row)

    def list_projects(self) -> list[Project]:
        """All projects, by name."""
        with self._database.read() as connection:
            return [_project(row) for row in connection.execute(_PROJECTS + " ORDER BY projects.name")]

    def remove_project(self, name: str, *, delete_files: bool = True) -> None:
        """Forget a project with its trainings and adapters; its repository is never touched.

        Raises:
            RegistryError: there is no such project, or it is being trained.
        """
        self.get_project(name)
        if any(record.project == name for record in self.active_trainings()):
            raise RegistryError(
                f"{name!r} is being trained.", next_step=f"Stop it first: `mlx-gardener cancel {name}`."
            )
        with self._database.write() as connection:
            connection.execute("DELETE FROM projects WHERE name = ?", (name,))
        if delete_files and (self.home / "projects" / name).exists():
            _remove_tree(self.home / "projects" / name)

    def set_active_project(self, name: str) -> None:
        """Make ``name`` the project that other programs use when none is named.

        Raises:
            RegistryError: there is no such project.
        """
        self.get_project(name)
        with self._database.write() as connection:
            connection.execute("UPDATE projects SET active = 0 WHERE active = 1")
            connection.execute("UPDATE projects SET active = 1 WHERE name = ?", (name,))

    def get_active_project(self) -> Project | None:
        """The active project, if one was chosen."""
        with self._database.read() as connection:
            row = connection.execute(_PROJECTS + " WHERE projects.active = 1").fetchone()
        return None if row is None else _project(row)

    def project_directory(self, name: str) -> Path:
        """Where the runs and adapters of a project lie; always below the home.

        Raises:
            ConfigError: the name cannot be one.
        """
        return self.home / "projects" / check_project_name(name)

    # Trainings.

    def begin_training(
        self, project: str, config: dict[str, Any], *, run_dir: Path | None = None
    ) -> TrainingRecord:
        """Open a training, owned by this process until a worker claims it.

        Args:
            config: its settings, as JSON types.
            run_dir: the directory of an earlier run that this one goes on with; a new one when None.

        Raises:
            TrainingError: the project is being trained already, by whichever process.
            RegistryError: there is no such project.
        """
        self.get_project(project)
        self.close_dead_trainings()
        training_id, now = uuid.uuid4().hex[:12], time.time()
        directory = run_dir or self.project_directory(project) / "runs" / training_id
        values = (
            training_id, project, TrainingStatus.QUEUED, TrainingPhase.INITIALIZING, 0.0, "Waiting to start", "{}",
            str(directory.relative_to(self.home)), os.getpid(), _start_time(os.getpid()), json.dumps(config), "{}", now, now,
        )  # fmt: skip
        try:
            make_private(directory)
            with self._database.write() as connection:
                connection.execute(
                    "INSERT INTO trainings (id, project, status, phase, percent, message, details, run_dir, pid, "
                    "pid_started, config, result, started_at, updated_at) VALUES ("
                    + ", ".join("?" * 14)
                    + ")",
                    values,
                )
        except OSError as error:
            raise RegistryError(
                f"The run's directory {directory} cannot be made ({error.strerror}).",
                next_step="Make the home writable, or name another one in MLX_GARDENER_HOME.",
            ) from error
        except RegistryError as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                raise TrainingError(
                    f"{project!r} is already being trained.",
                    next_step=f"Watch it with `mlx-gardener status {project}`, or stop it with `cancel`.",
                ) from error
            raise
        return self.get_training(training_id)

    def claim_training(self, training_id: str, pid: int) -> None:
        """Make the worker process ``pid`` the owner of a training."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE trainings SET pid = ?, pid_started = ?, status = ? WHERE id = ? AND finished_at IS NULL",
                (pid, _start_time(pid), TrainingStatus.TRAINING, training_id),
            )

    def update_training(self, training_id: str, progress: TrainingProgress) -> None:
        """Record a training's progress: the one hot write, one row by its key."""
        with self._database.write() as connection:
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
    ) -> None:
        """Close a training as completed, failed or cancelled; what is closed stays as it is."""
        now, completed = time.time(), status is TrainingStatus.COMPLETED
        with self._database.write() as connection:
            connection.execute(
                "UPDATE trainings SET status = ?, phase = ?, message = ?, result = ?, updated_at = ?, finished_at = ?, "
                "percent = CASE WHEN ? THEN 100.0 ELSE percent END WHERE id = ? AND finished_at IS NULL",
                (status, _END_PHASE[status], message, json.dumps(result), now, now, completed, training_id),
            )

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
        return self._training(row)

    def latest_training(self, project: str) -> TrainingRecord | None:
        """The project's newest training, under way or ended; None when it was never trained."""
        self.close_dead_trainings()
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT * FROM trainings WHERE project = ? ORDER BY number DESC LIMIT 1", (project,)
            ).fetchone()
        return None if row is None else self._training(row)

    def active_trainings(self) -> list[TrainingRecord]:
        """Trainings waiting or under way, in the order they were begun."""
        self.close_dead_trainings()
        return [self._training(row) for row in self._live_rows()]

    def close_dead_trainings(self) -> list[str]:
        """Mark trainings whose process is gone as failed; returns their ids."""
        dead = [row["id"] for row in self._live_rows() if not _is_alive(row["pid"], row["pid_started"])]
        for training_id in dead:
            self.finish_training(training_id, TrainingStatus.FAILED, _SILENT_DEATH, {})
        return dead

    def explain_death(self, training_id: str, message: str) -> None:
        """Say how a training's process died, also where only its silence was recorded so far."""
        self.finish_training(training_id, TrainingStatus.FAILED, message, {})
        with self._database.write() as connection:
            connection.execute(
                "UPDATE trainings SET message = ? WHERE id = ? AND message = ?",
                (message, training_id, _SILENT_DEATH),
            )

    def _live_rows(self) -> list[sqlite3.Row]:
        with self._database.read() as connection:
            return connection.execute(
                "SELECT * FROM trainings WHERE status IN ('queued', 'training') ORDER BY number"
            ).fetchall()

    def _training(self, row: sqlite3.Row) -> TrainingRecord:
        return TrainingRecord(
            id=row["id"],
            project=row["project"],
            status=TrainingStatus(row["status"]),
            phase=TrainingPhase(row["phase"]),
            percent=row["percent"],
            message=row["message"],
            details=json.loads(row["details"]),
            run_dir=place_below(self.home, row["run_dir"], row["project"]),
            pid=row["pid"],
            config=json.loads(row["config"]),
            result=json.loads(row["result"]),
            started_at=row["started_at"],
            updated_at=row["updated_at"],
            finished_at=row["finished_at"],
        )

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
    ) -> AdapterRecord:
        """Record an adapter version whose files are in place below the home.

        Raises:
            RegistryError: the version is recorded already, or there is no such project.
        """
        self.get_project(project)
        now = time.time()
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO adapters (project, version, directory, base_model, metrics, manifest_sha256, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    project,
                    version,
                    str(directory.relative_to(self.home)),
                    base_model,
                    json.dumps(metrics),
                    manifest_sha256,
                    now,
                ),
            )
            if activate:
                connection.execute(
                    "UPDATE projects SET active_adapter = ?, updated_at = ? WHERE name = ?",
                    (version, now, project),
                )
        return self.get_adapter(project, version)

    def list_adapters(self, project: str) -> list[AdapterRecord]:
        """The project's adapter versions, oldest first."""
        active = self.get_project(project).active_adapter
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM adapters WHERE project = ? ORDER BY created_at, version", (project,)
            ).fetchall()
        return [self._adapter(row, active) for row in rows]

    def get_adapter(self, project: str, version: str | None = None) -> AdapterRecord:
        """A version of the project's adapter; the active one when ``version`` is None.

        Raises:
            RegistryError: there is no such project, version, or no active one.
        """
        adapters = self.list_adapters(project)
        for adapter in adapters:
            if adapter.version == version or (version is None and adapter.active):
                return adapter
        if not adapters:
            raise RegistryError(
                f"The project {project!r} has no adapter yet.",
                next_step="Train one with `mlx-gardener train`.",
            )
        known = ", ".join(adapter.version for adapter in adapters)
        wanted = "active adapter" if version is None else f"adapter version {version!r}"
        raise RegistryError(f"The project {project!r} has no {wanted}.", next_step=f"It has: {known}.")

    def activate_adapter(self, project: str, version: str | None) -> None:
        """Choose the version other programs pick up; None chooses none.

        Raises:
            RegistryError: there is no such project or version.
        """
        if version is not None:
            self.get_adapter(project, version)
        with self._database.write() as connection:
            connection.execute(
                "UPDATE projects SET active_adapter = ?, updated_at = ? WHERE name = ?",
                (version, time.time(), project),
            )

    def remove_adapter(self, project: str, version: str) -> None:
        """Forget an adapter version; its files are `PeftManager`'s to delete.

        Raises:
            RegistryError: there is no such project or version.
        """
        adapter = self.get_adapter(project, version)
        with self._database.write() as connection:
            connection.execute("DELETE FROM adapters WHERE project = ? AND version = ?", (project, version))
            if adapter.active:
                connection.execute("UPDATE projects SET active_adapter = NULL WHERE name = ?", (project,))

    def _adapter(self, row: sqlite3.Row, active: str | None) -> AdapterRecord:
        return AdapterRecord(
            project=row["project"],
            version=row["version"],
            directory=place_below(self.home, row["directory"], row["project"]),
            base_model=row["base_model"],
            metrics=json.loads(row["metrics"]),
            manifest_sha256=row["manifest_sha256"],
            active=row["version"] == active,
            created_at=row["created_at"],
        )

    # Health.

    def check(self) -> list[Problem]:
        """What does not fit together: dead trainings, adapters without files, files nobody knows."""
        problems = [
            Problem(
                "dead_training",
                row["id"],
                f"Training {row['id']} of {row['project']} has no living process.",
                True,
            )
            for row in self._live_rows()
            if not _is_alive(row["pid"], row["pid_started"])
        ]
        known: set[Path] = set()
        for project in self.list_projects():
            versions = set()
            for adapter in self.list_adapters(project.name):
                known.add(adapter.directory)
                versions.add(adapter.version)
                if not (adapter.directory / "manifest.json").is_file():
                    subject = f"{project.name}/{adapter.version}"
                    problems.append(
                        Problem("missing_files", subject, f"The files of {subject} are gone.", True)
                    )
            if project.active_adapter is not None and project.active_adapter not in versions:
                problems.append(
                    Problem(
                        "missing_version",
                        project.name,
                        f"The active version of {project.name} is gone.",
                        True,
                    )
                )
        for directory in sorted(self.home.glob("projects/*/adapters/*")):
            if directory not in known:
                subject = directory.relative_to(self.home).as_posix()
                problems.append(
                    Problem("orphan_files", subject, f"Nobody knows the files in {subject}.", True)
                )
        return problems

    def repair(self) -> list[str]:
        """Mend what `check` finds; returns what was done, a sentence each."""
        done = []
        for problem in self.check():
            if problem.kind == "dead_training":
                self.close_dead_trainings()
            elif problem.kind == "missing_files":
                project, _, version = problem.subject.partition("/")
                self.remove_adapter(project, version)
            elif problem.kind == "missing_version":
                self.activate_adapter(problem.subject, None)
            elif problem.kind == "orphan_files":
                _remove_tree(self.home / problem.subject)
            done.append(f"Mended: {problem.message}")
        return done


_PROJECTS = (
    "SELECT projects.*, (SELECT status FROM trainings WHERE project = projects.name ORDER BY number DESC LIMIT 1) "
    "AS status FROM projects"
)


def _project(row: sqlite3.Row) -> Project:
    return Project(
        name=row["name"],
        path=Path(row["path"]),
        status=TrainingStatus(row["status"] or TrainingStatus.NOT_STARTED),
        active=bool(row["active"]),
        active_adapter=row["active_adapter"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _start_time(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _is_alive(pid: int | None, started: float | None) -> bool:
    """Whether the process that was recorded still runs; a later one with the same number does not count."""
    if pid is None or started is None:
        return False
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < _START_TOLERANCE
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _remove_tree(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise RegistryError(
            f"The files in {directory} cannot be deleted ({error.strerror}).", next_step="Check their rights."
        ) from error
