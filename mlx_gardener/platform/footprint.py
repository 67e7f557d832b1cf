"""What a process takes of the machine's memory, and what the machine has left, in bytes.

The footprint is the figure users see and the budget is kept on: ``phys_footprint`` on macOS (Activity Monitor's
"Memory"), resident set size on Linux. MLX's own counters leave out its cache, the weights' file pages and Python.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import sys
import threading
from functools import cache
from pathlib import Path

import psutil

#: Made once: a new path per update costs memory (`mlx_gardener.platform.pressure._below` says why).
_OWN_STATUS = Path("/proc/self/status")
#: Between two looks of a `FootprintWatch`.
LOOK_SECONDS = 0.01


def process_footprint_bytes(pid: int | None = None) -> int:
    """Memory that the process (this one by default) takes now, in bytes; about 20 microseconds.

    Raises:
        psutil.NoSuchProcess: there is no such process.
    """
    if sys.platform == "darwin":
        return _mac_footprint(os.getpid() if pid is None else pid)[0]
    return int(psutil.Process(pid).memory_info().rss)


def process_peak_footprint_bytes() -> int:
    """The most this process has taken so far, in bytes."""
    if sys.platform == "darwin":
        return _mac_footprint(os.getpid())[1]
    match = re.search(r"^VmHWM:\s+(\d+) kB", _OWN_STATUS.read_text(), flags=re.MULTILINE)
    return int(match[1]) * 1024 if match else process_footprint_bytes()


class FootprintWatch:
    """Looks at this process's footprint every `LOOK_SECONDS` from a thread, as systems keep only its highest ever; 0.2 % of a core.

    A peak within a step lasts some milliseconds, and nothing that looks between two steps sees it.
    """

    def __init__(self) -> None:
        self._highest = process_footprint_bytes()
        self._done = threading.Event()
        threading.Thread(target=self._look, name="footprint", daemon=True).start()

    @property
    def highest_bytes(self) -> int:
        """The highest since the watch began, or was begun again."""
        return self._highest

    def begin_again(self) -> None:
        """Forget what was seen."""
        self._highest = process_footprint_bytes()

    def close(self) -> None:
        """Stop looking."""
        self._done.set()

    def _look(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            self._highest = max(self._highest, process_footprint_bytes())


class _RusageInfoV4(ctypes.Structure):
    """``struct rusage_info_v4`` of macOS's <sys/resource.h>; only the footprints are read."""

    _fields_ = [
        ("ri_uuid", ctypes.c_uint8 * 16),
        *[
            (name, ctypes.c_uint64)
            for name in [
                "user_time",
                "system_time",
                "pkg_idle_wkups",
                "interrupt_wkups",
                "pageins",
                "wired_size",
                "resident_size",
                "phys_footprint",
                "proc_start_abstime",
                "proc_exit_abstime",
                "child_user_time",
                "child_system_time",
                "child_pkg_idle_wkups",
                "child_interrupt_wkups",
                "child_pageins",
                "child_elapsed_abstime",
                "diskio_bytesread",
                "diskio_byteswritten",
                "cpu_time_qos_default",
                "cpu_time_qos_maintenance",
                "cpu_time_qos_background",
                "cpu_time_qos_utility",
                "cpu_time_qos_legacy",
                "cpu_time_qos_user_initiated",
                "cpu_time_qos_user_interactive",
                "billed_system_time",
                "serviced_system_time",
                "logical_writes",
                "lifetime_max_phys_footprint",
                "instructions",
                "cycles",
                "billed_energy",
                "serviced_energy",
                "interval_max_phys_footprint",
                "runnable_time",
            ]
        ],
    ]


@cache
def _libproc() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("proc") or "/usr/lib/libproc.dylib", use_errno=True)


def _mac_footprint(pid: int) -> tuple[int, int]:
    """(now, most so far) of a process on macOS."""
    info = _RusageInfoV4()
    if _libproc().proc_pid_rusage(ctypes.c_int(pid), ctypes.c_int(4), ctypes.byref(info)) != 0:
        raise psutil.NoSuchProcess(pid)
    return int(info.phys_footprint), int(info.lifetime_max_phys_footprint)
