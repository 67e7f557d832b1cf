"""What waits in the queue, whether a process works on it, and the start of one where there is none.

In: a registry, from who put something into its queue. Out: a process of `queue_runner`, where none holds the lock.
Cost: a lock that is taken and given back; a process of about 40 MB (`queue_runner`) where one is started.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

from mlx_gardener.errors import TrainingError
from mlx_gardener.platform.locks import is_held
from mlx_gardener.platform.processes import module_command
from mlx_gardener.registry import ProjectRegistry

LOCK_NAME = "queue.lock"
LOG_NAME = "queue.log"


def is_running(registry: ProjectRegistry) -> bool:
    """Whether a process works on the queue."""
    return is_held(registry.home / LOCK_NAME)


def queued(registry: ProjectRegistry) -> list[dict[str, Any]]:
    """What waits and what is being trained, in order, as JSON types."""
    rows: list[dict[str, Any]] = []
    for place, entry in enumerate(registry.queue.entries(), start=1):
        record = None if entry.training_id is None else registry.get_training(entry.training_id)
        rows.append(
            {
                "place": place,
                "project": entry.project,
                "priority": entry.priority,
                "status": "waiting" if record is None else record.status.value,
                "progress_percent": 0.0 if record is None else record.percent,
                "budget_bytes": entry.budget_bytes,
                "enqueued_at": entry.enqueued_at,
            }
        )
    return rows


def take_out(registry: ProjectRegistry, project: str) -> None:
    """Take a project out of the queue, where it waits.

    Raises:
        RegistryError: there is no such project.
        TrainingError: it is not in the queue, or its training was begun.
    """
    registry.get_project(project)  # an unknown name is an error that offers near ones
    if registry.queue.remove_waiting(project):
        return
    if any(entry.project == project for entry in registry.queue.entries()):
        raise TrainingError(
            f"{project!r} waits no more: it is being trained.",
            next_step=f"`mlx-gardener cancel {project}` stops it, and keeps a checkpoint.",
        )
    raise TrainingError(f"{project!r} is not in the queue.", next_step="See `mlx-gardener queue list`.")


def ensure_runner(registry: ProjectRegistry) -> bool:
    """Start a process that works on the queue, where there is none; whether one was started."""
    if is_running(registry):
        return False
    registry.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(registry.home / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        subprocess.Popen(
            module_command("mlx_gardener.runs.queue_runner"),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env={**os.environ, "MLX_GARDENER_HOME": str(registry.home)},
            start_new_session=True,  # a closed terminal ends nothing
        )
    finally:
        os.close(descriptor)
    return True
