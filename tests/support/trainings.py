"""Trainings of a tiny model: their settings, and waiting for what they do."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from mlx_gardener import TrainingPipeline
from mlx_gardener.config import TrainingConfig, load_config

T = TypeVar("T")
WAIT = 600.0  # seconds no run here comes near; a hang shows as an error instead of a stuck suite

#: A training of six updates on a few small files.
SMALL: dict[str, object] = {
    "min_training_chunks": 5,
    "training_data_quality_threshold": 0.1,
    "lora.rank": 4,
    "optimizer.learning_rate": 0.01,
    "optimizer.tokens_per_update": 512,
    "optimizer.max_steps": 6,
    "data.sequence_lengths": [64, 128],
}


def tiny_settings(model: Path, **more: object) -> TrainingConfig:
    settings: dict[str, object] = {
        "model": str(model),
        **SMALL,
        "evaluation.tasks": 4,
        "evaluation.max_new_tokens": 8,
        "progress_update_interval": 0.5,
        "throttling.low_priority": False,  # beside a busy machine's other work it would take for ever
    }
    return load_config(environment={}, overrides={**settings, **more})


def endless(model: Path, **more: object) -> TrainingConfig:
    """Settings of a training that only ends when somebody ends it."""
    return tiny_settings(
        model,
        **{"optimizer.max_steps": 1_000_000, "optimizer.epochs": 100, "evaluation.patience": 10_000, **more},
    )


def until(condition: Callable[[], T], what: str, *, seconds: float | None = None) -> T:
    """What the condition gives once that counts as true."""
    deadline = time.monotonic() + (seconds or WAIT)
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)
    return found


def steps_done(pipeline: TrainingPipeline, name: str = "small") -> int:
    progress = pipeline.get_training_progress(name)
    return 0 if progress is None else int(progress.details.get("step", 0))


def worker_of(pipeline: TrainingPipeline, name: str) -> int:
    """The process id of the worker that trains a project; the registry knows its supervisor's."""
    import psutil

    record = pipeline.registry.latest_training(name)
    assert record is not None and record.pid is not None
    supervisor = psutil.Process(record.pid)
    # One that was just killed stays a child until its supervisor looks.
    return until(lambda: [child.pid for child in supervisor.children() if is_alive(child.pid)], "a worker")[0]


@contextlib.contextmanager
def standing_still(pipeline: TrainingPipeline, name: str) -> Iterator[None]:
    """Meanwhile the worker of a project does nothing, so that its training is not over before a test has done its part."""
    worker = worker_of(pipeline, name)
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        # Its supervisor may have ended it meanwhile, where another rank was killed.
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)


def is_alive(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
