"""Checkpoints: all that a training needs to go on as if it had never stopped.

A checkpoint is a directory ``step-00000012`` with the adapter, the best adapter so far, the optimiser's state and
``state.json``; written beside, fsynced and renamed, so that it is there whole or not at all. ``state.json`` holds
the sha256 of the other files; a damaged checkpoint is passed over for the one before it. Cost: about four times the adapter.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import TrainingError
from mlx_gardener.model.lora import load_arrays
from mlx_gardener.platform.files import fsync_path

if TYPE_CHECKING:
    import mlx.core as mx

STATE_NAME = "state.json"


@dataclass
class TrainState:
    """Where a training stands after its last committed update.

    Randomness needs no state: every seed is made from the run's seed and the step. Losses are nats per token;
    ``validation`` holds (step, loss, bits per byte).
    """

    step: int = 0
    fingerprint: str = ""
    best_step: int = 0
    best_loss: float | None = None
    bad_evaluations: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    train_losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A state with its arrays, by name."""

    state: TrainState
    weights: dict[str, mx.array]
    best: dict[str, mx.array]
    optimizer: dict[str, mx.array]


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint, then drop all but the ``keep`` newest.

    Raises:
        TrainingError: it cannot be written; earlier ones are as they were.
    """
    import mlx.core as mx

    final = directory / f"step-{checkpoint.state.step:08d}"
    staged = directory / f".{final.name}.new"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        sums = {}
        for name in ("weights", "best", "optimizer"):
            file = staged / f"{name}.safetensors"
            mx.save_safetensors(str(file), getattr(checkpoint, name))
            sums[file.name] = _sha256(file)
            fsync_path(file)
        state = staged / STATE_NAME
        state.write_text(json.dumps({"state": asdict(checkpoint.state), "sha256": sums}), encoding="utf-8")
        fsync_path(state)
        fsync_path(staged)
        if final.exists():
            shutil.rmtree(final)
        staged.rename(final)
        fsync_path(directory)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise TrainingError(
            f"The checkpoint of step {checkpoint.state.step} cannot be written ({error}).",
            next_step="Free disk space, then go on with `mlx-gardener train --resume`.",
        ) from error
    for old in list_checkpoints(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``, oldest first."""
    return sorted(path for path in directory.glob("step-*") if path.is_dir())


def load_checkpoint(directory: Path, *, fingerprint: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest good checkpoint; None when there is none. Damaged ones are named to ``warn`` and passed over.

    Raises:
        TrainingError: the newest good one belongs to other settings, data or base (``fingerprint`` differs).
    """
    for path in reversed(list_checkpoints(directory)):
        try:
            checkpoint = _read(path)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            warn(f"The checkpoint {path.name} is damaged ({error}) and was passed over.")
            continue
        if checkpoint.state.fingerprint != fingerprint:
            raise TrainingError(
                f"The checkpoint {path.name} belongs to another base model, other settings or other data.",
                next_step="Undo the change to go on exactly, or start a new training without --resume.",
            )
        return checkpoint
    return None


def _read(path: Path) -> Checkpoint:
    written: dict[str, Any] = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    for name, expected in written["sha256"].items():
        if _sha256(path / name) != expected:
            raise ValueError(f"{name} has another sha256 than was written")
    state = TrainState(**written["state"])
    state.validation = [(int(step), loss, bits) for step, loss, bits in state.validation]
    arrays = {name: load_arrays(path / f"{name}.safetensors") for name in ("weights", "best", "optimizer")}
    return Checkpoint(state, **arrays)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
