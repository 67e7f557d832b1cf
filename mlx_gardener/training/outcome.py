"""What a training gives: its best adapter, and the account of how it came about. Cost: none of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_gardener.model.lora import AdapterSettings
from mlx_gardener.training.checkpoint import TrainState
from mlx_gardener.training.time_plan import TimePlan

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True)
class TrainOutcome:
    """The best adapter and how it came about; losses in nats per loss-bearing token.

    Attributes:
        forward_seen: tokens per second of the last validation; None where none was measured.
        is_resumed: whether other workers did a part of it.
    """

    weights: dict[str, mx.array]
    settings: AdapterSettings
    state: TrainState
    total_steps: int
    stopped_because: str
    time_plan: TimePlan
    ended_by_time: bool = False
    ranks: int = 1
    forward_seen: float | None = None
    is_resumed: bool = False

    @property
    def forward_tokens_per_second(self) -> float:
        """As the last validation went, or as foretold where none was measured."""
        return self.forward_seen or self.time_plan.pace.forward_tokens_per_second

    def to_json(self) -> dict[str, Any]:
        """The account of the training, without its arrays."""
        return {
            "steps": self.state.step,
            "total_steps": self.total_steps,
            "first_update": self.state.first_update,
            "steps_per_epoch": self.time_plan.steps_per_epoch,
            "time_plan": self.time_plan.to_json(),
            "best_step": self.state.best_step,
            "stopped_because": self.stopped_because,
            "ended_by_time": self.ended_by_time,
            "ranks": self.ranks,
            "tokens_seen": self.state.tokens_seen,
            "seconds": round(self.state.seconds, 1),
            "train_losses": [round(loss, 5) for loss in self.state.train_losses],
            "updates_per_loss": self.state.updates_per_loss,
            "validation": [
                {"step": step, "loss": round(loss, 5), "bits_per_byte": round(bits, 5)}
                for step, loss, bits in self.state.validation
            ],
        }
