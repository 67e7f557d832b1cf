"""Who owns a training: a process is its number and the time it started, as numbers are used again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil

#: How far a process's start time may lie from the recorded one and still be the same process, seconds.
_START_TOLERANCE = 2.0
#: Start times from here on are seconds since the epoch: macOS's, and those that earlier versions recorded on Linux.
_EPOCH_TIMES = 1e9


def start_time(pid: int) -> float | None:
    """When a process started, in seconds since the epoch, or on Linux since the system started; None where there is none.

    Linux knows the latter only. What psutil makes of it moves whenever the clock is set (proc(5), btime), and a living
    training would be taken for a dead one.
    """
    if not sys.platform.startswith("linux"):
        return _since_epoch(pid)
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    ticks = int(status.rpartition(")")[2].split()[19])  # starttime, field 22; the name before may hold spaces
    return ticks / os.sysconf("SC_CLK_TCK")


def _since_epoch(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int | None, started: float | None) -> bool:
    """Whether the process that was recorded still runs; a later one with the same number does not count."""
    if pid is None or started is None:
        return False
    now = _since_epoch(pid) if started >= _EPOCH_TIMES else start_time(pid)
    try:
        same = now is not None and abs(now - started) < _START_TOLERANCE
        return same and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
