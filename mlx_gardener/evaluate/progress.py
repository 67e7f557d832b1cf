"""How far an evaluation is: its parts weighed by the tokens that go forward for them, so that what is left can be foretold.

In: how many tokens each part is about, and whether anything of it was computed: what is kept from before takes no time, and does not
count. Out: shares, for who watches. Cost: nothing.
"""

from __future__ import annotations

from collections.abc import Callable


class Progress:
    """What is done of an evaluation.

    Args:
        tell: told the share done (0 to 1) and a line for people.
        tokens: of all parts.
    """

    def __init__(self, tell: Callable[[float, str], None], tokens: float) -> None:
        self.tell, self.all_tokens, self.done_tokens = tell, tokens, 0.0


class Part:
    """One part of it, of ``tokens``; ``interrupt`` is asked while it is computed, and may raise."""

    def __init__(
        self, progress: Progress, tokens: float, message: str, interrupt: Callable[[], None]
    ) -> None:
        self._progress, self._tokens, self._message, self._interrupt = progress, tokens, message, interrupt
        self._computes = False

    def computes(self) -> None:
        """Something of it is computed now; what the bench asks instead of ``interrupt``."""
        self._computes = True
        self._interrupt()

    def tell(self, share: float) -> None:
        """``share`` of it is done."""
        if self._computes:
            done = self._progress.done_tokens + share * self._tokens
            self._progress.tell(min(1.0, done / max(1.0, self._progress.all_tokens)), self._message)

    def end(self) -> None:
        """It is over: what was known before is no part of the work."""
        if self._computes:
            self._progress.done_tokens += self._tokens
        else:
            self._progress.all_tokens -= self._tokens
