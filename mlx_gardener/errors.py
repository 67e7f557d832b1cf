"""Every error a user can meet: what happened, to which thing, and what to do next.

``GardenerError`` carries the next step apart from the message, so that the command line can set it on its own line.
``exit_code`` is 2 where the user's input is at fault (usage), 1 where the work failed. Message and next step speak of the
command line's flags; ``str(error)``, which is what Python shows, speaks of settings and arguments (`in_python`). Errors
cross from worker processes to whoever waits as JSON, with their class and fields.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

#: Commands that a call does as well.
_TRAIN = r"mlx-gardener train(?: --resume| --project [\w.-]+)*"
#: What the command line's flags are called in Python. Commands in backticks stay: they can be typed as they are.
_IN_PYTHON = (
    (r"the flags\b", "the given settings"),
    (f"`{_TRAIN}`", "`mlx_gardener.train(...)`"),
    (r"--set ", ""),
    (r"--budget ([\d.]*\d)", r"memory_limit_gb=\1"),
    (r"--bits (\d)", r"bits=\1"),
    (r"--dtype (\w+\d+)", r'dtype="\1"'),
    (r"`--model ([\w./-]+)`", r'`model="\1"`'),
    (r"--fresh\b", "fresh=True"),
    (r"--no-suffix\b", "suffix=None"),
    (r"--budget\b", "memory_limit_gb"),
    (r"--timeout\b", "training_timeout_minutes"),
    (r"--learning-rate\b", "optimizer.learning_rate"),
    (r"--epochs\b", "optimizer.epochs"),
    (r"--max-steps\b", "optimizer.max_steps"),
    (r"--rank\b", "lora.rank"),
    (r"--hosts?\b", "parallel.hosts"),
    (r"--backend\b", "parallel.backend"),
    (r"--(model|project|base|bits|dtype|form|quantise|create|control|seed|version|tasks|arms)\b", r"\1"),
    (r"--config\b", "file"),
)
_COMMAND = re.compile(rf"(`(?!{_TRAIN}`)[\w.]*mlx[-.]\w+[^`]*`)")


def in_python(text: str) -> str:
    """``text`` with Python's settings and arguments in the place of the command line's flags."""
    parts = _COMMAND.split(text)
    for at in range(0, len(parts), 2):
        for flag, name in _IN_PYTHON:
            parts[at] = re.sub(flag, name, parts[at])
    return "".join(parts)


class GardenerError(Exception):
    """Base of all errors of this package.

    Args:
        message: what happened and to which thing, one sentence.
        next_step: what the user can do about it, one sentence; empty where nothing sensible can be said.
    """

    exit_code = 1
    #: Attributes besides message and next step, which cross from a worker to whoever waits.
    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return in_python(self.in_terminal)

    @property
    def in_terminal(self) -> str:
        """Message and next step in the command line's words."""
        return f"{self.message} {self.next_step}".strip()

    def to_json(self) -> dict[str, Any]:
        """The error as JSON types; `error_from_json` makes it again, as the nearest class of this module."""
        kind = next(cls for cls in type(self).__mro__ if cls.__module__ == __name__)
        values = {name: getattr(self, name) for name in self.fields}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        return {"class": kind.__name__, "message": self.message, "next_step": self.next_step, **finite}


class TrainingError(GardenerError):
    """A training could not start, go on, or finish."""


class TrainingTimeoutError(TrainingError):
    """Waiting for a training took longer than the caller allowed; the training itself goes on."""


class TrainingCancelledError(TrainingError):
    """Raised inside a run when somebody cancelled it; ends the run as CANCELLED, with a checkpoint."""


class TimeLimitError(TrainingError):
    """Raised inside a run whose time limit is over; what it has trained is registered with the evidence there is.

    Also by an evaluation whose time limit was over before anything was measured.
    """


class TrainingInterruptedError(TrainingError):
    """Raised inside a run whose process has to end, for no reason of the run's own; it may just go on later."""


class RankLostError(TrainingInterruptedError):
    """Another process of a training in parallel is gone; all of them may go on from the last checkpoint."""


class OtherRankError(TrainingError):
    """Another process of a training in parallel cannot go on, and said why."""


class DataError(GardenerError):
    """The repository cannot be read, or gives nothing to train on."""


class ModelError(GardenerError):
    """A base model cannot be found, read or used."""


class MemoryBudgetError(GardenerError):
    """The work does not fit the memory budget; names the least budget that would do.

    Args:
        least_bytes: that budget, kept as whole bytes, rounded up; infinite where it is not known.
    """

    fields = ("least_bytes",)

    def __init__(self, message: str, *, next_step: str = "", least_bytes: float = float("inf")) -> None:
        super().__init__(message, next_step=next_step)
        self.least_bytes = least_bytes if math.isinf(least_bytes) else math.ceil(least_bytes)


class AdapterError(GardenerError):
    """An adapter's files are missing, damaged, or do not fit the model."""


class RegistryError(GardenerError):
    """The registry cannot be read or written, or has no such project."""


class RegistryUnavailableError(RegistryError):
    """The registry cannot be used at the moment: others write, or the disk is full or read-only; it may be later."""


class ConfigError(GardenerError):
    """A setting is unknown or has an impossible value."""

    exit_code = 2


def error_from_json(values: object, *, otherwise: str) -> GardenerError:
    """The error that `GardenerError.to_json` wrote; a `TrainingError` that says ``otherwise`` where it is none."""
    known = globals().get(str(values.get("class"))) if isinstance(values, dict) else None
    if not (isinstance(values, dict) and isinstance(known, type) and issubclass(known, GardenerError)):
        return TrainingError(otherwise)
    message, next_step = values.get("message"), values.get("next_step")
    fields = {name: values[name] for name in known.fields if isinstance(values.get(name), int | float)}
    if not (isinstance(message, str) and isinstance(next_step, str)):
        return TrainingError(otherwise)
    return known(message, next_step=next_step, **fields)
