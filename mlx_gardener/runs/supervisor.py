"""The process over a worker: ``python -m mlx_gardener.runs.supervisor RUN_DIR``; says why it died and starts it again.

In: ``job.json`` in the run's directory. Out: a worker process; a word in journal and registry for one that could say none
itself. It is small, belongs to no terminal and outlives whoever asked for the training; registry rows carry its process
id. A worker is started again from its last checkpoint at most three times, and only once where it died
without a new checkpoint. Where macOS's GPU watchdog ended it, the next one's work is in shorter pieces
(`platform.gpu_watchdog`). Where this process dies itself, the worker stops with a checkpoint. The other ranks of a
training in parallel (`mlx_gardener.runs.ranks`) start and end with its worker.
Cost: a Python process that sleeps, about 30 MB, and a tenth of a second at the start of a training.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.errors import GardenerError
from mlx_gardener.events import Event, ProgressChanged, TrainingEnded, WarningRaised
from mlx_gardener.platform.gpu_watchdog import gentler_variables, says_gpu_watchdog
from mlx_gardener.platform.out_of_memory import out_of_memory_kills, says_out_of_memory
from mlx_gardener.platform.processes import how_it_ended, module_command
from mlx_gardener.registry import ProjectRegistry, TrainingStatus, patiently
from mlx_gardener.registry.names import CHECKPOINTS_NAME, what_is_kept
from mlx_gardener.runs.job import LOG_NAME, LOST_EXIT_CODE, Job, Resume
from mlx_gardener.runs.journal import JOURNAL_NAME, JournalWriter
from mlx_gardener.runs.ranks import Group, launched_rank

if TYPE_CHECKING:
    from mlx_gardener.config import ParallelConfig

logger = logging.getLogger(__name__)

#: How often a worker is started again. Whatever ends it once more is cured by no further one, and takes the machine from its owner;
#: the same command goes on from the checkpoint (judgement).
_RESTARTS = 3
#: A second death in a row without a new checkpoint in between ends the run: the third would be no other.
_DEATHS_WITHOUT_PROGRESS = 2
_LOG_TAIL_BYTES = 4000
_WHILE_DARK = 'With `--set \'throttling.pause_on=["memory-pressure", "display"]\'` it trains only while the display is off. '


def supervise(run_dir: Path, registry: ProjectRegistry) -> TrainingStatus:
    """Keep a worker on the job in ``run_dir`` until the training has ended; returns how.

    Raises:
        TrainingError: the job cannot be read.
        RegistryError: the registry cannot be used.
    """
    job = Job.read(run_dir)
    parallel = _parallel(job)
    restarts_left = _RESTARTS
    if launched_rank(os.environ) is not None:
        restarts_left = 0  # mlx.launch has ended the other ranks by now
    deaths_without_progress = 0
    asked_to_end: list[int] = []
    gentler: dict[str, str] | None = None
    while True:
        checkpoints, log_at, kills = _checkpoints(run_dir), _log_size(run_dir), out_of_memory_kills()
        started = time.monotonic()
        try:
            code, lost = _run_ranks(run_dir, parallel, asked_to_end, gentler or {})
        except GardenerError as error:  # the other ranks cannot be had
            told = f"{error.in_terminal} {what_is_kept(run_dir)}"
            bury(registry, job.training_id, told, interrupted=True, error=error)
            return TrainingStatus.FAILED
        record = patiently(registry.get_training, job.training_id)
        if record.finished_at is not None:
            return record.status
        log = _log_since(run_dir, log_at)
        out_of_memory = out_of_memory_kills() > kills and code == -signal.SIGKILL
        out_of_memory = out_of_memory or says_out_of_memory(log)
        watchdog = says_gpu_watchdog(log)
        out_of_memory = out_of_memory and not watchdog
        why = lost or describe_death(code, out_of_memory=out_of_memory, gpu_watchdog=watchdog)
        logger.error("training %s: %s", job.training_id, why)
        progress = _checkpoints(run_dir) != checkpoints
        is_new_cure = watchdog and gentler is None
        deaths_without_progress = 0 if progress or is_new_cure else deaths_without_progress + 1
        if patiently(registry.cancel_requested, job.training_id):
            bury(
                registry,
                job.training_id,
                f"The training was cancelled; {why[0].lower()}{why[1:]}",
                cancelled=True,
            )
            return TrainingStatus.CANCELLED
        if asked_to_end or not restarts_left or deaths_without_progress >= _DEATHS_WITHOUT_PROGRESS:
            bury(
                registry,
                job.training_id,
                f"{why} (see `mlx-gardener logs {job.project}`). {_WHILE_DARK if watchdog else ''}{what_is_kept(run_dir)}",
                interrupted=bool(asked_to_end),
            )
            return TrainingStatus.FAILED
        restarts_left -= 1
        job = replace(
            job,
            resume=Resume.ALWAYS,
            seconds_used=job.seconds_used + time.monotonic() - started,
            smaller_plan=out_of_memory or (watchdog and not is_new_cure),
        )
        job.write(run_dir)
        next_one = _plan_for_next(run_dir, job.smaller_plan, "The group goes" if lost else "Another one goes")
        if is_new_cure:
            gentler = gentler_variables(os.environ)
            settings = ", ".join(f"{name}={value}" for name, value in gentler.items())
            next_one += f" It has {settings}: the screen may be less smooth." if gentler else ""
        _tell(run_dir, [WarningRaised(f"{why}. {next_one}")])


def describe_death(code: int, *, out_of_memory: bool, gpu_watchdog: bool = False) -> str:
    """How a process ended that could not say it itself, as the beginning of a sentence.

    Args:
        code: as `subprocess.Popen.returncode`: the negative number of a signal, or an exit code.
        out_of_memory: whether the kernel or the process's log says that memory ran out.
        gpu_watchdog: whether the log says that macOS ended its work on the GPU.
    """
    how = how_it_ended(code, out_of_memory=out_of_memory, gpu_watchdog=gpu_watchdog)
    return f"The worker process {how}"


def bury(
    registry: ProjectRegistry,
    training_id: str,
    message: str,
    *,
    cancelled: bool = False,
    interrupted: bool = False,
    error: GardenerError | None = None,
) -> None:
    """Record in registry and journal that a training ended whose processes could not say so.

    Args:
        cancelled: somebody had wished so.
        interrupted: it may just go on; it was not the training that failed.
        error: what ended it, where that is known.

    Raises:
        RegistryError: the registry cannot be written.
    """
    if cancelled:
        patiently(registry.finish_training, training_id, TrainingStatus.CANCELLED, message, {})
    patiently(lambda: registry.explain_death(training_id, message, interrupted=interrupted, error=error))
    record = patiently(registry.get_training, training_id)
    _tell(
        record.run_dir,
        [
            ProgressChanged(record.phase, record.percent, record.message),
            TrainingEnded(record.phase, record.message, record.result),
        ],
    )


def _parallel(job: Job) -> ParallelConfig | None:
    """How the job is shared among several processes, None for one; all of the settings take longer to import than the rest here."""
    settings = job.config.get("parallel", {})
    if not settings.get("hosts"):
        return None
    from mlx_gardener.config import ParallelConfig

    return ParallelConfig.model_validate(settings)


def _run_ranks(
    run_dir: Path, config: ParallelConfig | None, asked_to_end: list[int], environment: Mapping[str, str]
) -> tuple[int, str | None]:
    """One worker and the ranks it trains with, all with ``environment`` beside this one's; its exit code, and which other rank
    died before it, if one did.

    Raises:
        GardenerError: another rank cannot be started.
    """
    if config is None:
        return _run_worker(run_dir, asked_to_end, environment), None
    group = Group(config, run_dir)
    try:
        code = _run_worker(run_dir, asked_to_end, group.assemble(environment), group)
        return code, group.find_death() if code == LOST_EXIT_CODE else group.death
    finally:
        group.close()


def _run_worker(
    run_dir: Path,
    asked_to_end: list[int],
    environment: Mapping[str, str] | None = None,
    group: Group | None = None,
) -> int:
    """One worker, from its start to its end; returns its exit code. SIGTERM is passed on to it."""
    process = subprocess.Popen(
        module_command("mlx_gardener.runs.worker", str(run_dir), str(os.getpid())),
        env={**os.environ, **(environment or {})},
    )
    if group is not None:
        group.watch(process)

    def pass_on(number: int, frame: object) -> None:
        asked_to_end.append(number)
        process.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _checkpoints(run_dir: Path) -> frozenset[str]:
    return frozenset(path.name for path in (run_dir / CHECKPOINTS_NAME).glob("step-*"))


def _plan_for_next(run_dir: Path, out_of_memory: bool, who_goes: str) -> str:
    where = "from its last checkpoint" if _checkpoints(run_dir) else "from the beginning"
    return f"{who_goes} on {where}" + (", with a plan for less memory." if out_of_memory else ".")


def _tell(run_dir: Path, events: Iterable[Event]) -> None:
    writer = JournalWriter(run_dir / JOURNAL_NAME)
    for event in events:
        writer(event)
    writer.close()


def _log_size(run_dir: Path) -> int:
    log = run_dir / LOG_NAME
    return log.stat().st_size if log.exists() else 0


def _log_since(run_dir: Path, offset: int) -> str:
    """The end of what was logged after byte ``offset``."""
    with (run_dir / LOG_NAME).open("rb") as file:
        file.seek(max(offset, _log_size(run_dir) - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")


def main() -> None:
    """Entry point of the supervisor; exit code 0 when completed or cancelled, 1 when failed or closed by others before it came."""
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run_dir, registry = Path(sys.argv[1]), ProjectRegistry()
    training_id = Job.read(run_dir).training_id
    if not patiently(registry.claim_training, training_id, os.getpid()):
        # Whoever asked for it died before it could say whose it is: it counts as dead, and another one may have begun.
        logger.error("training %s was closed before it was begun", training_id)
        sys.exit(1)
    sys.exit(1 if supervise(run_dir, registry) is TrainingStatus.FAILED else 0)


if __name__ == "__main__":
    main()
