"""How a process ends. What: an exit code goes in, the process ends with it. Cost: none.

MLX aborts a process ("terminate called without an active exception") whose interpreter is taken down while another thread comes
back from it: one that still loads a base, which cannot be stopped, and one that has ended already in Python's eyes, as its
compiled functions are let go of only then. And ranks of a group that is taken down wait for those that are gone.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End as `sys.exit` does, or at once where MLX was used."""
    if "mlx.core" in sys.modules:
        atexit._run_exitfuncs()  # of others, as coverage's
        end_at_once(code)
    sys.exit(code)


def end_at_once(code: int) -> NoReturn:
    """End without taking anything down, or doing what was left for the end; what was said and logged is written before."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads, or it is closed
            stream.flush()
    os._exit(code)
