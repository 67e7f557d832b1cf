"""Training loops of a tiny model, and what they did."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.errors import TrainingCancelledError
from mlx_gardener.events import Event, StepCompleted, WarningRaised
from mlx_gardener.training import TrainOutcome
from tests.support.trainings import SMALL


def settings(**more: object) -> TrainingConfig:
    chosen: dict[str, object] = {
        **SMALL,
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
