"""Every error a user can meet: what happened, to which thing, and what to do next.

``GardenerError`` carries the next step apart from the message, so that the command line can set it on its own line.
``exit_code`` is 2 where the user's input is at fault (usage), 1 where the work failed.
"""

from __future__ import annotations


class GardenerError(Exception):
    """Base of all errors of this package.

    Args:
        message: what happened and to which thing, one sentence.
        next_step: what the user can do about it, one sentence; empty where nothing sensible can be said.
    """

    exit_code = 1

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()


class TrainingError(GardenerError):
    """A training could not start, go on, or finish."""


class TrainingTimeoutError(TrainingError):
    """Waiting for a training took longer than the caller allowed; the training itself goes on."""


class TrainingCancelledError(TrainingError):
    """Raised inside a run when somebody cancelled it; ends the run as CANCELLED, with a checkpoint."""


class TimeLimitError(TrainingError):
    """Raised inside a run whose time limit is over; what it has trained is registered with the evidence there is."""


class TrainingInterruptedError(TrainingError):
    """Raised inside a run whose process has to end, for no reason of the run's own; it may just go on later."""


class PeersLostError(TrainingInterruptedError):
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
        least_bytes: that budget, where it is known.
    """

    def __init__(self, message: str, *, next_step: str = "", least_bytes: float = float("inf")) -> None:
        super().__init__(message, next_step=next_step)
        self.least_bytes = least_bytes


class AdapterError(GardenerError):
    """An adapter's files are missing, damaged, or do not fit the model."""


class RegistryError(GardenerError):
    """The registry cannot be read or written, or has no such project."""


class RegistryUnavailableError(RegistryError):
    """The registry cannot be used at the moment: others write, or the disk is full or read-only; it may be later."""


class ConfigError(GardenerError):
    """A setting is unknown or has an impossible value."""

    exit_code = 2
