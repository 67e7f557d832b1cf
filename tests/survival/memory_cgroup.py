"""A cgroup of its own for a process whose memory is to run out, so that the kernel's out-of-memory killer really comes.

Linux only, and only where this process may make one below its own cgroup or a parent of it (version 1 or 2); elsewhere
`memory_cgroup` yields None, and a caller says so.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
#: Where each version keeps the limit, and what else has to be said so that nothing goes to swap instead.
_LIMITS = {"memory.max": {"memory.swap.max": "0"}, "memory.limit_in_bytes": {}}


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path | None]:
    """The ``cgroup.procs`` of a new cgroup with a limit: who is written into it is killed when it takes more from then on."""
    group = _make(limit_bytes)
    try:
        yield group and group / "cgroup.procs"
    finally:
        if group is not None:
            _remove(group)


def _make(limit_bytes: int) -> Path | None:
    for parent in _parents():
        group = parent / f"mlx-gardener-test-{uuid.uuid4().hex[:12]}"
        try:
            group.mkdir()
        except OSError:
            continue
        for name, others in _LIMITS.items():
            with contextlib.suppress(OSError):
                if (group / name).exists():
                    for other, value in others.items():
                        if (group / other).exists():
                            (group / other).write_text(value)
                    (group / name).write_text(str(limit_bytes))
                    return group
        _remove(group)
    return None


def _parents() -> Iterator[Path]:
    """This process's memory cgroup and those above it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            root = _ROOT / controllers
            place = root / path.lstrip("/")
            yield from (above for above in (place, *place.parents) if above.is_relative_to(root))


def _remove(group: Path) -> None:
    """Remove it as soon as the last process in it is gone."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
