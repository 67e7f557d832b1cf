"""A queue whose machine "reboots": every process of its home is killed at once, and somebody starts the queue again."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs.queue_start import ensure_runner


def processes(home: Path) -> list[psutil.Process]:
    """Every other process that works for this home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.environ().get("MLX_GARDENER_HOME") == str(home) and process.pid != os.getpid()
            if ours and "mlx_gardener" in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_everything(home: Path) -> int:
    """End every process of this home as a power cut would; returns how many there were."""
    victims = processes(home)
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(victims, timeout=600)
    return len(victims)


def waiting(registry: ProjectRegistry) -> list[str]:
    """The projects in the queue, in order; those under way are among them."""
    return [entry.project for entry in registry.queue.entries()]


def work_through(
    registry: ProjectRegistry,
    *,
    reboots: int,
    choose: random.Random,
    until: Callable[[Callable[[], object], str], None],
    tell: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Work on the queue to its end, with reboots in between; returns what each of these met.

    The reboots come when a first, a second, ... part of the queue is done, each at a random moment of a training.

    Args:
        until: waits for a condition, which it is given with its name.
    """
    total, met = len(waiting(registry)), list[dict[str, Any]]()
    for number in range(reboots):
        ensure_runner(registry)
        most_left = total - total * number // (reboots + 1)
        until(lambda most_left=most_left: len(waiting(registry)) <= most_left, "its part of the queue")
        until(lambda: len(processes(registry.home)) > 1, "the runner and at least a supervisor")
        time.sleep(1.5 * choose.random())
        queue = waiting(registry)
        if not queue:
            raise RuntimeError("all was done before the last reboot")
        under_way = [f"{record.project}: {record.phase}" for record in registry.active_trainings()]
        killed = kill_everything(registry.home)
        met.append({"processes_killed": killed, "projects_done": total - len(queue), "under_way": under_way})
        tell(f"reboot {number + 1} of {reboots}: {met[-1]}")
    until(lambda: ensure_runner(registry) or not waiting(registry), "the runner")
    until(lambda: not waiting(registry), "an empty queue")
    return met


def adapters_of(registry: ProjectRegistry, names: Sequence[str]) -> dict[str, list[str]]:
    """The versions that each project has."""
    return {name: [adapter.version for adapter in registry.list_adapters(name)] for name in names}
