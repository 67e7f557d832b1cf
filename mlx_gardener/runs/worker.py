"""The process a run lives in: ``python -m mlx_gardener.runs.worker RUN_DIR SUPERVISOR_PID``, started by `runs.supervisor`.

In: ``job.json`` in the run's directory. Out: events in the run's journal, progress in the registry, checkpoints, and in
the end an adapter. A process of its own, so that an abort in the backend or the kernel's out-of-memory killer ends the
worker and not the notebook, service or terminal that asked for it. It holds a lock on the run's directory for as long
as it lives, so that no two workers ever write there, and ends with its supervisor, whenever that died: from then on
the training counts as dead, and another one may begin.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_gardener.config import TrainingConfig, validate_config
from mlx_gardener.errors import (
    GardenerError,
    RankLostError,
    TimeLimitError,
    TrainingCancelledError,
    TrainingError,
    TrainingInterruptedError,
)
from mlx_gardener.events import Event, EventBus, TrainingEnded, TrainingPhase
from mlx_gardener.platform.ending import end_process
from mlx_gardener.platform.gpu_watchdog import says_gpu_watchdog
from mlx_gardener.platform.lean_imports import import_lean
from mlx_gardener.platform.locks import take_lock
from mlx_gardener.platform.out_of_memory import says_out_of_memory
from mlx_gardener.platform.priority import lower_priority
from mlx_gardener.registry import INTERRUPTED, ProjectRegistry, TrainingStatus, patiently
from mlx_gardener.registry.names import RUN_LOCK_NAME, has_checkpoint, what_is_kept
from mlx_gardener.registry.records import ERROR, LEFT_NOTHING
from mlx_gardener.runs.context import Run
from mlx_gardener.runs.interrupt import Interrupt
from mlx_gardener.runs.job import LOG_NAME, LOST_EXIT_CODE, Job
from mlx_gardener.runs.journal import JOURNAL_NAME, JournalWriter
from mlx_gardener.runs.phases import run_training
from mlx_gardener.runs.progress import TrainingProgressTracker
from mlx_gardener.runs.ranks import CONNECT_SECONDS, launched_rank
from mlx_gardener.runs.result import RunResult

logger = logging.getLogger(__name__)

LOCK_NAME = RUN_LOCK_NAME
_SUPERVISOR_GONE = "The process that watched over the training is gone."
_LOGGED_RESULT = ("adapter_version", "unchanged_since", "cancelled_late", INTERRUPTED)
#: How long a worker waits for an earlier one in the same directory, which may be writing its last checkpoint.
LOCK_WAIT_SECONDS = 120.0


def work(
    run_dir: Path, registry: ProjectRegistry, supervisor: int, *, must_end: Callable[[], str | None]
) -> TrainingPhase:
    """Do the job in ``run_dir`` to its end, whatever that is, and say so in the registry and the journal.

    Args:
        supervisor: the process id of the parent that watches over the training.
        must_end: see `Interrupt`.

    Returns:
        The final phase: COMPLETED, CANCELLED or FAILED.

    Raises:
        TrainingError: the job cannot be read, another worker holds the directory, or the supervisor is gone already.
        RegistryError: the registry cannot be written.
        RankLostError: another rank is gone, and the supervisor starts them all again.
        MemoryError: memory ran out where no smaller plan could be taken; a new worker may have more luck.
        RuntimeError: macOS's GPU watchdog ended the work, and the supervisor starts a gentler worker.
    """
    with only_worker(run_dir):
        job = Job.read(run_dir)
        # Asked after reading: where the supervisor is gone, the job may be the next training's by now.
        if os.getppid() != supervisor:
            raise TrainingError(_SUPERVISOR_GONE, next_step="Train again.")
        return _work(job, run_dir, registry, must_end)


@contextmanager
def only_worker(run_dir: Path, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """The right to write in ``run_dir``; the system takes it back from a process that dies.

    Raises:
        TrainingError: another worker kept it for all of ``wait_seconds``.
    """
    lock = take_lock(run_dir / LOCK_NAME, make=True, wait_seconds=wait_seconds)
    if lock is None:
        raise TrainingError(
            f"Another worker still writes in {run_dir.name}.",
            next_step="Wait until it has stopped, or end it, then train again.",
        )
    try:
        yield
    finally:
        os.close(lock)


def _work(
    job: Job, run_dir: Path, registry: ProjectRegistry, must_end: Callable[[], str | None]
) -> TrainingPhase:
    bus = EventBus()
    bus.subscribe(JournalWriter(run_dir / JOURNAL_NAME), name="journal", capacity=100_000)
    bus.subscribe(_log_event, name="log")
    # Not 0 where an earlier worker died.
    percent = patiently(registry.get_training, job.training_id).percent
    tracker = TrainingProgressTracker(registry, job.training_id, bus=bus, percent=percent)
    interrupt: Interrupt | None = None
    result: dict[str, Any] = {}
    try:
        config = validate_config(job.config)
        interrupt = Interrupt(
            registry,
            job.training_id,
            config.training_timeout_minutes,
            seconds_used=job.seconds_used,
            must_end=must_end,
        )
        tracker.start_heartbeat(config.progress_update_interval, _memory_now)
        made = _run(job, config, run_dir, registry, bus, tracker, interrupt)
        result = made.to_json()
        phase, status, message = TrainingPhase.COMPLETED, TrainingStatus.COMPLETED, "Done"
        if made.unchanged_since is not None:
            message = f"Neither files nor settings have changed since {made.unchanged_since}, so nothing was trained"
        if made.cancelled_late:
            phase, status = TrainingPhase.CANCELLED, TrainingStatus.CANCELLED
            message = (
                f"Cancelled while the adapter was measured: {made.adapter_version} is registered with the evidence "
                f"there is. `mlx-gardener eval {job.project}` measures it whole."
            )
    except RankLostError as error:
        if config.parallel.is_wanted:
            raise
        result = {INTERRUPTED: True, **_told(error, run_dir)}
        phase, status, message = TrainingPhase.FAILED, TrainingStatus.FAILED, error.in_terminal
    except TrainingCancelledError as error:
        result = _told(error, run_dir)
        phase, status, message = TrainingPhase.CANCELLED, TrainingStatus.CANCELLED, error.in_terminal
    except TrainingInterruptedError as error:
        result = {INTERRUPTED: True, **_told(error, run_dir)}
        phase, status, message = TrainingPhase.FAILED, TrainingStatus.FAILED, error.in_terminal
    except GardenerError as error:
        # Of what another library or the system said, with where; the rest says all in its sentence.
        logger.error("the training failed: %s", error.in_terminal, exc_info=error.__cause__ is not None)
        result = _told(error, run_dir)
        phase, status, message = TrainingPhase.FAILED, TrainingStatus.FAILED, error.in_terminal
    except Exception as error:  # the last place where a run's defect can be told to the people watching it
        if says_out_of_memory(f"{type(error).__name__}: {error}"):
            raise MemoryError(str(error)) from error  # not a defect: the supervisor tries again with less
        if says_gpu_watchdog(str(error)):
            raise  # nor this one: the supervisor starts a worker that macOS is more patient with
        logger.exception("the training failed unexpectedly")
        message = f"{type(error).__name__}: {error} (see {LOG_NAME} in the run's directory)"
        result = _told(TrainingError(message), run_dir)
        phase, status = TrainingPhase.FAILED, TrainingStatus.FAILED
    finally:
        tracker.stop_heartbeat()
        if interrupt is not None:
            interrupt.close()
    tracker.update_progress(phase, 100.0, message)
    if patiently(registry.finish_training, job.training_id, status, message, result):
        bus.publish(TrainingEnded(phase, message, result))
    else:  # who took it for dead has said its end, and the journal may be the next training's by now
        logger.warning("the training was closed by others before: %s", message)
    bus.close(timeout_seconds=60.0)
    return phase


def _told(error: GardenerError, run_dir: Path) -> dict[str, Any]:
    """What a run's result says of the error that ended it: its class and fields, and whether it left nothing behind.

    Where it was stopped, and did not fail by itself, its next step says what of it is kept.
    """
    if isinstance(error, TrainingCancelledError | TrainingInterruptedError | TimeLimitError):
        error.next_step = f"{what_is_kept(run_dir)} {error.next_step}".strip()
    return {ERROR: error.to_json(), LEFT_NOTHING: not has_checkpoint(run_dir)}


def _run(
    job: Job,
    config: TrainingConfig,
    run_dir: Path,
    registry: ProjectRegistry,
    bus: EventBus,
    tracker: TrainingProgressTracker,
    interrupt: Interrupt,
) -> RunResult:
    if config.throttling.low_priority:
        logger.info("priority: %s", lower_priority())
    from mlx_gardener.training.parallel import Ranks

    launched = launched_rank(os.environ)
    ranks = Ranks() if launched is None else Ranks.connect(launched[1], CONNECT_SECONDS)
    run = Run(
        training_id=job.training_id,
        project=patiently(registry.get_project, job.project),
        config=config,
        directory=run_dir,
        resume=job.resume,
        smaller_plan=job.smaller_plan,
        registry=registry,
        bus=bus,
        tracker=tracker,
        interrupt=interrupt,
        ranks=ranks,
        clock=interrupt.clock,
        clock_stands=interrupt.clock_stands,
    )
    try:
        return run_training(run)
    except BaseException as error:
        ranks.leave(error)
        raise


def _memory_now() -> dict[str, Any]:
    from mlx_gardener.platform.footprint import process_footprint_bytes

    return {"memory_bytes": process_footprint_bytes()}


def _log_event(event: Event) -> None:
    told = event.to_json()
    if isinstance(event, TrainingEnded):  # its evidence quotes source, which is the journal's alone
        told["result"] = {key: event.result[key] for key in _LOGGED_RESULT if key in event.result}
    logger.info("%s", json.dumps(told, ensure_ascii=True))


def main() -> None:
    """Entry point of the worker process; exit code 0 when completed or cancelled, 1 when failed."""
    import_lean()
    os.umask(0o077)  # whatever a library writes here belongs to the owner alone
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    # By its number, and not whoever is the parent now: it may have died while this process was still importing.
    run_dir, supervisor = Path(sys.argv[1]), int(sys.argv[2])

    def must_end() -> str | None:
        if asked:
            return "The system asked the training to end."
        if os.getppid() != supervisor:
            return _SUPERVISOR_GONE
        return None

    try:
        phase = work(run_dir, ProjectRegistry(), supervisor, must_end=must_end)
        code = 1 if phase is TrainingPhase.FAILED else 0
    except RankLostError as error:
        logger.error("%s", error)
        code = LOST_EXIT_CODE
    except TrainingError as error:  # nothing was begun
        logger.error("%s", error)
        code = 1
    end_process(code)


if __name__ == "__main__":
    main()
