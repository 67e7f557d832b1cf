"""How short of memory the machine is now, cheaply enough to ask between two training steps (under 1 ms).

macOS: the kernel's own verdict, which knows its compressor and its swap. Linux has no verdict: it is drawn here from the
memory available, on the machine and under this process's cgroup limits, and from the time lost to stalls (PSI).
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import psutil

Level = Literal["normal", "warning", "critical"]

#: Judgement: 490 MB of 16 GB, less than one busy browser tab takes; the next to ask waits for reclaim or is killed.
CRITICAL_SHARE = 0.03
#: Judgement: 1.3 GB of 16 GB, room to start an ordinary program. earlyoom's default, 10 % of memory *and* of swap, is near.
WARNING_SHARE = 0.08
#: PSI "full", percent of ten seconds in which nothing ran for want of memory. systemd-oomd kills at 60 for 30 s by default.
CRITICAL_FULL_AVG10 = 10.0
#: PSI "some", percent of ten seconds in which some task waited for memory: a fifth is felt as stutter, yet nothing is lost.
WARNING_SOME_AVG10 = 20.0

#: xnu turns its internal levels into libdispatch's flags before it shows them (bsd/kern/kern_memorystatus_notify.c).
_MAC_LEVELS: dict[int, Level] = {1: "normal", 2: "warning", 4: "critical"}
#: Page cache and kernel caches that a cgroup's ``memory.current`` counts and reclaim gives back: MemAvailable's rule.
_RECLAIMABLE = re.compile(r"^(?:active_file|inactive_file|slab_reclaimable) (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class MemoryPressure:
    """The pressure and what is behind it; the bytes are the machine's, or the cgroup's where that has less to give."""

    level: Level
    available_bytes: int
    total_bytes: int


def memory_pressure(root: Path = Path("/")) -> MemoryPressure:
    """The pressure now; ``root`` holds Linux's ``proc`` and ``sys``. Whatever a container hides is left out."""
    if sys.platform == "darwin":
        memory = psutil.virtual_memory()
        level = mac_level(sysctl_int("kern.memorystatus_vm_pressure_level"))
        return MemoryPressure(
            level or level_from([(memory.available, memory.total)]), memory.available, memory.total
        )
    groups = list(_cgroups(root))
    scopes = [_machine(root), *(scope for group in groups if (scope := cgroup_scope(group)))]
    stalls = [
        parse_psi(_read(_below(root, "proc/pressure/memory"))),
        *(_cgroup_stalls(group) for group in groups[:1]),
    ]
    available, total = min(scopes)
    return MemoryPressure(level_from(scopes, stalls), available, total)


def level_from(scopes: Iterable[tuple[int, int]], stalls: Iterable[tuple[float, float]] = ()) -> Level:
    """The level from (available, total) bytes of the machine and its cgroups, and their PSI (some, full) averages."""
    share = min((available / total for available, total in scopes if total), default=1.0)
    some = full = 0.0
    for one_some, one_full in stalls:
        some, full = max(some, one_some), max(full, one_full)
    if share < CRITICAL_SHARE or full > CRITICAL_FULL_AVG10:
        return "critical"
    return "warning" if share < WARNING_SHARE or some > WARNING_SOME_AVG10 else "normal"


def mac_level(value: int | None) -> Level | None:
    """The level behind ``kern.memorystatus_vm_pressure_level``; None for a value that xnu does not give today."""
    return None if value is None else _MAC_LEVELS.get(value)


def parse_meminfo(text: str) -> tuple[int, int] | None:
    """(available, total) in bytes from Linux's /proc/meminfo."""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", text, flags=re.MULTILINE))
    if len(found) < 2:
        return None
    return int(found["MemAvailable"]) * 1024, int(found["MemTotal"]) * 1024


def parse_psi(text: str) -> tuple[float, float]:
    """(some avg10, full avg10) in percent from a PSI file; zeros where the kernel keeps none."""
    found = dict(re.findall(r"^(some|full) avg10=([\d.]+)", text, flags=re.MULTILINE))
    return float(found.get("some", 0)), float(found.get("full", 0))


def parse_cgroup_path(text: str) -> str | None:
    """This process's path in the cgroup v2 tree, from /proc/self/cgroup; None under v1 alone."""
    found = re.search(r"^0::(/.*)$", text, flags=re.MULTILINE)
    return found[1] if found else None


def cgroup_scope(group: Path) -> tuple[int, int] | None:
    """(available, limit) in bytes of a cgroup v2 directory; None where nothing limits it."""
    limits = [_read(_below(group, name)).strip() for name in ("memory.max", "memory.high")]
    limit = min((int(text) for text in limits if text.isdigit()), default=0)
    current = _read(_below(group, "memory.current")).strip()
    if not limit or not current.isdigit():
        return None
    reclaimable = sum(int(size) for size in _RECLAIMABLE.findall(_read(_below(group, "memory.stat"))))
    return max(0, limit - max(0, int(current) - reclaimable)), limit


def sysctl_int(name: str, library: Any = None) -> int | None:
    """An ``int`` of macOS's sysctl tree, without a process of its own; None where it cannot be read."""
    try:
        call = (library or ctypes.CDLL(None)).sysctlbyname
    except (AttributeError, OSError):
        return None
    value = ctypes.c_int(0)
    size = ctypes.c_size_t(ctypes.sizeof(value))
    failed = call(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed or size.value != ctypes.sizeof(value) else value.value


def _machine(root: Path) -> tuple[int, int]:
    parsed = parse_meminfo(_read(_below(root, "proc/meminfo")))
    if parsed is not None:
        return parsed
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _cgroups(root: Path) -> Iterator[Path]:
    """The directories of this process's cgroup and its parents, whose limits hold too; its own first."""
    path = parse_cgroup_path(_read(_below(root, "proc/self/cgroup")))
    if path is None:
        return
    # ".." stands for groups outside this cgroup namespace, which are not mounted here.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        yield _below(root, "/".join(("sys/fs/cgroup", *parts[:count])))


def _cgroup_stalls(group: Path) -> tuple[float, float]:
    return parse_psi(_read(_below(group, "memory.pressure")))


@lru_cache(maxsize=64)
def _below(directory: Path, name: str) -> Path:
    """``directory / name``, kept for the next time.

    pathlib interns the parts of every path it makes, and CPython's table of interned strings is doubled once enough have
    passed through it: 1.8 MiB after some 6,000 updates.
    """
    return directory / name


def _read(path: Path) -> str:
    """The file's text; empty where it is missing, forbidden or switched off (PSI then answers EOPNOTSUPP)."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
