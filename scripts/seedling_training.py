"""The seedling's long training: rows in order, a schedule, checkpoints that resume exactly.

In: ``stream.bin`` (uint16 token ids). Out: ``state/`` (weights, optimiser, position) and ``log.jsonl``. A stretch ends
after its minutes, on Ctrl-C, or when the plan is done; running it again goes on at the next row with the same numbers as
if it had never stopped. Cost: with bf16 matrix units on two cores about 6,000 tokens a second (PyTorch), else about a
thousand (MLX).

The plan is fixed by token count alone, never by the clock: warm-up, a flat stretch at `width` tokens a row, then the
last part, where the rate falls to zero while rows grow to the full context.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Plan:
    """How the tokens are spent. `decay_from` and `total_tokens` may be moved while the flat stretch runs."""

    batch_tokens: int = 4096
    width: int = 512
    warmup_steps: int = 80
    total_tokens: int = 20_000_000
    decay_share: float = 0.25
    long_share: float = 0.15
    long_width: int = 1024
    longest_share: float = 0.05
    longest_width: int = 2048

    def rate(self, used_tokens: int, step: int) -> float:
        """The factor on the learning rates after `used_tokens` tokens."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = (self.total_tokens - used_tokens) / max(1.0, self.decay_share * self.total_tokens)
        return warm * max(0.02, min(1.0, left))

    def row_width(self, used_tokens: int) -> int:
        """Tokens per row at this point: longer rows come last, so that the whole context has been trained."""
        done = used_tokens / self.total_tokens
        if done >= 1 - self.longest_share:
            return self.longest_width
        return self.long_width if done >= 1 - self.long_share else self.width


@dataclass(frozen=True)
class Position:
    """Where a run stands: everything that is not weights or optimiser state."""

    step: int = 0
    used_tokens: int = 0
    seconds: float = 0.0


class Trainer(Protocol):
    """What a backend offers: one update, and its whole state to and from a file."""

    def step(self, tokens: np.ndarray, rate: float) -> float: ...
    def save(self, path: Path) -> None: ...
    def load(self, path: Path) -> None: ...
    def weights(self) -> dict[str, np.ndarray]: ...


def next_rows(stream: np.ndarray, plan: Plan, used_tokens: int) -> np.ndarray:
    """The rows of the next update, (rows, width + 1).

    The stream is cut into blocks of `width`, and consecutive rows are taken far apart (a fixed stride through all
    blocks, each once), so that an update sees several documents: neighbouring blocks are mostly one file.
    """
    width = plan.row_width(used_tokens)
    rows = max(1, plan.batch_tokens // width)
    blocks = (len(stream) - 1) // width
    stride = max(1, int(blocks * 0.618))
    while math.gcd(stride, blocks) != 1:
        stride += 1
    numbers = (used_tokens // width + np.arange(rows)) * stride % blocks  # (rows,)
    return np.asarray(stream[numbers[:, None] * width + np.arange(width + 1)[None, :]])


def train(
    trainer: Trainer,
    plan: Plan,
    work: Path,
    minutes: float,
    say: Callable[[str], None],
    save_minutes: float = 4.0,
) -> Position:
    """Train for one stretch; returns where it stopped. State is written beside and renamed into place.

    Raises:
        FloatingPointError: the loss is not finite; the last saved state is untouched.
    """
    stream = np.memmap(work / "stream.bin", dtype=np.uint16, mode="r")
    position = load_state(trainer, work)
    start, last_save, last_say = time.monotonic(), time.monotonic(), 0.0
    begun, losses = position, []
    try:
        while position.used_tokens < plan.total_tokens and time.monotonic() - start < minutes * 60:
            before = time.monotonic()
            rows = next_rows(stream, plan, position.used_tokens)
            loss = trainer.step(rows, plan.rate(position.used_tokens, position.step))
            if not math.isfinite(loss):
                raise FloatingPointError(f"loss is {loss} at step {position.step}: lower the learning rate")
            used = position.used_tokens + rows.shape[0] * (rows.shape[1] - 1)
            position = Position(position.step + 1, used, position.seconds + time.monotonic() - before)
            losses.append(loss)
            if time.monotonic() - last_say >= 15 or position.used_tokens >= plan.total_tokens:
                last_say = time.monotonic()
                speed = (used - begun.used_tokens) / (last_say - start)
                record = {
                    **asdict(position),
                    "loss": round(float(np.mean(losses)), 4),
                    "width": rows.shape[1] - 1,
                }
                with (work / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(record) + "\n")
                minutes_left = (plan.total_tokens - used) / speed / 60
                say(
                    f"step {position.step}  {used / 1e6:.2f} of {plan.total_tokens / 1e6:.1f}M tokens  "
                    f"loss {record['loss']:.3f}  {speed:,.0f} tokens/s  plan done in {minutes_left:.0f} min"
                )
                losses = []
            if time.monotonic() - last_save >= save_minutes * 60:
                save_state(trainer, position, work)
                last_save = time.monotonic()
    except KeyboardInterrupt:
        say("interrupted: saving")
    save_state(trainer, position, work)
    return position


def save_state(trainer: Trainer, position: Position, work: Path) -> None:
    """Write weights, optimiser and position to ``work/state`` as one atomic replacement."""
    fresh, current, old = work / "state.part", work / "state", work / "state.old"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    trainer.save(fresh / "trainer.bin")
    np.savez(fresh / "weights.npz", **trainer.weights())
    (fresh / "position.json").write_text(
        json.dumps(asdict(position)) + "\n", encoding="utf-8"
    )  # last: "complete"
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    fresh.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def load_state(trainer: Trainer, work: Path) -> Position:
    """Read the last saved state into `trainer`; a run killed between two renames is found under its old name."""
    for name in ("state", "state.part", "state.old"):
        directory = work / name
        if (directory / "position.json").exists():
            trainer.load(directory / "trainer.bin")
            return Position(**json.loads((directory / "position.json").read_text(encoding="utf-8")))
    return Position()
