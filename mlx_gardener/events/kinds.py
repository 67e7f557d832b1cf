"""The events of a run: small frozen records that are JSON-able in both directions, and the phases and progress they tell.

As JSON they travel from the worker process to whoever watches (`mlx_gardener.runs.journal`); what is read from there is
checked, since the file may come from another version. Cost: next to nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from enum import Enum, StrEnum
from typing import Any


class TrainingPhase(StrEnum):
    """The phases of a run, in order, then the three ways it can end."""

    INITIALIZING = "initializing"
    PREPARING_DATA = "preparing_data"
    STARTING_TRAINING = "starting_training"
    TRAINING = "training"
    COMPLETING = "completing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether a run in this phase has ended."""
        return self in (TrainingPhase.COMPLETED, TrainingPhase.FAILED, TrainingPhase.CANCELLED)


#: The share of the whole run each phase covers, in percent (SPEC: TrainingPhase).
PHASE_PERCENT: dict[TrainingPhase, tuple[float, float]] = {
    TrainingPhase.INITIALIZING: (0.0, 10.0),
    TrainingPhase.PREPARING_DATA: (10.0, 30.0),
    TrainingPhase.STARTING_TRAINING: (30.0, 40.0),
    TrainingPhase.TRAINING: (40.0, 90.0),
    TrainingPhase.COMPLETING: (90.0, 100.0),
    TrainingPhase.COMPLETED: (100.0, 100.0),
}


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands.

    ``progress_percent`` never goes backwards within a run. ``details`` holds what is known at the time: step,
    total_steps, loss, tokens_per_second, memory_bytes, peak_bytes, budget_bytes, eta_seconds. ``timestamp`` is in
    seconds since the epoch.
    """

    phase: TrainingPhase
    progress_percent: float
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    timestamp: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Event:
    """Base of everything published; ``timestamp`` in seconds since the epoch."""

    timestamp: float = field(default_factory=time.time, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """The event as JSON types, with its class name under ``event``."""
        values = asdict(self)
        for key, value in values.items():
            if isinstance(value, Enum):
                values[key] = value.value
        return {"event": type(self).__name__, **values}


@dataclass(frozen=True)
class ProgressChanged(Event):
    """The run's progress as users see it: phase, percent, message, details."""

    phase: TrainingPhase
    progress_percent: float
    message: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataPrepared(Event):
    """The dataset is ready: counts of what was kept, dropped and made (`dataset` says which keys)."""

    summary: dict[str, Any]


@dataclass(frozen=True)
class PlanChosen(Event):
    """How the budget will be used (`engine.plan.Plan` as JSON types)."""

    plan: dict[str, Any]


@dataclass(frozen=True)
class TimePlanned(Event):
    """How the time limit will be spent (`training.time_plan.TimePlan` as JSON types); again where it has changed."""

    plan: dict[str, Any]


@dataclass(frozen=True)
class StepCompleted(Event):
    """One optimiser update: loss in nats per loss-bearing token, gradient norm before clipping, bytes, seconds."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    tokens: int
    learning_rate: float
    gradient_norm: float
    seconds: float
    tokens_per_second: float
    memory_bytes: int
    peak_bytes: int
    budget_bytes: int
    eta_seconds: float | None = None


@dataclass(frozen=True)
class StepAdvanced(Event):
    """Part of a slow optimiser update, or of a validation, is done: ``share`` of it, 0 to 1, ``eta_seconds`` left."""

    activity: str
    step: int
    total_steps: int
    share: float
    eta_seconds: float | None = None

    @property
    def place(self) -> str:
        """Where it is: ``Step 3 of 20``, ``Validation at step 3 of 20``."""
        at = "" if self.activity == "Step" else "at step "
        return f"{self.activity} {at}{self.step} of {self.total_steps}"


@dataclass(frozen=True)
class Evaluated(Event):
    """Loss over the whole fixed validation set: nats per token, and bits per byte of source.

    ``goes_on_from`` is the adapter version that the training began with; "" for one that began with the base alone.
    """

    step: int
    loss: float
    bits_per_byte: float
    is_best: bool
    goes_on_from: str = ""


@dataclass(frozen=True)
class CheckpointWritten(Event):
    """A resumable checkpoint of this step is on disk."""

    step: int
    name: str


@dataclass(frozen=True)
class MemoryMeasured(Event):
    """What the process takes now: footprint of the process, MLX's active and cached bytes, all against the budget."""

    footprint_bytes: int
    active_bytes: int
    cache_bytes: int
    budget_bytes: int


@dataclass(frozen=True)
class WarningRaised(Event):
    """Something the user should know that does not stop the run."""

    message: str


@dataclass(frozen=True)
class TrainingEnded(Event):
    """The last event of a run. ``result`` holds adapter version and metrics when completed, the error when not."""

    phase: TrainingPhase
    message: str
    result: dict[str, Any] = field(default_factory=dict)


_EVENTS: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (
        ProgressChanged,
        DataPrepared,
        PlanChosen,
        TimePlanned,
        StepCompleted,
        StepAdvanced,
        Evaluated,
        CheckpointWritten,
        MemoryMeasured,
        WarningRaised,
        TrainingEnded,
    )
}
#: What a subscriber that is too slow may lose: the next one says it again.
DROPPABLE = (ProgressChanged, StepCompleted, StepAdvanced, MemoryMeasured)

#: What the fields of events are once read from JSON, by annotation.
_TYPES: dict[str, tuple[type, ...]] = {
    "TrainingPhase": (TrainingPhase,),
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "dict[str, Any]": (dict,),
}


#: What is shown of the dictionaries in events.
_INNER: dict[str, dict[str, tuple[type, ...]]] = {
    "DataPrepared": {
        "summary.languages": (dict,),
        "summary.chunks_kept": (int,),
        "summary.files_kept": (int,),
        "summary.train_loss_tokens": (int,),
        "summary.padding_fraction": (int, float),
    },
    "PlanChosen": {
        "plan.rows_of_width": (dict,),
        "plan.predicted_peak_bytes": (int, float),
        "plan.budget_bytes": (int, float),
        "plan.notes": (list,),
    },
    "TimePlanned": {
        "plan.limit_seconds": (int, float, type(None)),
        "plan.used_seconds": (int, float),
        "plan.training_seconds": (int, float, type(None)),
        "plan.evidence_seconds": (int, float, type(None)),
        "plan.updates": (int,),
        "plan.steps_per_epoch": (int,),
        "plan.all_updates": (int,),
        "plan.pace.update_seconds": (int, float),
        "plan.pace.source": (str,),
    },
}


def _check_numbers(values: object) -> None:
    """Refuse whole numbers that no float can hold: nothing here counts so far, and they cannot be shown."""
    if isinstance(values, dict):
        for value in values.values():
            _check_numbers(value)
    elif isinstance(values, list):
        for value in values:
            _check_numbers(value)
    elif isinstance(values, int) and abs(values) >= 2**63:
        raise ValueError("a number of an event is too large")


def event_from_json(values: dict[str, Any]) -> Event:
    """The event that `Event.to_json` wrote.

    Raises:
        ValueError: the name is no event of this version, or its fields do not fit.
    """
    if not isinstance(values, dict):
        raise ValueError("an event is an object")
    fields = dict(values)
    name = fields.pop("event", None)
    cls = _EVENTS.get(str(name))
    if cls is None:
        raise ValueError(f"unknown event {name!r}")
    if "phase" in fields:
        fields["phase"] = TrainingPhase(fields["phase"])
    for known in dataclass_fields(cls):
        if known.name in fields and not isinstance(fields[known.name], _TYPES[str(known.type)]):
            raise ValueError(f"event {name} has a {known.name} that is no {known.type}")
    _check_numbers(fields)
    for place, kinds in _INNER.get(str(name), {}).items():
        inner = fields
        *way, last = place.split(".")
        for step in way:
            inner = inner.get(step, {})
        if not isinstance(inner.get(last), kinds):
            raise ValueError(f"event {name} has no usable {place}")
    languages = fields["summary"]["languages"] if cls is DataPrepared else {}
    if not all(
        isinstance(counts, dict) and isinstance(counts.get("bytes"), int) for counts in languages.values()
    ):
        raise ValueError(f"event {name} has no usable summary.languages")
    try:
        return cls(**fields)
    except TypeError as error:
        raise ValueError(f"event {name} has unexpected fields: {error}") from error
