"""Python processes that import nothing from the directory they are started in, and how processes end.

``python -m`` and the children of `multiprocessing` look for modules in the working directory first. That is where people
stand when they train on a repository, and a ``psutil.py`` in it would be run.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Finds this package where the starting process has it, behind the standard library, as a checkout may not be installed.
_START = """
import runpy, sys
root, module = sys.argv[1:3]
del sys.argv[1:3]
at = next((number for number, place in enumerate(sys.path) if place.endswith("-packages")), len(sys.path))
sys.path.insert(at, root)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package, as ``python -m`` would, without the working directory."""
    root = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-P", "-c", _START, root, module, *arguments]


_SIGNALS = {
    signal.SIGABRT: "a library gave up",
    signal.SIGALRM: "the other ranks did not connect in time",
    signal.SIGSEGV: "a defect in a library, or memory that could not be had",
    signal.SIGBUS: "a file that was being read was cut short, or bad memory",
    signal.SIGILL: "a library was built for another processor",
    signal.SIGKILL: "by hand, or by the system where memory ran out",
    signal.SIGXCPU: "the limit on processor time was reached",
    signal.SIGXFSZ: "the limit on the size of files was reached",
}


def how_it_ended(code: int, *, out_of_memory: bool = False, gpu_watchdog: bool = False) -> str:
    """How a process ended that could not say it itself, as the end of a sentence.

    Args:
        code: as `subprocess.Popen.returncode`: the negative number of a signal, or an exit code.
        out_of_memory: whether the kernel or the process's log says that memory ran out.
        gpu_watchdog: whether the log says that macOS ended its work on the GPU.
    """
    if code >= 0:
        because = "memory ran out" if out_of_memory else ""
        how = f"ended with exit code {code}"
    else:
        try:
            name, because = signal.Signals(-code).name, _SIGNALS.get(signal.Signals(-code), "")
        except ValueError:
            name, because = "unnamed", ""
        how = f"was ended by signal {-code} ({name})"
        if out_of_memory:
            because = "memory ran out"
    if gpu_watchdog:
        because = "macOS's GPU watchdog ended its work, which held up the display"
    return how + (f": {because}" if because else "")


@contextmanager
def safe_children() -> Iterator[None]:
    """Children of `multiprocessing` that are started in the block import nothing from the working directory."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def load_of_last_minute() -> float:
    """What all processes together wanted of the processors lately, as a share of them; infinite where it is not known.

    The kernel's load average, which takes a minute or two to follow; asking costs nothing.
    """
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return math.inf


class OthersWork:
    """What other processes take of the processors, from its making on."""

    def __init__(self) -> None:
        self._began = self._look()

    @property
    def share(self) -> float:
        """Of all processor time since, 0 to 1, that others worked."""
        wall, busy, own = (now - before for now, before in zip(self._look(), self._began, strict=True))
        return min(1.0, max(0.0, (busy - own) / max(1e-9, wall)))

    def _look(self) -> tuple[float, float, float]:
        """(seconds of all processors, seconds that any process worked on them, seconds of this process)."""
        import psutil

        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        everything = sum(times[:8])
        idle = times.idle + getattr(times, "iowait", 0.0)
        return everything, everything - idle, own.user + own.system
