"""How a process ends. What: an exit code goes in, the process ends with it. Cost: none.

A base that is being loaded cannot be stopped, and a process that ends while MLX computes for another of its threads is aborted
("terminate called without an active exception", after the threads of MLX were taken down beneath it).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End as `sys.exit` does, or at once where a thread is left that nobody waits for."""
    if any(thread.daemon and thread is not threading.current_thread() for thread in threading.enumerate()):
        end_at_once(code)
    sys.exit(code)


def end_at_once(code: int) -> NoReturn:
    """End without taking anything down; what was said and logged is written before."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads, or it is closed
            stream.flush()
    os._exit(code)
