"""Work that grows with a request or an answer, on a thread beside the event loop, so that others are answered meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")

#: Bytes that are read or written on the loop itself: milliseconds, and a thread would cost as much.
_AT_ONCE_BYTES = 2**16


async def off_loop(size_bytes: int, work: Callable[[], _Result]) -> _Result:
    """What ``work`` makes of about so many bytes; raises what it raises."""
    return work() if size_bytes <= _AT_ONCE_BYTES else await asyncio.to_thread(work)
