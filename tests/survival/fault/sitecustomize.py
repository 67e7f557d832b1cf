"""Faults for worker processes of tests: with this directory on PYTHONPATH, a worker's n-th write goes wrong.

``GARDENER_TEST_FAULT`` names a JSON file: ``{"action": ..., "at": n}``. The calls counted are writes of Python files,
fsync, rename, replace, mkdir, MLX's own writing of safetensors and commits of SQLite. Actions are errors of the call
(ENOSPC, EIO, short), deaths in it (kill, abort), and memory that runs out from it on: "cgroup", by the kernel's killer in
the cgroup whose ``cgroup.procs`` is under "procs", and "rlimit", where no further mapping is granted. "orphan" is none of
a worker: its supervisor is killed as soon as it has started it. With "of" only calls of that name are counted; "after" says
whether a death comes after the call, which else every second one does. The file is deleted when the fault happens, so that the
next worker lives; how many calls there were is written beside it. Nothing of this is in the package.
"""

from __future__ import annotations

import atexit
import builtins
import errno
import io
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

_ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
DEATHS = ("kill", "abort", "cgroup")
#: Bytes that a worker takes at once in a cgroup which grants it less.
_TOO_MUCH = 64 * 2**20


class Fault:
    """Counts calls and breaks one of them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        chosen = json.loads(file.read_text())
        self.action, self.at, self.procs = chosen["action"], chosen["at"], chosen.get("procs")
        self.of, self.after = chosen.get("of"), chosen.get("after", self.at % 2)
        self.calls: list[str] = []
        self._lock = threading.Lock()
        atexit.register(lambda: file.with_suffix(".calls").write_text(json.dumps(self.calls)))

    def is_now(self, label: str) -> bool:
        with self._lock:
            self.calls.append(label)
            number = len(self.calls) if self.of is None else self.calls.count(label)
            if self.of not in (None, label) or number != self.at:
                return False
        self.file.unlink(missing_ok=True)
        if self.action == "rlimit":
            return self._no_more_memory()
        return True

    def _no_more_memory(self) -> bool:
        """The call goes well, and what comes after it finds no more memory."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        return False

    def strike(self, label: str) -> None:
        """Kill the process or raise, as the fault file asks."""
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action == "abort":
            os.abort()
        if self.action == "cgroup":
            Path(self.procs).write_text(str(os.getpid()))
            taken = bytearray(_TOO_MUCH)
            taken[:: resource.getpagesize()] = b"x" * len(taken[:: resource.getpagesize()])
        number = _ERRORS.get(self.action, errno.EIO)
        raise OSError(number, os.strerror(number), label)


def install(fault: Fault) -> None:
    real_open = io.open

    class BrokenFile(io.FileIO):
        def write(self, data: Any) -> int:
            if not fault.is_now("write"):
                return super().write(data)
            half = super().write(bytes(data)[: max(1, len(data) // 2)])
            if fault.action == "short":
                return half
            fault.strike("write")
            return 0

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return real_open(file, mode, buffering, *rest, **options)
        names = (
            dict(zip(("encoding", "errors", "newline", "closefd", "opener"), rest, strict=False)) | options
        )
        raw = BrokenFile(
            file, mode.replace("b", "").replace("t", ""), names.get("closefd", True), names.get("opener")
        )
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(
            buffer, names.get("encoding") or "utf-8", names.get("errors"), names.get("newline")
        )

    io.open = builtins.open = opened  # type: ignore[assignment]

    for name in ("fsync", "rename", "replace", "mkdir"):
        real = getattr(os, name)

        def broken(*arguments: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            if fault.is_now(name) and fault.action != "short":
                if fault.after and fault.action in DEATHS:
                    real(*arguments, **options)
                fault.strike(name)
            return real(*arguments, **options)

        setattr(os, name, broken)

    class BrokenConnection(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if sql == "COMMIT" and fault.is_now("commit") and fault.action != "short":
                if fault.action in DEATHS:
                    if fault.after:
                        super().execute(sql)
                    fault.strike("commit")
                super().execute("ROLLBACK")  # as SQLite does where the disk is full
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *arguments)

    real_connect = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return real_connect(*arguments, **options, factory=BrokenConnection)

    sqlite3.connect = connect  # type: ignore[assignment]

    import_module("mlx_gardener")  # opens the fast BLAS, which must come before MLX
    mx = import_module("mlx.core")
    real_save = mx.save_safetensors

    def save(file: Any, arrays: Any, **options: Any) -> None:
        real_save(file, arrays, **options)
        if isinstance(file, str) and fault.is_now("save_safetensors"):
            os.truncate(file, Path(file).stat().st_size // 2)
            if fault.action in DEATHS:
                fault.strike("save_safetensors")
            raise RuntimeError("[write] Unable to write to file.")

    mx.save_safetensors = save


def die_after_starting_a_worker(file: Path) -> None:
    class LastStart(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: Any, **options: Any) -> None:
            super().__init__(command, **options)
            if "mlx_gardener.runs.worker" in command:
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    subprocess.Popen = LastStart  # type: ignore[misc]


if "GARDENER_TEST_FAULT" in os.environ:
    chosen = Path(os.environ["GARDENER_TEST_FAULT"])
    is_orphan = chosen.exists() and json.loads(chosen.read_text())["action"] == "orphan"
    if "mlx_gardener.runs.worker" in sys.orig_argv and chosen.exists() and not is_orphan:
        install(Fault(chosen))
    if "mlx_gardener.runs.supervisor" in sys.orig_argv and is_orphan:
        die_after_starting_a_worker(chosen)
