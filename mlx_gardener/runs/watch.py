"""A training's processes as who started them sees them: begun, and watched until they have ended.

In: a training's record. Out: its events, to whoever wants them, and a settled record where its processes died without a
word. Cost: a read of the journal every few hundredths of a second.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mlx_gardener.events import Event, EventBus, ProgressChanged, TrainingEnded
from mlx_gardener.platform.files import private
from mlx_gardener.platform.processes import module_command
from mlx_gardener.registry import ProjectRegistry, TrainingRecord
from mlx_gardener.registry.names import what_is_kept
from mlx_gardener.runs.job import LOG_NAME
from mlx_gardener.runs.journal import JOURNAL_NAME, follow_journal
from mlx_gardener.runs.progress import ProgressCallback, progress_of
from mlx_gardener.runs.supervisor import bury, describe_death


def start_supervisor(record: TrainingRecord, home: Path) -> subprocess.Popen[bytes]:
    """The process over the training's worker, begun; it outlives the caller.

    Raises:
        OSError: the system has no room for it.
    """
    with open(record.run_dir / LOG_NAME, "ab", opener=private) as log:
        return subprocess.Popen(
            module_command("mlx_gardener.runs.supervisor", str(record.run_dir)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "MLX_GARDENER_HOME": str(home)},
            start_new_session=True,  # a closed terminal or Ctrl-C ends the watching, not the run
        )


def watch(
    registry: ProjectRegistry,
    record: TrainingRecord,
    process: subprocess.Popen[bytes],
    offset: int,
    callback: ProgressCallback | None,
) -> None:
    """Pass a training's progress on until it has ended, and settle its record if its processes died without a word.

    Args:
        offset: where its events begin in the journal, in bytes.
    """
    bus = EventBus()
    if callback is not None:

        def deliver(event: Event) -> None:
            if isinstance(event, ProgressChanged):
                callback(progress_of(event))

        bus.subscribe(deliver, name="progress callback")

    def is_over() -> bool:
        if process.poll() is None:
            return False
        if registry.get_training(record.id).finished_at is None:
            how = describe_death(process.returncode, out_of_memory=False).replace("worker", "supervisor")
            message = f"{how}. {what_is_kept(record.run_dir)}"
            bury(registry, record.id, message, interrupted=True)
        return True

    events = follow_journal(record.run_dir / JOURNAL_NAME, offset=offset, is_over=is_over)
    for event in until_the_end(registry, record, events):
        bus.publish(event)
    process.wait()  # it has said its last word; who waits for the end may count on its being gone
    bus.close()


def until_the_end(
    registry: ProjectRegistry, record: TrainingRecord, events: Iterator[Event]
) -> Iterator[Event]:
    """``events``, with an end from the registry where the journal was left without one."""
    for event in events:
        yield event
        if isinstance(event, TrainingEnded):
            return
    end = registry.get_training(record.id)
    yield TrainingEnded(end.phase, end.message, end.result)
