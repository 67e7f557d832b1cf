"""Whether a process works on the queue, and the start of one where there is none.

In: a registry, from who put something into its queue. Out: a process of `queue_runner`, where none holds the lock.
Cost: a lock that is taken and given back; a process of about 40 MB (`queue_runner`) where one is started.
"""

from __future__ import annotations

import os
import subprocess

from mlx_gardener.platform.locks import is_held
from mlx_gardener.platform.processes import module_command
from mlx_gardener.registry import ProjectRegistry

LOCK_NAME = "queue.lock"
LOG_NAME = "queue.log"


def is_running(registry: ProjectRegistry) -> bool:
    """Whether a process works on the queue."""
    return is_held(registry.home / LOCK_NAME)


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
