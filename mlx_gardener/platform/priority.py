"""Give way to the machine's owner: a lower share of the cores and of the disk when both are wanted.

``nice`` 10 on every system: full speed while the cores are idle, about a tenth of a normal process's share of a busy one
on Linux. Not 19, which would starve the thread that feeds the GPU and keep the memory taken for longer.

On Linux desktops the kernel shares cores out among sessions first (``/proc/PID/autogroup``, sched(7)): nice then counts only
within a session, so a run in a session of its own lowers that session too, or it would take as much as all of an
editor's processes together.

macOS has a stronger means, ``setpriority(PRIO_DARWIN_PROCESS, 0, PRIO_DARWIN_BG)``; it is left alone. It binds every thread
to the efficiency cores and throttles disk and network even on an idle machine, so training would crawl all night. ``nice``
does not share out the GPU on any system: there, the trainer itself must pause.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil

NICE = 10
#: The lowest of best effort's eight levels. Not "idle": there, checkpoints could wait for ever on a busy disk.
IO_LEVEL = 7


def lower_priority() -> str:
    """Lower this process's priority and say what was done, as "nice 10, disk best effort 7"; never raises.

    Calling again changes nothing more, and what already was lower stays so. There is no way back without root. Threads
    that run already get the nice value too; later threads and processes inherit it. A session is lowered only where this
    process or its parent began it.
    """
    if sys.platform == "linux":
        return f"{_lower_nice()}, {_lower_disk()}{_lower_session()}"
    return _lower_nice()


def _lower_nice() -> str:
    if not hasattr(os, "setpriority"):
        return "nice not known here"
    try:
        for thread in _threads():
            with suppress(ProcessLookupError):  # a thread that has just ended
                if os.getpriority(os.PRIO_PROCESS, thread) < NICE:
                    os.setpriority(os.PRIO_PROCESS, thread, NICE)
        return f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"
    except OSError as error:
        return f"nice unchanged ({error.strerror})"


def _lower_session(group: Path = Path("/proc/self/autogroup")) -> str:
    """Lower all processes of this session against other sessions; nothing where it is a terminal's, or not known here."""
    if os.getsid(0) not in (os.getpid(), os.getppid()):
        return ""
    try:
        if int(group.read_text().split()[-1]) < NICE:  # "/autogroup-71 nice 0"
            group.write_text(f"{NICE}\n")
        return f", session nice {group.read_text().split()[-1]}"
    except (OSError, ValueError, IndexError):
        return ""


def _threads(root: Path = Path("/")) -> list[int]:
    """What to lower: on Linux nice belongs to each thread; elsewhere 0, which is the process."""
    tasks = root / "proc/self/task"
    return sorted(int(task.name) for task in tasks.iterdir()) if tasks.is_dir() else [0]


def _lower_disk() -> str:
    if sys.platform != "linux":
        return "disk unchanged"
    try:
        process = psutil.Process()
        if process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE:
            return "disk idle"
        process.ionice(psutil.IOPRIO_CLASS_BE, IO_LEVEL)
        return f"disk best effort {IO_LEVEL}"
    except (psutil.Error, OSError, AttributeError, ValueError) as error:
        return f"disk unchanged ({type(error).__name__})"
