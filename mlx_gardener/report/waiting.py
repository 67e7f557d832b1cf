"""A word on stderr while something is waited for that says nothing by itself; also where stderr is no terminal.

In: what is done, in words, or shares of it. Out: nothing for who does not wait long. Cost: a timer's thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlx_gardener.report.text import duration, safe_text

#: Nobody wonders before (judgement).
PATIENCE_SECONDS = 3.0


@contextmanager
def said_if_slow(what: str, *, silent: bool = False) -> Iterator[None]:
    """Say ``what`` once, where the block takes longer than `PATIENCE_SECONDS`."""

    def say() -> None:
        sys.stderr.write(f"{safe_text(what)} ...\n")
        sys.stderr.flush()

    timer = threading.Timer(PATIENCE_SECONDS, say)
    timer.daemon = True
    if not silent:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress_line(
    every_seconds: float = 10.0, *, paced_from: float = 0.0
) -> Iterator[Callable[[float, str], None]]:
    """Progress with the time that is left, on stderr: in place on a terminal, every ten seconds elsewhere.

    Args:
        paced_from: the share from which on the time that is left is told, by the pace from there on: what comes before may take a time
            of its own, which foretells nothing.
    """
    first, started, shown = paced_from, None if paced_from else time.monotonic(), 0.0
    terminal = sys.stderr.isatty()

    def tell(share: float, message: str) -> None:
        nonlocal first, started, shown
        now = time.monotonic()
        if started is None and share >= paced_from:
            first, started = share, now
        if now - shown < (0.2 if terminal else every_seconds):
            return
        shown, left = now, None
        if started is not None and share - first > 0.02 * (1 - first):
            left = (now - started) * (1 - share) / (share - first)
        line = f"{share:4.0%}  {safe_text(message)}"
        line += "" if left is None or left < 1 else f", about {duration(left)} left"
        sys.stderr.write(f"\r\x1b[K{line}" if terminal else f"{line}\n")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        if terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
