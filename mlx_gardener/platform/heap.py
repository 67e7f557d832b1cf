"""Let glibc give freed buffers back to the system at once.

glibc takes large allocations from the system one by one and returns them when they are freed, but it raises the size from
which it does so, up to 32 MiB, each time one is freed (mallopt(3), M_MMAP_THRESHOLD). From then on a training's arrays lie
in heaps that shrink only from their ends: measured, 500 MB of 3 GB. Setting the size once keeps it there. Other systems'
allocators need no such word.
"""

from __future__ import annotations

import ctypes
import sys

#: mallopt's number for the threshold (malloc.h).
_M_MMAP_THRESHOLD = -3
#: Bytes from which an allocation is its own mapping: small against any array of a step, large against a page.
THRESHOLD_BYTES = 256 * 1024


def return_freed_buffers() -> bool:
    """Fix the threshold for this process; whether there was one to fix."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, THRESHOLD_BYTES))
