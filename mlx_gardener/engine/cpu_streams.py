"""CPU streams of MLX, each made once in a thread and used by one engine after the other.

MLX runs a thread for every stream until the process ends, and BLAS keeps about 10 MB for every thread that multiplied.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

_made = threading.local()  # MLX lets a stream be used only in the thread that made it


def cpu_stream(use: str) -> mx.Stream:
    """This thread's stream for ``use``; different uses compute side by side."""
    import mlx.core as mx

    streams: dict[str, mx.Stream] = _made.__dict__.setdefault("streams", {})
    if use not in streams:
        streams[use] = mx.new_stream(mx.cpu)
    return streams[use]
