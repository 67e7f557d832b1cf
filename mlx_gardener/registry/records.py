"""The rows of the registry as frozen records; times are seconds since the epoch."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mlx_gardener.errors import (
    GardenerError,
    TrainingCancelledError,
    TrainingError,
    TrainingInterruptedError,
    error_from_json,
)
from mlx_gardener.events import TrainingPhase
from mlx_gardener.registry.names import place_below

#: In the result of a training that ended early: the error that ended it (`GardenerError.to_json`).
ERROR = "error"
#: In the result of a training that its process's end stopped, not a reason of its own: it may just go on.
INTERRUPTED = "interrupted"
#: In the result of a training that failed: whether it did so before its first checkpoint.
LEFT_NOTHING = "left_nothing"


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


#: The same as a condition of SQL.
LIVE = "status IN ('queued', 'training')"


@dataclass(frozen=True)
class Project:
    """A repository known by a name.

    ``status`` is that of its latest training, apart from failed ones that took nothing away: a project with an active
    adapter has one still, and one whose training was refused before it began stands where it stood.
    """

    name: str
    path: Path
    status: TrainingStatus
    active: bool
    active_adapter: str | None
    created_at: float
    updated_at: float


@dataclass(frozen=True)
class TrainingRecord:
    """One training of one project. ``percent`` is of the whole run, 0 to 100; ``pid`` is the worker's.

    ``result`` holds adapter version, metrics and evidence when completed, and the error when it ended early.
    """

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

    @property
    def error(self) -> GardenerError | None:
        """What ended it early, with its class and fields; None where nothing did."""
        if self.status not in (TrainingStatus.FAILED, TrainingStatus.CANCELLED):
            return None
        if ERROR in self.result:
            return error_from_json(self.result[ERROR], otherwise=self.message)
        if self.status is TrainingStatus.CANCELLED:
            return TrainingCancelledError(self.message)
        return (TrainingInterruptedError if self.result.get(INTERRUPTED) else TrainingError)(self.message)


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


@dataclass(frozen=True)
class GarbagePolicy:
    """What `ProjectRegistry.collect_garbage` keeps besides the active versions and all of a project being trained.

    Attributes:
        keep_versions: so many of a project's newest adapter versions, at least 1.
        run_days: finished runs, folders of GGUF files and models of the package index used within so many days; a project's
            latest run is kept always.
        keep_checkpoints: whether completed runs keep their checkpoints, which nothing needs any more.
    """

    keep_versions: int = 3
    run_days: float = 30.0
    keep_checkpoints: bool = False


@dataclass(frozen=True)
class Garbage:
    """Something that the policy does not keep: ``kind`` is version, run, checkpoints, base (a folder that
    a GGUF file was read into, which can be read again), package (a model, or parts of one, that can be fetched from the package
    index again), index (for retrieval) or in_use (what stayed of completions), where no adapter is left, or leftover;
    ``size_bytes`` on disk."""

    kind: str
    subject: str
    size_bytes: int


def project_of(row: sqlite3.Row) -> Project:
    """A row of ``projects`` with the latest training's ``status``."""
    return Project(
        name=row["name"],
        path=Path(row["path"]),
        status=_status_of(row["status"]),
        active=bool(row["active"]),
        active_adapter=row["active_adapter"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _status_of(latest: str | None) -> TrainingStatus:
    """The status of a project by its latest training's, whose own row may be damaged."""
    if latest is None:
        return TrainingStatus.NOT_STARTED
    return TrainingStatus(latest) if latest in list(TrainingStatus) else TrainingStatus.FAILED


def training_of(row: sqlite3.Row, home: Path) -> TrainingRecord:
    """A row of ``trainings`` in the registry of ``home``."""
    return TrainingRecord(
        id=row["id"],
        project=row["project"],
        status=TrainingStatus(row["status"]),
        phase=TrainingPhase(row["phase"]),
        percent=row["percent"],
        message=row["message"],
        details=json.loads(row["details"]),
        run_dir=place_below(home, row["run_dir"], row["project"]),
        pid=row["pid"],
        config=json.loads(row["config"]),
        result=json.loads(row["result"]),
        started_at=row["started_at"],
        updated_at=row["updated_at"],
        finished_at=row["finished_at"],
    )


def adapter_of(row: sqlite3.Row, home: Path, active: str | None) -> AdapterRecord:
    """A row of ``adapters`` in the registry of ``home``; ``active`` is its project's active version."""
    return AdapterRecord(
        project=row["project"],
        version=row["version"],
        directory=place_below(home, row["directory"], row["project"]),
        base_model=row["base_model"],
        metrics=json.loads(row["metrics"]),
        manifest_sha256=row["manifest_sha256"],
        active=row["version"] == active,
        created_at=row["created_at"],
    )
