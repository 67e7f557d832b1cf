"""Who owns a training: a process is its number and the time it started, as numbers are used again."""

from __future__ import annotations

import psutil

#: How far a process's start time may lie from the recorded one and still be the same process, seconds.
_START_TOLERANCE = 2.0


def start_time(pid: int) -> float | None:
    """When a process started, seconds since the epoch; None where there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int | None, started: float | None) -> bool:
    """Whether the process that was recorded still runs; a later one with the same number does not count."""
    if pid is None or started is None:
        return False
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < _START_TOLERANCE
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
