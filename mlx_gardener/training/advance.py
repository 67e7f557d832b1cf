"""How far an update or a validation is, while it is computed.

In: the share done of one batch after the other. Out: the share done of all, and the seconds that are left. Cost: nothing.
"""

from __future__ import annotations

from collections.abc import Callable

#: What takes longer tells its progress, every so many seconds.
SLOW_SECONDS, TELL_SECONDS = 2.0, 1.0


class Advance:
    """Called between the segments of ``parts`` batches, with the share done (0 to 1) of the batch that is computed.

    Args:
        look: called each time, before all else; may raise.
        tell: told the share done of all and the seconds left.
        seconds: a clock.

    Attributes:
        place: batches done, and the share of the one that is computed; set back where something is computed again.
    """

    def __init__(
        self,
        look: Callable[[], None],
        tell: Callable[[float, float], None],
        seconds: Callable[[], float],
        parts: int,
    ) -> None:
        self._look, self._tell, self._seconds, self._parts = look, tell, seconds, parts
        self._started = self._told = seconds()
        self.place = (0, 0.0)

    def __call__(self, share: float) -> None:
        """A segment begins."""
        self._look()
        done, before = self.place
        done += share < before  # it is the next batch's
        self.place = (done, share)
        now, whole = self._seconds(), (done + share) / self._parts
        if now - self._started >= SLOW_SECONDS and now - self._told >= TELL_SECONDS and whole > 0:
            self._told = now
            self._tell(whole, (now - self._started) * (1 - whole) / whole)
