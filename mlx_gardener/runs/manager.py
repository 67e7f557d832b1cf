"""TrainingPipeline: the way in; starts trainings in worker processes, watches them, and ends them.

In: projects by name, from any thread or process. Out: ids, progress and events, read from the registry and the run's
journal. What a run does is `mlx_gardener.runs.phases`'s; `mlx_gardener.api` holds the functions for scripts and
notebooks. Cost: one thread per training that was started here.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlx_gardener.adapter.base import model_place
from mlx_gardener.config import TrainingConfig, as_recorded, load_config
from mlx_gardener.errors import GardenerError, TrainingError, TrainingTimeoutError
from mlx_gardener.events import (
    Event,
    TrainingProgress,
)
from mlx_gardener.model.choose import absolute_model
from mlx_gardener.platform.files import existing_directory, expanded, resolved
from mlx_gardener.registry import (
    Project,
    ProjectRegistry,
    QueueEntry,
    TrainingRecord,
    TrainingStatus,
    patiently,
)
from mlx_gardener.registry.names import has_checkpoint
from mlx_gardener.runs.job import Job, Resume
from mlx_gardener.runs.journal import JOURNAL_NAME, follow_journal
from mlx_gardener.runs.parent import DECIDED_AT_START, MAY_CHANGE, decide_parent, without_forgotten
from mlx_gardener.runs.progress import ProgressCallback
from mlx_gardener.runs.queue_start import ensure_runner
from mlx_gardener.runs.ranks import check_hosts
from mlx_gardener.runs.watch import start_supervisor, until_the_end, watch

_POLL_SECONDS = 0.05


@dataclass
class _Watched:
    """A training that this pipeline started: its worker, and the thread that watches it."""

    training_id: str
    process: subprocess.Popen[bytes]
    thread: threading.Thread


class TrainingPipeline:
    """Starts trainings in worker processes, watches them, and ends them; safe to use from many threads.

    Args:
        config: settings of the trainings it starts; defaults, file-less, with the environment's when None.
        registry: where projects, trainings and adapters are recorded; the user's own when None.
    """

    def __init__(
        self, config: TrainingConfig | None = None, *, registry: ProjectRegistry | None = None
    ) -> None:
        self.use(config or load_config())
        self.registry = registry or ProjectRegistry()
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()

    def use(self, config: TrainingConfig) -> None:
        """Take ``config`` for the trainings started from now on; those under way keep theirs."""
        parallel = config.parallel
        if isinstance(parallel.hosts, str):  # a file; who reads it works elsewhere
            parallel = parallel.model_copy(update={"hosts": str(resolved(expanded(parallel.hosts)))})
        self.config = config.model_copy(update={"model": absolute_model(config.model), "parallel": parallel})

    def start_training(
        self,
        project_name: str,
        progress_callback: ProgressCallback | None = None,
        *,
        fresh: bool = False,
        queue_number: int | None = None,
    ) -> str:
        """Start training a registered project in the background, or go on with its unfinished training.

        Args:
            project_name: as registered (`ProjectRegistry.register_project`).
            progress_callback: called with every `TrainingProgress`, on a thread of its own.
            fresh: begin anew also where `unfinished_training` has one to go on with.
            queue_number: the entry of the queue that this does.

        Returns:
            The training's id, in well under 2 seconds.

        Raises:
            TrainingError: there is no such project, or it is being trained, in this process or any other.
            DataError: its repository is not where it was.
            ConfigError: the hosts that it is to train on cannot be.
        """
        earlier = None if fresh else self.unfinished_training(project_name)
        mode = Resume.NEVER if earlier is None else Resume.IF_SAME
        return self._start(
            project_name,
            progress_callback,
            resume_from=earlier,
            mode=mode,
            queue_number=queue_number,
            fresh=fresh,
        )

    def enqueue_training(self, project_name: str, *, priority: int = 0, fresh: bool = False) -> QueueEntry:
        """Put a registered project into the queue, with this pipeline's settings, and see that the queue is worked on.

        Args:
            priority: higher ones come first.
            fresh: begin anew also where `unfinished_training` has one to go on with.

        Raises:
            TrainingError: there is no such project, or it is in the queue already.
            ConfigError: the hosts that it is to train on cannot be.
        """
        check_hosts(self.config.parallel)
        entry = self.registry.queue.add(
            self._project(project_name).name,
            self.config.model_dump(mode="json"),
            budget_bytes=self.config.memory_limit_bytes,
            priority=priority,
            fresh=fresh,
        )
        ensure_runner(self.registry)
        return entry

    def unfinished_training(self, project_name: str) -> TrainingRecord | None:
        """The project's last training, if it did not come to its end, left a checkpoint, and has this pipeline's settings.

        Whether repository and base are still the same is seen by the worker, who says so and begins anew if not.

        Raises:
            TrainingError: there is no such project.
        """
        last = self.registry.latest_training(self._project(project_name).name)
        if last is None or last.status not in (TrainingStatus.FAILED, TrainingStatus.CANCELLED):
            return None
        if last.result.get("adapter_version"):
            return None  # cancelled while its adapter was measured
        if not has_checkpoint(last.run_dir):
            return None
        mine = self._settings(project_name)
        wish = mine[DECIDED_AT_START]
        is_asked = wish not in ("auto", "never") and not wish.startswith("auto:")
        if is_asked and last.config.get(DECIDED_AT_START) != decide_parent(self.registry, project_name, wish):
            return None  # it went on from another version, or from none
        compared = mine.keys() - MAY_CHANGE - {DECIDED_AT_START}
        theirs = {
            **as_recorded(last.config),
            "model": model_place(self.registry, str(last.config.get("model"))),
        }
        return last if all(theirs.get(key) == mine[key] for key in compared) else None

    def _settings(self, project: str) -> dict[str, Any]:
        """This pipeline's settings as JSON types, without what the project is to forget."""
        return without_forgotten(self.config, self.registry, project).model_dump(mode="json")

    def resume_training(self, project_name: str, progress_callback: ProgressCallback | None = None) -> str:
        """Go on with the project's last training where it stopped, with the settings it was started with.

        The time limit is this pipeline's: a run that ended by its limit gets a new one.

        Raises:
            TrainingError: nothing to resume, it is being trained, or its last training was completed.
        """
        last = self.registry.latest_training(self._project(project_name).name)
        if last is None:
            raise TrainingError(
                f"Project {project_name!r} has never been trained, so there is nothing to resume.",
                next_step=f"Start with `mlx-gardener train --project {project_name}`.",
            )
        if last.status is TrainingStatus.COMPLETED:
            raise TrainingError(
                f"The last training of {project_name!r} was completed, so there is nothing to resume.",
                next_step=f"Start a new one with `mlx-gardener train --project {project_name}`.",
            )
        return self._start(project_name, progress_callback, resume_from=last, mode=Resume.ALWAYS)

    def get_training_progress(self, project_name: str) -> TrainingProgress | None:
        """The last known progress of the project's latest training, also after its end; None if there was none.

        Raises:
            TrainingError: there is no such project.
        """
        record = self.registry.latest_training(self._project(project_name).name)
        return None if record is None else _progress_of_record(record)

    def get_training_error(self, project_name: str) -> GardenerError | None:
        """What ended the project's latest training early, as its worker raised it: `MemoryBudgetError`, `DataError`, ...

        None where it was completed, goes on, or there was none.

        Raises:
            TrainingError: there is no such project.
        """
        record = self.registry.latest_training(self._project(project_name).name)
        return None if record is None else record.error

    def is_training_active(self, project_name: str) -> bool:
        """Whether the project is being trained, by this process or any other.

        Raises:
            TrainingError: there is no such project.
        """
        return self._project(project_name).name in self.get_active_trainings()

    def get_active_trainings(self) -> dict[str, TrainingProgress]:
        """Progress of every training under way on this machine, by project."""
        return {record.project: _progress_of_record(record) for record in self.registry.active_trainings()}

    def cancel_training(self, project_name: str) -> bool:
        """Ask the project's training to stop; it does within about one segment of a step and keeps a checkpoint.

        One that waits in the queue is taken out of it.

        Returns:
            Whether there was one to stop. `wait_for_training_completion` waits for it to have stopped.

        Raises:
            TrainingError: there is no such project.
        """
        project = self._project(project_name).name
        waited = self.registry.queue.remove_waiting(project)
        record = self.registry.latest_training(project)
        if record is None or not self.is_training_active(project_name):
            return waited
        self.registry.request_cancel(record.id)
        return True

    def wait_for_training_completion(
        self, project_name: str, timeout: float | None = None
    ) -> TrainingProgress:
        """Wait until the project's training has ended, however it ends, and return its last progress.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            TrainingTimeoutError: it had not ended by then; it goes on.
            TrainingError: there is no such project, or it was never trained.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            active = self.is_training_active(project_name)
            watched = self._watched.get(project_name)
            if not active and (watched is None or not watched.thread.is_alive()):
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise TrainingTimeoutError(
                    f"The training of {project_name!r} had not ended after {timeout:g} seconds; it goes on.",
                    next_step="Wait longer, or stop it with cancel_training.",
                )
            time.sleep(_POLL_SECONDS)
        progress = self.get_training_progress(project_name)
        if progress is None:
            raise TrainingError(f"Project {project_name!r} has never been trained.")
        return progress

    @contextmanager
    def training_context(self, project_name: str) -> Iterator[str]:
        """``with pipeline.training_context("web") as training_id:`` trains for as long as the block runs.

        A training still under way when the block ends is cancelled, and has stopped when the statement is left.
        """
        training_id = self.start_training(project_name)
        try:
            yield training_id
        finally:
            self.cancel_training(project_name)
            self.wait_for_training_completion(project_name)

    def follow(self, project_name: str, *, from_now: bool = False) -> Iterator[Event]:
        """The events of the project's latest training, as they happen, until it has ended.

        Args:
            from_now: leave out what happened before the call.

        Raises:
            TrainingError: there is no such project, or it was never trained.
        """
        record = self.registry.latest_training(self._project(project_name).name)
        if record is None:
            raise TrainingError(
                f"Project {project_name!r} has never been trained.",
                next_step=f"Start with `mlx-gardener train --project {project_name}`.",
            )
        journal = record.run_dir / JOURNAL_NAME
        offset = journal.stat().st_size if from_now else Job.read(record.run_dir).journal_offset

        def is_over() -> bool:
            watched = self._watched.get(project_name)
            if watched is not None and watched.training_id == record.id:
                return not watched.thread.is_alive()
            return all(active.id != record.id for active in self.registry.active_trainings())

        return until_the_end(self.registry, record, follow_journal(journal, offset=offset, is_over=is_over))

    def _project(self, name: str) -> Project:
        try:
            return self.registry.get_project(name)
        except GardenerError as error:
            raise TrainingError(error.message, next_step=error.next_step) from error

    def _start(
        self,
        name: str,
        callback: ProgressCallback | None,
        *,
        resume_from: TrainingRecord | None,
        mode: Resume,
        queue_number: int | None = None,
        fresh: bool = False,
    ) -> str:
        project = self._project(name)
        existing_directory(project.path)
        check_hosts(self.config.parallel)
        config = self._settings(name)
        config[DECIDED_AT_START] = (
            "never" if fresh else decide_parent(self.registry, name, config[DECIDED_AT_START])
        )
        if resume_from is not None:
            new = MAY_CHANGE if mode is Resume.IF_SAME else {"training_timeout_minutes"}
            if self.config.parallel.is_wanted:
                new = new | {"parallel"}
            config = {**as_recorded(resume_from.config), **{key: config[key] for key in new}}
        config["model"] = model_place(self.registry, config["model"])
        record = self.registry.begin_training(
            project.name,
            config,
            run_dir=None if resume_from is None else resume_from.run_dir,
            queue_number=queue_number,
        )
        try:
            journal = record.run_dir / JOURNAL_NAME
            offset = journal.stat().st_size if journal.exists() else 0
            Job(record.id, project.name, config, mode, offset).write(record.run_dir)
            process = start_supervisor(record, self.registry.home)
            # Before this process may end: the supervisor itself claims only after its imports.
            patiently(self.registry.claim_training, record.id, process.pid)
        except OSError as error:
            message = f"The worker of {name!r} could not be started: {error.strerror or error}."
            self.registry.finish_training(record.id, TrainingStatus.FAILED, message, {})
            raise TrainingError(message, next_step="Free disk space or memory and start again.") from error
        thread = threading.Thread(
            target=watch,
            args=(self.registry, record, process, offset, callback),
            name=f"watch-{name}",
            daemon=True,
        )
        with self._lock:
            self._watched[project.name] = _Watched(record.id, process, thread)
        thread.start()
        return record.id


def completed_training(pipeline: TrainingPipeline, project_name: str) -> TrainingRecord:
    """Wait for the project's latest training, and return its record, whose ``result`` names the adapter's version.

    Raises:
        GardenerError: what ended it early, as its worker raised it.
        TrainingError: the project is unknown or was never trained.
    """
    pipeline.wait_for_training_completion(project_name)
    if (error := pipeline.get_training_error(project_name)) is not None:
        raise error
    record = pipeline.registry.latest_training(project_name)
    if record is None or record.status is not TrainingStatus.COMPLETED:  # another one has begun meanwhile
        raise TrainingError(
            f"The training of {project_name!r} is not completed.", next_step="Wait for it again."
        )
    return record


def _progress_of_record(record: TrainingRecord) -> TrainingProgress:
    return TrainingProgress(
        record.phase, record.percent, record.message, dict(record.details), timestamp=record.updated_at
    )
