"""What a run tells while it goes on: its events, and the bus that hands them to whoever listens.

In: events from any thread of a run. Out: calls of subscribers, each on a thread of its own. Cost: microseconds an event.
"""

from mlx_gardener.events.bus import EventBus, EventCallback
from mlx_gardener.events.kinds import (
    PHASE_PERCENT,
    CheckpointWritten,
    DataPrepared,
    Evaluated,
    Event,
    MemoryMeasured,
    PlanChosen,
    ProgressChanged,
    StepAdvanced,
    StepCompleted,
    TimePlanned,
    TrainingEnded,
    TrainingPhase,
    TrainingProgress,
    WarningRaised,
    event_from_json,
)

__all__ = [
    "PHASE_PERCENT",
    "CheckpointWritten",
    "DataPrepared",
    "Evaluated",
    "Event",
    "EventBus",
    "EventCallback",
    "MemoryMeasured",
    "PlanChosen",
    "ProgressChanged",
    "StepAdvanced",
    "StepCompleted",
    "TimePlanned",
    "TrainingEnded",
    "TrainingPhase",
    "TrainingProgress",
    "WarningRaised",
    "event_from_json",
]
