"""Work that grows with a request or an answer, on a thread beside the event loop, so that others are answered meanwhile.

Two at a time: each takes up to ten times the size of its body while it lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")

#: Bytes that are read or written on the loop itself: milliseconds, and a thread would cost as much.
_AT_ONCE_BYTES = 2**16
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="serve-off-loop")


async def off_loop(size_bytes: int, work: Callable[[], _Result]) -> _Result:
    """What ``work`` makes of about so many bytes; raises what it raises."""
    if size_bytes <= _AT_ONCE_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)
