"""TrainingPipeline: a repository in, a registered adapter out.

The first half is the run itself, as it happens inside the worker process: `run_training` and its five phases, in
order, by name; every part it calls lives in a room of its own. The second half is the way in: `TrainingPipeline`
starts, watches and ends workers. `mlx_gardener.api` holds the functions for scripts and notebooks.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.errors import GardenerError, TrainingError, TrainingTimeoutError
from mlx_gardener.events import (
    PHASE_PERCENT,
    DataPrepared,
    Event,
    EventBus,
    PlanChosen,
    ProgressChanged,
    StepAdvanced,
    StepCompleted,
    TrainingEnded,
    TrainingPhase,
    TrainingProgress,
    WarningRaised,
)
from mlx_gardener.journal import JOURNAL_NAME, JournalWriter, follow_journal, read_journal
from mlx_gardener.progress import ProgressCallback, TrainingProgressTracker, progress_of
from mlx_gardener.registry import Project, ProjectRegistry, TrainingRecord, TrainingStatus
from mlx_gardener.worker import LOG_NAME, Job

if TYPE_CHECKING:
    from mlx_gardener.adapter import StagedAdapter
    from mlx_gardener.dataset import PreparedData
    from mlx_gardener.engine import Engine
    from mlx_gardener.evaluate import Evidence
    from mlx_gardener.model import BaseModel, ModelChoice
    from mlx_gardener.training import TrainOutcome

logger = logging.getLogger(__name__)


# The run, inside the worker.


@dataclass(frozen=True)
class Run:
    """One training under way: what it works on, and whom it tells."""

    training_id: str
    project: Project
    config: TrainingConfig
    directory: Path
    resume: bool
    registry: ProjectRegistry
    bus: EventBus
    tracker: TrainingProgressTracker
    interrupt: Callable[[], None]

    def tell(self, phase: TrainingPhase, share: float, message: str, **details: Any) -> None:
        """Progress within a phase; ``share`` of it is done, 0 to 1."""
        low, high = PHASE_PERCENT[phase]
        self.tracker.update_progress(phase, low + (high - low) * share, message, details or None)

    def publish(self, event: Event) -> None:
        """Hand an event of the training loop on; a step also moves the progress."""
        self.bus.publish(event)
        if isinstance(event, StepCompleted):
            message = f"Step {event.step} of {event.total_steps}, loss {event.loss:.3f}"
            details = {
                name: getattr(event, name)
                for name in ("step", "total_steps", "loss", "tokens_per_second", "memory_bytes", "peak_bytes")
            }
            details |= {"budget_bytes": event.budget_bytes, "eta_seconds": event.eta_seconds}
            self.tell(TrainingPhase.TRAINING, event.step / max(1, event.total_steps), message, **details)
        elif isinstance(event, StepAdvanced):
            done = event.step - 1 + event.share if event.activity == "Step" else event.step
            message = f"{event.activity} {event.step} of {event.total_steps}, {event.share:.0%} of it done"
            details = {"step": event.step, "total_steps": event.total_steps, "share": event.share}
            self.tell(TrainingPhase.TRAINING, done / max(1, event.total_steps), message, **details)


def run_training(run: Run) -> dict[str, Any]:
    """A whole run, phase by phase.

    Returns:
        What the run left behind: ``adapter_version``, ``metrics`` and ``evidence``, as JSON types.

    Raises:
        GardenerError: whatever ended the run early; a checkpoint of the last update is kept.
    """
    choice = _initialize(run)
    data = _prepare_data(run, choice)
    base, engine = _start_training(run, choice)
    outcome = _train(run, base, data, engine)
    return _complete(run, base, data, engine, outcome)


def _initialize(run: Run) -> ModelChoice:
    """INITIALIZING: which base model, and why."""
    from mlx_gardener.model import choose_model

    run.tell(TrainingPhase.INITIALIZING, 0.0, "Choosing the base model")
    choice = choose_model(run.config.model, run.config.memory_limit_bytes)
    run.tell(
        TrainingPhase.INITIALIZING, 1.0, f"Base model: {choice.name} ({choice.reason})", model=choice.name
    )
    run.interrupt()
    return choice


def _prepare_data(run: Run, choice: ModelChoice) -> PreparedData:
    """PREPARING_DATA: repository to chunks to token rows."""
    from mlx_gardener.dataset import TrainingDataPreparator
    from mlx_gardener.model import load_tokenizer, resolve_model

    def on_progress(share: float, message: str) -> None:
        run.tell(TrainingPhase.PREPARING_DATA, share, message)

    run.tell(TrainingPhase.PREPARING_DATA, 0.0, "Reading the repository")
    preparator = TrainingDataPreparator(
        run.config,
        tokenizer=load_tokenizer(resolve_model(choice)),
        cache_dir=run.registry.home / "cache" / "tokens",
        on_progress=on_progress,
        interrupt=run.interrupt,
    )
    data = preparator.prepare(run.project.path)
    run.publish(DataPrepared(data.summary))
    return data


def _start_training(run: Run, choice: ModelChoice) -> tuple[BaseModel, Engine]:
    """STARTING_TRAINING: how the budget is used, then the base model, as far as it fits, and the engine for it."""
    from mlx_gardener.engine import make_plan, measured_backend, model_facts, prepare_engine
    from mlx_gardener.model import load_base, resolve_model

    config = run.config
    run.tell(TrainingPhase.STARTING_TRAINING, 0.0, "Planning memory")
    facts = model_facts(resolve_model(choice))
    backend = measured_backend(run.registry.home / "cache")
    plan = make_plan(facts, config, config.memory_limit_bytes, backend)
    run.publish(PlanChosen(plan.to_json()))
    run.interrupt()
    run.tell(TrainingPhase.STARTING_TRAINING, 0.3, f"Loading {choice.name}")
    base = load_base(
        choice.name,
        compute_dtype=config.engine.compute_dtype,
        base_weights=plan.base_weights,
        unread_layers=plan.streamed_layers,
        unread_words=plan.words_on_disk,
    )
    run.tell(TrainingPhase.STARTING_TRAINING, 0.8, f"Checking how {choice.name} is cut into segments")
    engine = prepare_engine(
        base,
        plan,
        config,
        facts=facts,
        backend=backend,
        warn=lambda message: run.publish(WarningRaised(message)),
    )
    if engine.plan is not plan:
        run.publish(PlanChosen(engine.plan.to_json()))
    run.tell(TrainingPhase.STARTING_TRAINING, 1.0, f"Loaded {choice.name}")
    run.interrupt()
    return base, engine


def _train(run: Run, base: BaseModel, data: PreparedData, engine: Engine) -> TrainOutcome:
    """TRAINING: updates until the epochs are over or validation stops improving."""
    import mlx.core as mx

    from mlx_gardener.engine import learn_work
    from mlx_gardener.training import train as train_adapter

    run.tell(TrainingPhase.TRAINING, 0.0, "Training")
    plan = engine.plan
    mx.reset_peak_memory()
    outcome = train_adapter(
        base,
        data,
        run.config,
        engine,
        publish=run.publish,
        interrupt=run.interrupt,
        checkpoint_dir=run.directory / "checkpoints",
        resume=run.resume,
    )
    if engine.plan is plan:  # it never had to be made smaller
        parts = plan.predicted_parts
        other = parts["weights"] + parts["adapter"] + parts["saved"]
        learn_work(
            run.registry.home / "cache",
            predicted_bytes=parts["work"],
            measured_bytes=mx.get_peak_memory() - other,
        )
    return outcome


def _complete(
    run: Run, base: BaseModel, data: PreparedData, engine: Engine, outcome: TrainOutcome
) -> dict[str, Any]:
    """COMPLETING: write the adapter, measure what was written, register it."""
    from mlx_gardener.adapter import PeftManager

    run.tell(TrainingPhase.COMPLETING, 0.0, "Writing the adapter")
    with PeftManager(run.registry).stage_adapter(
        run.project.name, outcome.weights, base=base, settings=outcome.settings
    ) as staged:
        evidence = _measure(run, base, staged, data, engine)
        return _register(run, base, staged, data, engine, outcome, evidence)


def _measure(
    run: Run, base: BaseModel, staged: StagedAdapter, data: PreparedData, engine: Engine
) -> Evidence:
    """Base against adapter on the test part, with the adapter read back from its files."""
    from mlx_gardener.evaluate import compare

    def on_progress(share: float, message: str) -> None:
        run.tell(TrainingPhase.COMPLETING, 0.1 + 0.8 * share, message)

    return compare(
        base,
        staged.load(),
        data,
        run.config,
        engine,
        on_progress=on_progress,
        interrupt=run.interrupt,
    )


def _register(
    run: Run,
    base: BaseModel,
    staged: StagedAdapter,
    data: PreparedData,
    engine: Engine,
    outcome: TrainOutcome,
    evidence: Evidence,
) -> dict[str, Any]:
    """Manifest, model card and report beside the weights, all renamed into place at once."""
    from mlx_gardener.adapter import ManifestDetails
    from mlx_gardener.report import render_model_card, render_report_html

    run.tell(TrainingPhase.COMPLETING, 0.95, "Registering the adapter")
    details = ManifestDetails(
        config=run.config.model_dump(mode="json"),
        data=data.describe(),
        metrics=evidence.metrics,
        evidence=evidence.to_json(),
        training=outcome.to_json(),
        plan=engine.plan.to_json(),
    )
    facts = {
        "project": run.project.name,
        "version": staged.version,
        "base_model": base.id,
        **details.to_json(),
    }
    shown = facts | {"evidence": evidence.to_json(with_source=True)}
    events, _ = read_journal(run.directory / JOURNAL_NAME)
    record = staged.commit(
        details,
        model_card=render_model_card(facts),
        extra_files={"report.html": render_report_html(shown, events=events).encode()},
        activate=evidence.verdict != "reject",
    )
    return {
        "adapter_version": record.version,
        "metrics": dict(evidence.metrics),
        "evidence": evidence.to_json(with_source=True),
        "training": outcome.to_json(),
    }


# The way in: start, watch, end.

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
        self.config = config or load_config()
        self.registry = registry or ProjectRegistry()
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()

    def start_training(self, project_name: str, progress_callback: ProgressCallback | None = None) -> str:
        """Start training a registered project in the background.

        Args:
            project_name: as registered (`ProjectRegistry.register_project`).
            progress_callback: called with every `TrainingProgress`, on a thread of its own.

        Returns:
            The training's id, in well under 2 seconds.

        Raises:
            TrainingError: there is no such project, or it is being trained, in this process or any other.
        """
        return self._start(project_name, progress_callback, resume_from=None)

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
                next_step="Start with `mlx-gardener train`.",
            )
        if last.status is TrainingStatus.COMPLETED:
            raise TrainingError(
                f"The last training of {project_name!r} was completed, so there is nothing to resume.",
                next_step="Start a new one without --resume.",
            )
        return self._start(project_name, progress_callback, resume_from=last)

    def get_training_progress(self, project_name: str) -> TrainingProgress | None:
        """The last known progress of the project's latest training, also after its end; None if there was none.

        Raises:
            TrainingError: there is no such project.
        """
        record = self.registry.latest_training(self._project(project_name).name)
        return None if record is None else _progress_of_record(record)

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

        Returns:
            Whether there was one to stop. `wait_for_training_completion` waits for it to have stopped.

        Raises:
            TrainingError: there is no such project.
        """
        record = self.registry.latest_training(self._project(project_name).name)
        if record is None or not self.is_training_active(project_name):
            return False
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
                next_step="Start with `mlx-gardener train`.",
            )
        journal = record.run_dir / JOURNAL_NAME
        offset = journal.stat().st_size if from_now else Job.read(record.run_dir).journal_offset

        def is_over() -> bool:
            watched = self._watched.get(project_name)
            if watched is not None and watched.training_id == record.id:
                return not watched.thread.is_alive()
            return all(active.id != record.id for active in self.registry.active_trainings())

        return follow_journal(journal, offset=offset, is_over=is_over)

    def _project(self, name: str) -> Project:
        try:
            return self.registry.get_project(name)
        except GardenerError as error:
            raise TrainingError(error.message, next_step=error.next_step) from error

    def _start(
        self, name: str, callback: ProgressCallback | None, *, resume_from: TrainingRecord | None
    ) -> str:
        project = self._project(name)
        config = self.config.model_dump(mode="json")
        if resume_from is not None:
            limit = config["training_timeout_minutes"]
            config = {**resume_from.config, "training_timeout_minutes": limit}
        record = self.registry.begin_training(
            project.name, config, run_dir=None if resume_from is None else resume_from.run_dir
        )
        try:
            journal = record.run_dir / JOURNAL_NAME
            offset = journal.stat().st_size if journal.exists() else 0
            Job(record.id, project.name, config, resume_from is not None, offset).write(record.run_dir)
            process = self._spawn(record)
            # Before this process may end: the worker itself claims only after its imports.
            self.registry.claim_training(record.id, process.pid)
        except OSError as error:
            message = f"The worker of {name!r} could not be started: {error.strerror or error}."
            self.registry.finish_training(record.id, TrainingStatus.FAILED, message, {})
            raise TrainingError(message, next_step="Free disk space or memory and start again.") from error
        thread = threading.Thread(
            target=self._watch, args=(record, process, offset, callback), name=f"watch-{name}", daemon=True
        )
        with self._lock:
            self._watched[project.name] = _Watched(record.id, process, thread)
        thread.start()
        return record.id

    def _spawn(self, record: TrainingRecord) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "MLX_GARDENER_HOME": str(self.registry.home)}
        with (record.run_dir / LOG_NAME).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "mlx_gardener.worker", str(record.run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # a closed terminal or Ctrl-C ends the watching, not the run
            )

    def _watch(
        self,
        record: TrainingRecord,
        process: subprocess.Popen[bytes],
        offset: int,
        callback: ProgressCallback | None,
    ) -> None:
        """Pass a worker's progress on, and settle its record if it died without a word."""
        bus = EventBus()
        if callback is not None:

            def deliver(event: Event) -> None:
                if isinstance(event, ProgressChanged):
                    callback(progress_of(event))

            bus.subscribe(deliver, name="progress callback")
        ended = False
        events = follow_journal(
            record.run_dir / JOURNAL_NAME, offset=offset, is_over=lambda: process.poll() is not None
        )
        for event in events:
            ended = ended or isinstance(event, TrainingEnded)
            bus.publish(event)
        if not ended:
            for event in self._bury(record, process.returncode):
                bus.publish(event)
        bus.close()

    def _bury(self, record: TrainingRecord, code: int) -> list[Event]:
        """Record the death of a worker that could not say why it died."""
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        message = (
            f"The worker process {how} before it could say why (see {LOG_NAME} in {record.run_dir.name}). "
            "Its last checkpoint is kept: go on with `mlx-gardener train --resume`."
        )
        logger.error("training %s: %s", record.id, message)
        known = self.registry.latest_training(record.project)
        percent = known.percent if known is not None and known.id == record.id else 0.0
        self.registry.explain_death(record.id, message)
        events: list[Event] = [
            ProgressChanged(TrainingPhase.FAILED, percent, message),
            TrainingEnded(TrainingPhase.FAILED, message),
        ]
        writer = JournalWriter(record.run_dir / JOURNAL_NAME)
        for event in events:
            writer(event)
        writer.close()
        return events


def _progress_of_record(record: TrainingRecord) -> TrainingProgress:
    return TrainingProgress(
        record.phase, record.percent, record.message, dict(record.details), timestamp=record.updated_at
    )
