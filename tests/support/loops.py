"""Training loops of a tiny model, and what they did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.dataset import PreparedData
from mlx_gardener.engine import Engine, Plan, PredictedParts
from mlx_gardener.errors import TrainingCancelledError
from mlx_gardener.events import Event, StepCompleted, WarningRaised
from mlx_gardener.model import BaseModel
from mlx_gardener.platform.kept import KeptValues
from mlx_gardener.training import TrainOutcome, train
from mlx_gardener.training.time_plan import Clock
from tests.support.trainings import SMALL


def settings(**more: object) -> TrainingConfig:
    chosen: dict[str, object] = {
        **SMALL,
        "optimizer.tokens_per_update": 256,
        "checkpoint_interval_seconds": 1e-6,
    }
    return load_config(environment={}, overrides={**chosen, **more})


class Recorder:
    """Keeps the events; interrupts a run in the middle of a step when told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[Event] = []
        self._stop_at = stop_at

    def publish(self, event: Event) -> None:
        self.events.append(event)

    def interrupt(self) -> None:
        if self._stop_at is not None and len(self.steps) >= self._stop_at:
            raise TrainingCancelledError("stopped by the test")

    @property
    def steps(self) -> list[StepCompleted]:
        return [event for event in self.events if isinstance(event, StepCompleted)]

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, WarningRaised)]


def same(first: TrainOutcome, second: TrainOutcome, tolerance: float = 0.0) -> bool:
    return first.weights.keys() == second.weights.keys() and all(
        mx.abs(first.weights[name] - second.weights[name]).max().item() <= tolerance for name in first.weights
    )


Runner = Callable[..., TrainOutcome]


def train_on(
    base: BaseModel,
    data: PreparedData,
    config: TrainingConfig,
    checkpoint_dir: Path,
    *,
    recorder: Recorder | None = None,
    resume: bool = False,
    rows: int = 2,
    clock: Clock | None = None,
    speed: float = 1e9,
    store: KeptValues | None = None,
) -> TrainOutcome:
    recorder = recorder or Recorder()
    plan = Plan(
        {64: rows, 128: rows}, config.memory_limit_bytes, 0, PredictedParts(), (),
        predicted_tokens_per_second=speed, predicted_forward_tokens_per_second=speed,
    )  # fmt: skip
    return train(
        base,
        data,
        config,
        Engine(base.model, plan, dtype=base.dtype),
        publish=recorder.publish,
        interrupt=recorder.interrupt,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        clock=clock,
        store=store,
    )
