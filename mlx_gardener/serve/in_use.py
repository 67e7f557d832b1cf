"""Evidence in use while a server runs: what is offered is kept as hashes, and its files are looked at later.

In: every answer of one prompt, with its place in a file. Out: rows of `evaluate.offers`. Nothing waits for it: a thread of its own
does the writing, and where more than `_MOST_WAITING` answers wait for that, more are not counted. What is due is in the file and
not in memory, so that a server that is started again goes on. Not counted are answers to requests that name no file of the repository
(many editors' do not), chats, several answers to one request, an adapter at another strength, what is tried on the page, and answers
without a whole line of code. With
``serve.compare`` chance gives a share of the requests that can be counted to the base alone.
Cost: one file read an answer and one a look, on that thread.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from dataclasses import replace

from mlx_gardener.errors import GardenerError
from mlx_gardener.evaluate.in_use import Answered, Place, in_use_directory, keep_answer, offer_store
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve.catalog import Catalog, Target
from mlx_gardener.serve.metrics import Metrics

_MOST_WAITING = 1000
#: Between looks for what is due.
_TICK_SECONDS = 10.0


class InUse:
    """What is offered, and what stays of it.

    Args:
        share: of requests that the base answers, 0 to 1.
    """

    def __init__(self, registry: ProjectRegistry, catalog: Catalog, share: float, metrics: Metrics) -> None:
        self._registry, self._catalog, self._share, self._metrics = registry, catalog, share, metrics
        self._waiting: queue.Queue[Answered] = queue.Queue(_MOST_WAITING)
        self._chance = random.Random()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serve-in-use", daemon=True)

    def start(self) -> None:
        """Begin to write and to look."""
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        self._ending.set()
        self._thread.join(10.0)

    def drawn(self, target: Target, path: str) -> Target:
        """What answers: ``target``, or its base in its place, as chance chooses between them.

        Args:
            path: that the client names; where it names none, nothing could be counted, and the adapter answers.
        """
        if not self._draws(target, path) or self._chance.random() >= self._share:
            return target
        return replace(target, record=None)

    def _draws(self, target: Target, path: str) -> bool:
        return self._share > 0 and target.is_project and bool(path)

    def offer(
        self, target: Target, answered: Target, place: Place | None, text: str, *, retrieval: bool, seconds: float, whole: bool
    ) -> None:  # fmt: skip
        """Keep an answer in mind.

        Args:
            target: that was asked; ``answered`` what answered in its place.
            place: None where it goes is not known.
            seconds: since the request came.
            whole: whether it ended by itself.
        """
        if target.record is None:
            return  # a base that was asked by its name
        if place is None or not place.path:
            self._metrics.offers_without_file.inc()
            return
        arm = "base" if answered.record is None else "adapter"
        drawn = self._draws(target, place.path)
        answer = Answered(
            target.record, arm, retrieval, drawn, time.time(), 1000 * seconds, place, text, whole
        )
        try:
            self._waiting.put_nowait(answer)
        except queue.Full:
            self._metrics.offers_lost.inc()

    def _run(self) -> None:
        next_look = 0.0
        while True:
            try:
                self._keep(self._waiting.get(timeout=min(1.0, _TICK_SECONDS)))
            except queue.Empty:
                if self._ending.is_set():
                    return
            if time.monotonic() >= next_look and not self._ending.is_set():
                self._look()
                next_look = time.monotonic() + _TICK_SECONDS

    def _keep(self, answer: Answered) -> None:
        try:
            kept = keep_answer(self._registry, answer)
        except (
            GardenerError,
            OSError,
        ):  # the project was removed, or the disk is full: the answer is out all the same
            self._metrics.offers_lost.inc()
            return
        self._metrics.offers.inc(bool(kept))
        self._metrics.offers_without_file.inc(kept is None)

    def _look(self) -> None:
        """Look at the files of what is due, of all projects that are served."""
        try:
            projects = self._catalog.projects()
        except GardenerError:
            return  # the registry cannot be read now; requests say so
        for project in projects:
            try:
                if in_use_directory(self._registry, project).is_dir():
                    root = self._registry.get_project(project).path
                    self._metrics.looks.inc(offer_store(self._registry, project).look(root, time.time()))
            except (GardenerError, OSError):
                self._metrics.look_failures.inc()
