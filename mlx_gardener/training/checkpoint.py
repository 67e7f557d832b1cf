"""Checkpoints: all that a training needs to go on as if it had never stopped.

A checkpoint is a directory ``step-00000012`` with the adapter, the best adapter so far, the optimiser's state and
``state.json``: where the training stands, and what it is a training of. It is written beside, fsynced and renamed, so
that it is there whole or not at all, and never takes the place of another: a second one of the same step is
``step-00000012.1``, and only then is the first dropped. ``state.json`` holds the sha256 of the other files, taken from
what was meant to be written, and of itself; a damaged checkpoint is passed over for the one before it.
Cost: about four times the adapter on disk, and its writing once per ``checkpoint_interval_seconds``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import TrainingError
from mlx_gardener.model.lora import load_arrays
from mlx_gardener.platform.files import fsync_path, make_private, private
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_json, sha256_of
from mlx_gardener.registry.names import resume_command

if TYPE_CHECKING:
    import mlx.core as mx

STATE_NAME = "state.json"
FORMAT_VERSION = 2
_ARRAYS = ("weights", "best", "optimizer")
#: Training losses that are kept: a curve needs no more, and a long training would carry and write ever more of them.
MOST_LOSSES = 2048
#: The newest ones, the second for the case that the first is damaged.
CHECKPOINTS_KEPT = 2
#: What reading a damaged checkpoint may raise.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, ArithmeticError)


@dataclass
class TrainState:
    """Where a training stands after its last committed update.

    ``step`` is also the place in the schedule and, with the seed, in the order of the rows: an update is committed with its
    whole accumulation window or not at all. Randomness needs no state: every seed is made from the run's seed and
    the step. ``tokens_seen`` bear loss, ``positions`` are all. Losses are nats per token; ``validation`` holds (step, loss,
    bits per byte), ``train_losses`` the loss of step 1 and of every ``updates_per_loss``-th after it, `MOST_LOSSES` at
    most. ``first_update`` is how many updates of the same rows the adapter that this training began with had done.
    """

    step: int = 0
    fingerprint: str = ""
    best_step: int = 0
    best_loss: float | None = None
    bad_evaluations: int = 0
    tokens_seen: int = 0
    positions: int = 0
    seconds: float = 0.0
    train_losses: list[float] = field(default_factory=list)
    updates_per_loss: int = 1
    validation: list[tuple[int, float, float]] = field(default_factory=list)
    first_update: int = 0

    def remember_loss(self, loss: float) -> None:
        """Note the loss of the update that ``step`` says; where there are too many, every other one is forgotten."""
        while len(self.train_losses) >= MOST_LOSSES:
            self.train_losses = self.train_losses[::2]
            self.updates_per_loss *= 2
        if (self.step - 1) % self.updates_per_loss == 0:
            self.train_losses.append(loss)


@dataclass(frozen=True)
class Origin:
    """What a checkpoint is a checkpoint of, as JSON types; ``plan`` is `engine.Plan.to_json` of the time of writing."""

    config: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    data_sha256: str = ""
    base_sha256: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A state with its arrays, by name."""

    state: TrainState
    weights: dict[str, mx.array]
    best: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    origin: Origin = Origin()


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint, then drop all but the ``keep`` newest.

    Later steps than this one's, which were passed over as damaged, are dropped too.

    Raises:
        TrainingError: it cannot be written; earlier ones are as they were.
    """
    step = checkpoint.state.step
    staged = directory / f".step-{step:08d}.new"
    try:
        make_private(directory)
        _sweep(directory)
        staged.mkdir(mode=0o700)
        sums = {
            f"{name}.safetensors": _write_arrays(staged / f"{name}.safetensors", getattr(checkpoint, name))
            for name in _ARRAYS
        }
        _write_state(staged / STATE_NAME, checkpoint, sums)
        fsync_path(staged)
        final = _free_name(directory, step)
        staged.rename(final)
        fsync_path(directory)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise TrainingError(
            f"The checkpoint of step {step} cannot be written ({reason_of(error)}).",
            next_step=f"Free disk space, then go on with {resume_command(directory.parent)}.",
        ) from error
    known = list_checkpoints(directory)
    upto = known.index(final) + 1
    for unneeded in known[: max(0, upto - keep)] + known[upto:]:
        _drop(unneeded)
    return final


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``, oldest first."""
    found = []
    for path in directory.glob("step-*"):
        step, _, again = path.name.removeprefix("step-").partition(".")
        if step.isdecimal() and (again.isdecimal() or not again) and path.is_dir():
            found.append((int(step), int(again or 0), path))
    return [path for _, _, path in sorted(found)]


def load_checkpoint(
    directory: Path,
    *,
    fingerprint: str,
    warn: Callable[[str], None],
    fingerprint_of: Callable[[Origin], str] | None = None,
) -> Checkpoint | None:
    """The newest good checkpoint; None when there is none. Damaged ones are named to ``warn`` and passed over.

    Args:
        fingerprint: of the training that goes on.
        fingerprint_of: what it would be for an origin; for checkpoints from when settings had other names.

    Raises:
        TrainingError: the newest good one belongs to other settings, data or base (``fingerprint`` differs).
    """
    _sweep(directory)  # a training that is at its end writes no checkpoint that would
    for path in reversed(list_checkpoints(directory)):
        try:
            checkpoint = _read(path)
        except _DAMAGE as error:
            warn(
                f"The checkpoint {path.name} cannot be used ({reason_of(error)}) and was passed over for the one before it."
            )
            continue
        same = checkpoint.state.fingerprint == fingerprint
        if not same and fingerprint_of is not None:
            same = fingerprint_of(checkpoint.origin) == fingerprint
        if not same:
            raise TrainingError(
                f"The checkpoint {path.name} belongs to another base model, other settings or other data.",
                next_step="Undo the change to go on exactly, or start a new training with --fresh.",
            )
        return checkpoint
    return None


def newest_origin(directory: Path) -> tuple[int, Origin] | None:
    """Step and origin of the newest checkpoint whose ``state.json`` is good; arrays are not read."""
    for path in reversed(list_checkpoints(directory)):
        try:
            written = _read_state(path)
            return int(written["state"]["step"]), _origin(written)
        except _DAMAGE:
            continue  # `load_checkpoint` names it
    return None


def set_aside(directory: Path) -> Path:
    """Move all checkpoints out of the way of a training that begins anew; what was set aside before is deleted.

    Raises:
        TrainingError: they cannot be moved.
    """
    aside = directory.with_name(directory.name + ".old")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
    except OSError as error:
        raise TrainingError(
            f"The checkpoints of an earlier training cannot be moved away ({reason_of(error)}).",
            next_step="Free disk space, then train again.",
        ) from error
    return aside


def _write_arrays(file: Path, arrays: dict[str, mx.array]) -> str:
    """Write and fsync; returns the sha256 of what was meant to be written, not of what the disk made of it."""
    import mlx.core as mx

    with open(file, "xb", buffering=0, opener=private) as raw:
        writer = _HashingWriter(raw)
        mx.save_safetensors(writer, arrays)  # type: ignore[arg-type]  # takes any object that writes
        os.fsync(raw.fileno())
    return writer.sha256.hexdigest()


class _HashingWriter:
    """A file that hashes what it is given and writes all of it, also where the system takes a part at a time."""

    closed = False

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.sha256 = hashlib.sha256()

    def write(self, data: memoryview) -> int:
        left = memoryview(data).cast("B")
        total = len(left)
        self.sha256.update(left)
        while left:
            written = self._raw.write(left)
            if not written:
                raise OSError("the disk takes no more bytes")
            left = left[written:]
        return total

    def seek(self, *where: int) -> int:
        return int(self._raw.seek(*where))

    def tell(self) -> int:
        return int(self._raw.tell())


def _write_state(file: Path, checkpoint: Checkpoint, sums: dict[str, str]) -> None:
    body = {
        "format_version": FORMAT_VERSION,
        "state": asdict(checkpoint.state),
        "origin": asdict(checkpoint.origin),
        "files": sums,
    }
    with open(file, "x", encoding="utf-8", opener=private) as text:
        json.dump({"sha256": _sha256_of_body(body), "body": body}, text)
        text.flush()
        os.fsync(text.fileno())


def _sha256_of_body(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_state(path: Path) -> dict[str, Any]:
    """The body of a checkpoint's ``state.json``; raises one of ``_DAMAGE`` when it is not what was written."""
    written = read_json(path / STATE_NAME, follow_links=False)
    if not isinstance(written, dict) or "body" not in written:
        raise ValueError("it was written by another version")
    body: dict[str, Any] = written["body"]
    if written["sha256"] != _sha256_of_body(body):
        raise ValueError(f"{STATE_NAME} has another sha256 than was written")
    if body["format_version"] != FORMAT_VERSION:
        raise ValueError("it was written by another version")
    return body


def _origin(written: dict[str, Any]) -> Origin:
    origin = Origin(**written["origin"])
    kinds = (dict, dict, str, str)
    found = (origin.config, origin.plan, origin.data_sha256, origin.base_sha256)
    if not all(isinstance(value, kind) for value, kind in zip(found, kinds, strict=True)):
        raise ValueError("it does not say what it is a checkpoint of")
    return origin


def _read(path: Path) -> Checkpoint:
    written = _read_state(path)
    for name in _ARRAYS:
        file = path / f"{name}.safetensors"
        if sha256_of(file) != written["files"][file.name]:
            raise ValueError(f"{file.name} has another sha256 than was written")
    state = TrainState(**written["state"])
    whole = all(isinstance(number, int) for number in (state.step, state.updates_per_loss))
    if not whole or state.updates_per_loss < 1 or not isinstance(state.train_losses, list):
        raise ValueError("it does not say where the training stands")
    state.validation = [(int(step), loss, bits) for step, loss, bits in state.validation]
    arrays = {name: load_arrays(path / f"{name}.safetensors") for name in _ARRAYS}
    return Checkpoint(state, origin=_origin(written), **arrays)


def _free_name(directory: Path, step: int) -> Path:
    taken = [path.name for path in directory.glob(f"step-{step:08d}*")]
    name, again = f"step-{step:08d}", 0
    while name in taken:
        again += 1
        name = f"step-{step:08d}.{again}"
    return directory / name


def _drop(path: Path) -> None:
    """Delete a checkpoint; a crash in between leaves none that looks damaged."""
    doomed = path.with_name(f".{path.name}.dropped")
    try:
        path.rename(doomed)
    except OSError:
        return  # it is only one too many, and tried again after the next checkpoint
    shutil.rmtree(doomed, ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Delete what a crash left half written or half deleted."""
    for leftover in [*directory.glob(".step-*.new"), *directory.glob(".step-*.dropped")]:
        shutil.rmtree(leftover, ignore_errors=True)
