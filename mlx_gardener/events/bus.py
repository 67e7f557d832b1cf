"""The step-callback bus: subscribers of a run's events that can neither slow nor break it.

Every subscriber has its own thread and its own bounded queue. ``publish`` only appends to queues (microseconds); a slow
subscriber loses the *oldest* droppable events (steps, memory) and never a phase, a warning or the end; one that raises is
logged and goes on receiving.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mlx_gardener.events.kinds import DROPPABLE, Event

logger = logging.getLogger(__name__)

#: What is called with every event.
EventCallback = Callable[[Event], None]


class _Mailbox:
    """One subscriber: a bounded queue and the thread that empties it."""

    def __init__(self, callback: EventCallback, name: str, capacity: int) -> None:
        self.callback = callback
        self.name = name
        self.capacity = capacity
        self.dropped = 0
        self._queue: deque[Event] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._idle = True
        self.thread = threading.Thread(target=self._deliver, name=f"events-{name}", daemon=True)
        self.thread.start()

    def put(self, event: Event) -> None:
        with self._wake:
            if self._closed:
                return
            if len(self._queue) >= self.capacity:
                self._drop_oldest()
            self._queue.append(event)
            self._wake.notify_all()

    def _drop_oldest(self) -> None:
        for position, queued in enumerate(self._queue):
            if isinstance(queued, DROPPABLE):
                del self._queue[position]
                self.dropped += 1
                return

    def _deliver(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if not self._queue:
                    return
                event = self._queue.popleft()
                self._idle = False
            try:
                self.callback(event)
            except Exception:
                logger.exception("event subscriber %s failed on %s", self.name, type(event).__name__)
            finally:
                with self._wake:
                    self._idle = True
                    self._wake.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        with self._wake:
            return self._wake.wait_for(lambda: not self._queue and self._idle, timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        self.flush(timeout_seconds)
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if threading.current_thread() is not self.thread:
            self.thread.join(timeout_seconds)


class EventBus:
    """Hands every published event to every subscriber, each on its own thread, in order."""

    def __init__(self) -> None:
        self._mailboxes: dict[int, _Mailbox] = {}
        self._lock = threading.Lock()
        self._next_key = 0

    def subscribe(
        self, callback: EventCallback, *, name: str = "", capacity: int = 1000
    ) -> Callable[[], None]:
        """Call ``callback(event)`` for every later event; returns the function that ends it.

        Args:
            callback: any callable; its exceptions are logged with ``name`` and go no further.
            name: what the log calls it.
            capacity: how many undelivered events are kept before the oldest step, memory or progress event is dropped.
        """
        mailbox = _Mailbox(callback, name or getattr(callback, "__name__", "callback"), capacity)
        with self._lock:
            key = self._next_key
            self._next_key += 1
            self._mailboxes[key] = mailbox

        def unsubscribe() -> None:
            with self._lock:
                found = self._mailboxes.pop(key, None)
            if found is not None:
                found.close(timeout_seconds=1.0)

        return unsubscribe

    def publish(self, event: Event) -> None:
        """Queue ``event`` for every subscriber and return at once."""
        with self._lock:
            mailboxes = list(self._mailboxes.values())
        for mailbox in mailboxes:
            mailbox.put(event)

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Wait until all subscribers have seen everything published so far; False when time ran out first."""
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            mailboxes = list(self._mailboxes.values())
        return all(mailbox.flush(max(0.0, deadline - time.monotonic())) for mailbox in mailboxes)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Deliver what is queued, then end all subscriptions."""
        self.flush(timeout_seconds)
        with self._lock:
            mailboxes, self._mailboxes = list(self._mailboxes.values()), {}
        for mailbox in mailboxes:
            mailbox.close(timeout_seconds=0.5)
