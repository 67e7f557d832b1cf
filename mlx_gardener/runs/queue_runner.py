"""The process that works on the queue: ``python -m mlx_gardener.runs.queue_runner``; `mlx-gardener queue run` in a terminal.

In: the registry's queue. Out: trainings, each with a supervisor of its own, so that this process may end at any time: the
next one takes over what is under way, and goes on with what was interrupted. One works at a time for a home, which a lock
sees to that dies with its process. Whoever puts something in the queue starts one where there is none; it ends when the
queue is empty. Cost: a Python process that looks into the database twice a second, about 40 MB.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from mlx_gardener.config import validate_config
from mlx_gardener.errors import GardenerError, RegistryUnavailableError, TrainingError
from mlx_gardener.platform.locks import take_lock
from mlx_gardener.registry import INTERRUPTED, ProjectRegistry, QueueEntry, TrainingStatus, patiently
from mlx_gardener.runs.manager import TrainingPipeline
from mlx_gardener.runs.queue_start import LOCK_NAME

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
#: `is_running` has the lock for a moment too.
_LOCK_WAIT_SECONDS = 2.0
#: An entry whose training was interrupted so often is given up: something here ends whatever trains it.
MOST_BEGUN = 20


class QueueRunner:
    """Begins what comes next, and lets go what has ended.

    Args:
        budget_bytes: what trainings side by side may take together; None trains one at a time.
        tell: called with a sentence for everything that happens.
    """

    def __init__(
        self,
        registry: ProjectRegistry,
        *,
        budget_bytes: int | None = None,
        tell: Callable[[str], None] = logger.info,
    ) -> None:
        self._registry, self._budget_bytes, self._tell = registry, budget_bytes, tell
        self._pipelines: dict[str, TrainingPipeline] = {}

    def run(self, *, until_empty: bool = True) -> None:
        """Work on the queue until it is empty; or for ever.

        Raises:
            TrainingError: another process does already.
            RegistryError: the database cannot be used.
        """
        self._registry.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            lock = take_lock(self._registry.home / LOCK_NAME, make=True, wait_seconds=_LOCK_WAIT_SECONDS)
            if lock is None:
                raise TrainingError(
                    "Another process works on the queue already.", next_step="See `mlx-gardener queue list`."
                )
            try:
                while patiently(self.step) or not until_empty:
                    time.sleep(POLL_SECONDS)
            finally:
                os.close(lock)
            if not patiently(self._registry.queue.entries):
                return
            # Somebody put a project in after the last look, and left it to this process as it still had the lock.

    def step(self) -> bool:
        """One look at the queue; whether there is anything left in it."""
        for entry in self._registry.queue.entries():
            if entry.training_id is not None:
                self._settle(entry)
        entries = self._registry.queue.entries()
        busy = {record.project: record for record in self._registry.active_trainings()}
        begun = [entry for entry in entries if entry.training_id is not None]
        taken = sum(entry.budget_bytes for entry in begun)
        for entry in entries:
            if entry.training_id is not None or entry.project in busy:
                continue  # somebody trains it by hand: its turn comes after that
            if begun and (self._budget_bytes is None or taken + entry.budget_bytes > self._budget_bytes):
                break  # no overtaking: what is too large for now would else wait for ever
            if self._begin(entry):
                begun.append(entry)
                taken += entry.budget_bytes
        return bool(entries)

    def _begin(self, entry: QueueEntry) -> bool:
        try:
            pipeline = TrainingPipeline(validate_config(entry.config), registry=self._registry)
            pipeline.start_training(entry.project, fresh=entry.fresh, queue_number=entry.number)
        except RegistryUnavailableError:
            raise  # no fault of the project's
        except GardenerError as error:
            if any(record.project == entry.project for record in self._registry.active_trainings()):
                return False  # somebody began it in between
            self._tell(f"{entry.project} cannot be trained: {error.in_terminal}")
            self._registry.queue.done(entry)
            return False
        self._pipelines[entry.project] = pipeline  # its thread settles a supervisor's death without a word
        self._tell(f"{entry.project}: training begins")
        return True

    def _settle(self, entry: QueueEntry) -> None:
        assert entry.training_id is not None
        self._registry.close_dead_trainings()
        record = self._registry.get_training(entry.training_id)
        if record.finished_at is None:
            return
        if record.status is TrainingStatus.FAILED and record.result.get(INTERRUPTED):
            if entry.begun < MOST_BEGUN:
                self._registry.queue.wait_again(entry)
                self._tell(f"{entry.project}: {record.message} It is begun again.")
                return
            self._tell(f"{entry.project} was interrupted {entry.begun} times and is given up.")
        else:
            self._tell(f"{entry.project}: {record.status.value}. {record.message}")
        self._registry.queue.done(entry)


def main() -> None:
    """Entry point of the process; exit code 0 also where another one works on the queue already."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        QueueRunner(ProjectRegistry()).run()
    except TrainingError as error:
        logger.info("%s", error)


if __name__ == "__main__":
    main()
