"""The reasons to stop a run early, watched for beside its work. Cost: a thread that asks the registry five times a second."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlx_gardener.errors import (
    GardenerError,
    TimeLimitError,
    TrainingCancelledError,
    TrainingInterruptedError,
)
from mlx_gardener.platform.processes import load_of_last_minute
from mlx_gardener.registry import ProjectRegistry

if TYPE_CHECKING:
    from mlx_gardener.training.time_plan import Clock

logger = logging.getLogger(__name__)

#: How often the registry is asked for a wish to cancel; one indexed read, about 20 microseconds.
CANCEL_POLL_SECONDS = 0.2


class Interrupt:
    """The reasons to stop a run early: somebody cancelled it, its time is over, or its process has to end.

    A thread watches for them; calling the object raises the reason, and is cheap enough (one attribute) to be called
    between the segments of a step.

    Args:
        timeout_minutes: the run's time limit, of which ``seconds_used`` are gone; 0 for none.
        must_end: asked several times a second; says in a sentence why the process has to end, else None.
    """

    def __init__(
        self,
        registry: ProjectRegistry,
        training_id: str,
        timeout_minutes: float,
        *,
        seconds_used: float = 0.0,
        must_end: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._training_id = training_id
        self._timeout_minutes = timeout_minutes
        self._limit_seconds = timeout_minutes * 60 if timeout_minutes else math.inf
        self._began = time.monotonic() - seconds_used
        self._stands_since: float | None = None
        self._must_end = must_end
        self._reason: GardenerError | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._watch, name="interrupt", daemon=True).start()

    def __call__(self) -> None:
        """Raises:
        TrainingCancelledError: the training was cancelled.
        TimeLimitError: its time is over.
        TrainingInterruptedError: its process has to end.
        """
        if self._reason is not None:
            raise self._reason

    @property
    def clock(self) -> Clock:
        """The time limit, and what is used of it."""
        from mlx_gardener.training.time_plan import Clock

        return Clock(self._limit_seconds, self._used_seconds, load=load_of_last_minute)

    @contextmanager
    def clock_stands(self) -> Iterator[None]:
        """Meanwhile no time is used: for what depends on a network, and on nothing that the limit was chosen for."""
        self._stands_since = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - self._stands_since
            self._stands_since = None

    def _used_seconds(self) -> float:
        now = self._stands_since
        return (time.monotonic() if now is None else now) - self._began

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(CANCEL_POLL_SECONDS, max(0.0, self.clock.left_seconds) + 0.001)):
            if self.clock.left_seconds <= 0:
                self._reason = TimeLimitError(
                    f"The training reached its time limit of {self._timeout_minutes:g} minutes.",
                    next_step="Allow a longer --timeout.",
                )
                return
            if (why := self._must_end()) is not None:
                self._reason = TrainingInterruptedError(why)
                return
            try:
                cancelled = self._registry.cancel_requested(self._training_id)
            except GardenerError:
                logger.exception("the registry could not be asked for a wish to cancel; asking again")
                continue
            if cancelled:
                self._reason = TrainingCancelledError("The training was cancelled.")
                return
