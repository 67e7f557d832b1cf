"""Locks on files and directories that die with their process, so that what a dead one left behind is recognised.

A lock belongs to the file, not to its name: it stays while a directory is renamed. Locks of one process exclude each
other too. `flock` on local file systems of Linux and macOS; cost: one descriptor a lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.01


def take_lock(
    path: Path, *, shared: bool = False, make: bool = False, wait_seconds: float = 0.0
) -> int | None:
    """Lock a file or directory.

    Args:
        shared: with others who share it; else alone.
        make: an empty file where there is nothing.

    Returns:
        A descriptor whose closing (or the process's end) releases the lock; None where others still have it after
        ``wait_seconds``.

    Raises:
        OSError: there is nothing at ``path``, or it cannot be made, opened or locked.
    """
    deadline = time.monotonic() + wait_seconds
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if make else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return None
                time.sleep(_POLL_SECONDS)
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def hold(path: Path, *, make: bool = False, wait_seconds: float = 5.0) -> Iterator[None]:
    """Have ``path`` to oneself while the block runs, under whatever name; ``make`` as in `take_lock`.

    Raises:
        OSError: there is nothing at ``path``, it cannot be locked, or (`BlockingIOError`) others have it for so long.
    """
    descriptor = take_lock(path, make=make, wait_seconds=wait_seconds)
    if descriptor is None:
        raise BlockingIOError(errno.EAGAIN, "another process works on it", str(path))
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether somebody alive works on ``path``; False where it is gone."""
    try:
        descriptor = take_lock(path, shared=True)  # who asks at the same time is not in the way
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None
