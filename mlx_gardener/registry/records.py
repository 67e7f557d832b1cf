"""The rows of the registry as frozen records; times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mlx_gardener.events import TrainingPhase


class TrainingStatus(StrEnum):
    """Where a project or training stands."""

    NOT_STARTED = "not_started"
    QUEUED = "queued"
    TRAINING = "training"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        """Whether work is under way or waiting."""
        return self in (TrainingStatus.QUEUED, TrainingStatus.TRAINING)


@dataclass(frozen=True)
class Project:
    """A repository known by a name. ``status`` is that of its latest training."""

    name: str
    path: Path
    status: TrainingStatus
    active: bool
    active_adapter: str | None
    created_at: float
    updated_at: float


@dataclass(frozen=True)
class TrainingRecord:
    """One training of one project. ``percent`` is of the whole run, 0 to 100; ``pid`` is the worker's."""

    id: str
    project: str
    status: TrainingStatus
    phase: TrainingPhase
    percent: float
    message: str
    details: dict[str, Any]
    run_dir: Path
    pid: int | None
    config: dict[str, Any]
    result: dict[str, Any]
    started_at: float
    updated_at: float
    finished_at: float | None


@dataclass(frozen=True)
class AdapterRecord:
    """One version of a project's adapter; ``directory`` holds its files."""

    project: str
    version: str
    directory: Path
    base_model: str
    metrics: dict[str, Any]
    manifest_sha256: str
    active: bool
    created_at: float


@dataclass(frozen=True)
class Problem:
    """Something `ProjectRegistry.check` found; ``repairable`` says whether `repair` mends it."""

    kind: str
    subject: str
    message: str
    repairable: bool
