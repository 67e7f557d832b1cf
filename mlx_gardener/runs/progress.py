"""One run's progress: never backwards, written to the registry, told to every callback.

In: `update_progress` from the run. Out: a row in the registry, a `ProgressChanged` event on the bus, and calls of the
registered callbacks on threads of their own, so that a callback may be slow, fail, or ask the tracker for its progress
without harm. A registry that cannot be written holds nothing up: the update is left out, and that is said once.
Cost of an update: one small SQLite write (p99 well under 1 ms, see ``benchmarks/promises.py``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import RegistryError
from mlx_gardener.events import (
    PHASE_PERCENT,
    Event,
    EventBus,
    ProgressChanged,
    TrainingPhase,
    TrainingProgress,
    WarningRaised,
)

if TYPE_CHECKING:
    from mlx_gardener.registry import ProjectRegistry

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[TrainingProgress], None]
#: How long an update waits for the registry while others write, and for how long at most it is left in peace after that.
_PATIENCE_SECONDS, _MOST_PEACE_SECONDS = 0.5, 8.0


class TrainingProgressTracker:
    """The current `TrainingProgress` of one training; safe to use from any thread.

    Args:
        registry: where every update is written; None keeps it in memory only.
        training_id: the registry's training to write to; needed with ``registry``.
        bus: where `ProgressChanged` events go; a bus of its own when None.
        percent: where the run stands already, as one that goes on after its process died.
    """

    def __init__(
        self,
        registry: ProjectRegistry | None = None,
        training_id: str | None = None,
        *,
        bus: EventBus | None = None,
        percent: float = 0.0,
    ) -> None:
        if registry is not None and training_id is None:
            raise ValueError("a tracker that writes the registry needs a training_id")
        self.bus = bus or EventBus()
        self._registry = registry
        self._training_id = training_id
        self._lock = threading.Lock()  # guards _progress only; never held while anything else runs
        self._write_lock = threading.Lock()  # keeps registry rows and events in the order of the updates
        self._progress = TrainingProgress(TrainingPhase.INITIALIZING, percent, "Starting")
        self._heartbeat_stop: threading.Event | None = None
        self._unsaid_since: float | None = None  # monotonic; the registry was told everything when None
        self._peace_seconds = _PATIENCE_SECONDS
        self._next_try = 0.0

    @property
    def progress(self) -> TrainingProgress:
        """The latest progress."""
        with self._lock:
            return self._progress

    def add_progress_callback(self, callback: ProgressCallback) -> Callable[[], None]:
        """Call ``callback(progress)`` after every update; returns the function that ends it."""

        def deliver(event: Event) -> None:
            if isinstance(event, ProgressChanged):
                callback(progress_of(event))

        return self.bus.subscribe(deliver, name=getattr(callback, "__name__", "progress callback"))

    def update_progress(
        self, phase: TrainingPhase, percent: float, message: str, details: dict[str, Any] | None = None
    ) -> TrainingProgress:
        """Record where the run stands.

        Args:
            phase: the phase it is in; once a final phase was set, nothing changes any more.
            percent: of the whole run, 0 to 100; held inside the phase's share and never below what was told before.
            message: one line for people.
            details: see `TrainingProgress`; laid over the earlier ones, of which only what was said of another thing's end goes.

        Returns:
            The progress as recorded.
        """
        with self._write_lock:
            with self._lock:
                before = self._progress
                if before.phase.is_final:
                    return before
                if phase in PHASE_PERCENT:
                    low, high = PHASE_PERCENT[phase]
                    percent = min(max(percent, low), high)
                else:  # failed or cancelled: it got as far as it got
                    percent = before.progress_percent
                percent = max(percent, before.progress_percent)
                kept = {**_lasting(before.details), **(details or {})}
                progress = self._progress = TrainingProgress(phase, percent, message, kept)
            self._tell(progress)
        return progress

    def _tell(self, progress: TrainingProgress) -> None:
        if self._registry is not None and self._training_id is not None:
            self._tell_registry(self._registry, self._training_id, progress)
        self.bus.publish(
            ProgressChanged(
                progress.phase,
                progress.progress_percent,
                progress.message,
                progress.details,
                timestamp=progress.timestamp,
            )
        )

    def _tell_registry(self, registry: ProjectRegistry, training_id: str, progress: TrainingProgress) -> None:
        """Write the row, or leave it out: no training ends, or waits for long, because of that."""
        now = time.monotonic()
        if now < self._next_try and not progress.phase.is_final:
            return
        try:
            registry.update_training(training_id, progress, patience_seconds=_PATIENCE_SECONDS)
        except RegistryError as error:
            self._next_try = time.monotonic() + self._peace_seconds
            self._peace_seconds = min(2 * self._peace_seconds, _MOST_PEACE_SECONDS)
            if self._unsaid_since is None:
                self._unsaid_since = now
                message = (
                    f"{error.message} The training goes on; its progress is recorded again when that is over."
                )
                logger.warning("%s", message)
                self.bus.publish(WarningRaised(message))
            return
        if self._unsaid_since is not None:
            logger.info("the registry is written again after %.0f s", now - self._unsaid_since)
        self._unsaid_since, self._peace_seconds = None, _PATIENCE_SECONDS

    def start_heartbeat(
        self, interval_seconds: float, refresh: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        """Tell the progress again whenever ``interval_seconds`` pass without an update (a long step, a big file).

        Args:
            interval_seconds: the longest silence.
            refresh: details that change by themselves (memory); laid over the latest ones.
        """
        self.stop_heartbeat()
        stop = self._heartbeat_stop = threading.Event()

        def beat() -> None:
            while not stop.wait(interval_seconds / 4):
                before = self.progress
                if before.phase.is_final:
                    return
                if 0 <= time.time() - before.timestamp < interval_seconds * 0.75:  # clocks are set back, too
                    continue
                details = {**before.details, **(refresh() if refresh else {})}
                with self._write_lock:
                    with self._lock:
                        if self._progress is not before:
                            continue  # the run spoke meanwhile
                        again = self._progress = replace(before, details=details, timestamp=time.time())
                    self._tell(again)

        threading.Thread(target=beat, name="progress-heartbeat", daemon=True).start()

    def stop_heartbeat(self) -> None:
        """End the heartbeat; safe to call twice."""
        if self._heartbeat_stop is not None:
            self._heartbeat_stop.set()
            self._heartbeat_stop = None


def _lasting(details: dict[str, Any]) -> dict[str, Any]:
    """Details that are true of the run and not only of what it just did."""
    return {name: value for name, value in details.items() if name not in ("eta_seconds", "share")}


def progress_of(event: ProgressChanged) -> TrainingProgress:
    """The `TrainingProgress` that an event carries."""
    return TrainingProgress(
        event.phase, event.progress_percent, event.message, event.details, timestamp=event.timestamp
    )
