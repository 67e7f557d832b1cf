"""Looking on at a training: Ctrl-C is no error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_gardener.registry import TrainingStatus
from mlx_gardener.runs.manager import TrainingPipeline
from tests.support.commands import train_flags
from tests.support.trainings import WAIT, steps_done, until

pytestmark = pytest.mark.usefixtures("known_home")  # what machine and base are like is measured elsewhere


@pytest.fixture
def pipeline() -> Iterator[TrainingPipeline]:
    made = TrainingPipeline()
    yield made
    made.cancel_training("small")
    made.wait_for_training_completion("small", timeout=WAIT)


def train(repository: Path, model: Path, *more: str) -> subprocess.Popen[str]:
    """An endless training that is shown on a pipe."""
    flags = train_flags(
        model, **{"optimizer.max_steps": 1_000_000, "optimizer.epochs": 100, "evaluation.patience": 10_000}
    )
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_gardener", "train", str(repository), "--project", "small", *flags, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_an_interrupted_training_keeps_a_checkpoint_and_is_no_error(
    pipeline: TrainingPipeline, repository: Path, tiny_model_dir: Path, more: tuple[str, ...]
) -> None:
    shown = train(repository, tiny_model_dir, *more)
    until(lambda: any(item.name == "small" for item in pipeline.registry.list_projects()), "a project")
    until(lambda: steps_done(pipeline) >= 2, "two steps")
    shown.send_signal(signal.SIGINT)
    _, said = shown.communicate(timeout=WAIT)
    assert shown.returncode == 130 and "Error" not in said and "checkpoint is kept" in said, said
    record = pipeline.registry.latest_training("small")
    assert record is not None and record.status is TrainingStatus.CANCELLED
    assert list((record.run_dir / "checkpoints").glob("step-*"))
