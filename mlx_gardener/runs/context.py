"""`Run`: one training under way, as its phases see it. In: progress and events; out: both, told to registry and bus."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.events import (
    PHASE_PERCENT,
    Event,
    EventBus,
    StepAdvanced,
    StepCompleted,
    TrainingPhase,
)
from mlx_gardener.registry import Project, ProjectRegistry
from mlx_gardener.registry.names import CHECKPOINTS_NAME
from mlx_gardener.runs.job import Resume
from mlx_gardener.runs.progress import TrainingProgressTracker

if TYPE_CHECKING:
    from mlx_gardener.training.parallel import Ranks
    from mlx_gardener.training.time_plan import Clock


@dataclass(frozen=True)
class Run:
    """One training under way: what it works on, and whom it tells."""

    training_id: str
    project: Project
    config: TrainingConfig
    directory: Path
    resume: Resume
    smaller_plan: bool
    registry: ProjectRegistry
    bus: EventBus
    tracker: TrainingProgressTracker
    interrupt: Callable[[], None]
    ranks: Ranks
    clock: Clock
    #: While it lasts no time is used: for what the time limit was not chosen for (`Interrupt.clock_stands`).
    clock_stands: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints lie."""
        return self.directory / CHECKPOINTS_NAME

    def tell(self, phase: TrainingPhase, share: float, message: str, /, **details: Any) -> None:
        """Progress within a phase; ``share`` of it is done, 0 to 1."""
        low, high = PHASE_PERCENT[phase]
        self.tracker.update_progress(phase, low + (high - low) * share, message, details)

    def publish(self, event: Event) -> None:
        """Hand an event of the training loop on; a step also moves the progress."""
        self.bus.publish(event)
        if isinstance(event, StepCompleted):
            # Before a checkpoint has the step: a worker that dies then does not do it again, and the journal would lack it.
            self.bus.flush()
            message = f"Step {event.step} of {event.total_steps}, loss {event.loss:.3f}"
            details = {
                name: getattr(event, name)
                for name in ("step", "total_steps", "loss", "tokens_per_second", "memory_bytes", "peak_bytes")
            }
            details |= {"budget_bytes": event.budget_bytes, "eta_seconds": event.eta_seconds}
            self.tell(TrainingPhase.TRAINING, event.step / max(1, event.total_steps), message, **details)
        elif isinstance(event, StepAdvanced):
            done = event.step - 1 + event.share if event.activity == "Step" else event.step
            message = f"{event.place}, {event.share:.0%} of it done"
            details = {"step": event.step, "total_steps": event.total_steps, "share": event.share}
            self.tell(TrainingPhase.TRAINING, done / max(1, event.total_steps), message, **details)
