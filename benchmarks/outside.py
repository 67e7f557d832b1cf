"""Seen from another process: what memory one takes, and loops that keep the machine busy beside it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from mlx_gardener.platform.footprint import process_footprint_bytes

LOOK_SECONDS = 0.02


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """While this lasts so many processes work as hard as they can; also where it is killed they end with it."""
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    running = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


class Outside:
    """Keeps the highest footprint of a process, in bytes; of one below it whose command has ``module``, where that is given."""

    def __init__(self, pid: int, module: str = "") -> None:
        self.highest, self.looks = 0, 0
        self._pid, self._module, self._done = pid, module, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Outside:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        watched = None if self._module else self._pid
        while not self._done.wait(LOOK_SECONDS):
            try:
                if watched is None:
                    watched = self._find()
                    continue
                self.highest = max(self.highest, process_footprint_bytes(watched))
                self.looks += 1
            except psutil.Error:
                watched = None if self._module else self._pid

    def _find(self) -> int | None:
        for process in psutil.Process(self._pid).children(recursive=True):
            if self._module in process.cmdline():
                return process.pid
        self._done.wait(0.2)
        return None
