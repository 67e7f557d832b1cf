"""The one thread that computes, and the bounded queue before it.

HTTP handlers put a `QueuedRequest` in and await its events; the thread takes jobs in their order, puts the right adapter in and
writes. A job whose client is gone is dropped from the queue, or stopped within a token. What goes wrong in a job is that
job's answer; the thread goes on.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlx_gardener.errors import GardenerError
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve.catalog import Target
from mlx_gardener.serve.generation import Ending, Limits, Piece, Sampling, answer
from mlx_gardener.serve.in_use import InUse
from mlx_gardener.serve.indexes import Lookup
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.next_edits import Finish, whole_answer
from mlx_gardener.serve.prompt_caches import PromptCaches
from mlx_gardener.serve.residents import Resident, Residents

if TYPE_CHECKING:
    from mlx_gardener.evaluate.complete import CaretPrompt
    from mlx_gardener.model import BaseModel

#: What MLX may keep of freed memory, bytes.
_CACHE_BYTES = 256 * 2**20


class BadRequestError(GardenerError):
    """A request that cannot be answered as it is; the client's to mend."""


class BusyError(GardenerError):
    """The queue is full, a request waited too long in it, or the server ends; to be tried again later."""


class _GoneError(Exception):
    """The client of a job is gone."""


@dataclass(frozen=True)
class Started:
    """The first event of an answer: ``weights_sha256`` of the adapter that writes, None where the base alone does.

    ``retrieval`` says what code of the repository stands in front of the prompt, ``leaves_out_suffix`` that what follows is not in it.
    """

    weights_sha256: str | None
    version: str | None
    retrieval: str
    leaves_out_suffix: bool = False


@dataclass(frozen=True)
class PieceOf:
    """A piece of the answer number ``index``."""

    index: int
    piece: Piece


@dataclass(frozen=True)
class EndOf:
    """The end of the answer number ``index``."""

    index: int
    ending: Ending


@dataclass(frozen=True)
class Finished:
    """The last event; ``error`` says what went wrong, if something did."""

    error: Exception | None = None


Reply = Started | PieceOf | EndOf | Finished


@dataclass
class QueuedRequest:
    """A request on its way.

    ``prompts`` makes each prompt when its turn comes; every prompt is answered ``answers`` times, by the target's adapter at
    ``strength`` times its scale. It also sets whether the base is not shown what follows the caret
    (``leaves_out_suffix``). ``lookup`` knows what code was retrieved for them. Where nothing is
    to be written, ``prompts`` makes none: the model is loaded; or, with ``unload``, let go of. ``finish`` makes of a whole answer what
    the client gets. ``is_offered`` says that somebody works with the answer, so that what stays of it may be counted.
    """

    target: Target
    prompts: Callable[[BaseModel, int], list[CaretPrompt]]
    lookup: Lookup
    sampling: Sampling
    limits: Limits
    answers: int = 1
    top_scores: int | None = None
    strength: float = 1.0
    unload: bool = False
    finish: Finish | None = None
    is_offered: bool = True
    leaves_out_suffix: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)
    asked_at: float = field(default_factory=time.monotonic)
    events: asyncio.Queue[Reply] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def tell(self, event: Reply) -> None:
        """Hand an event to the handler that awaits it, from the computing thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.cancelled.set()


class Worker:
    """The computing thread.

    Args:
        max_queued: jobs that may wait.
        max_queued_seconds: how long one may wait.
        max_context_tokens: prompt and answer together.
        in_use: is told of every answer.
    """

    def __init__(
        self,
        registry: ProjectRegistry,
        *,
        budget_bytes: int,
        max_queued: int,
        max_queued_seconds: float,
        max_context_tokens: int,
        metrics: Metrics,
        in_use: InUse | None = None,
    ) -> None:
        self.residents = Residents(registry, budget_bytes)
        self.caches = PromptCaches()
        self._max_queued = max_queued
        self._max_queued_seconds = max_queued_seconds
        self._max_context_tokens = max_context_tokens
        self._metrics = metrics
        self._in_use = in_use
        self._jobs: deque[QueuedRequest | Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._current: QueuedRequest | None = None
        self._sign_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="serve-worker", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self, *, timeout: float = 10.0) -> None:
        """Refuse what waits, end what is being written, and wait for the thread."""
        with self._changed:
            self._ending = True
            waiting = [job for job in self._jobs if isinstance(job, QueuedRequest)]
            self._jobs.clear()
            if self._current is not None:
                self._current.cancelled.set()
            self._changed.notify_all()
        for job in waiting:
            job.tell(Finished(BusyError("The server is shutting down.")))
        self._thread.join(timeout)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._jobs)

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._current is not None

    @property
    def silent_seconds(self) -> float:
        """How long the thread has given no sign of life while something waits for it; 0 while all is well."""
        sign = self._sign_at
        return 0.0 if sign is None else time.monotonic() - sign

    @property
    def alive(self) -> bool:
        """Whether the thread is there at all."""
        return self._thread.is_alive()

    def submit(self, job: QueuedRequest) -> None:
        """Let a job wait for its turn.

        Raises:
            BusyError: the queue is full, or the server ends.
        """
        with self._changed:
            if self._ending:
                raise BusyError("The server is shutting down.")
            self._jobs = deque(
                other
                for other in self._jobs
                if not (isinstance(other, QueuedRequest) and other.cancelled.is_set())
            )
            if len(self._jobs) >= self._max_queued:
                raise BusyError(
                    f"{self._max_queued} requests wait already.", next_step="Try again in a moment."
                )
            self._jobs.append(job)
            self._changed.notify_all()

    def run(self, work: Callable[[], None]) -> None:
        """Do ``work`` on the computing thread, in turn, and wait for it; what it raises is raised here."""
        done, failure = threading.Event(), []

        def doing() -> None:
            try:
                work()
            except Exception as error:
                failure.append(error)
            finally:
                done.set()

        with self._changed:
            self._jobs.append(doing)
            self._changed.notify_all()
        done.wait()
        if failure:
            raise failure[0]

    def _run(self) -> None:
        import mlx.core as mx
        from mlx_lm.generate import generation_stream

        mx.set_cache_limit(_CACHE_BYTES)
        try:
            self._work()
        finally:
            # A token is computed ahead; a process that ends while MLX computes for a thread that is gone is aborted.
            mx.synchronize(generation_stream)
            mx.synchronize()
            mx.clear_streams()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._ending:
                    self._changed.wait()
                if self._ending:
                    return
                job = self._jobs.popleft()
                self._current = job if isinstance(job, QueuedRequest) else None
                self._sign_at = time.monotonic()
            try:
                if isinstance(job, QueuedRequest):
                    self._try(job)
                else:
                    job()
            finally:
                self._current, self._sign_at = None, None

    def _try(self, job: QueuedRequest) -> None:
        try:
            self._answer(job)
            job.tell(Finished())
        except _GoneError:
            self._metrics.cancelled.inc()
            job.tell(Finished(BusyError("The request was stopped.")))
        except GardenerError as error:
            job.tell(Finished(error))
        except (
            Exception
        ) as error:  # one request's defect must not end the others' server, nor stay in its state
            self._renew()
            job.tell(Finished(error))

    def _renew(self) -> None:
        """Make anew what an error may have left half made: random state that was being traced, keys and values."""
        import mlx.core as mx

        mx.random.seed(secrets.randbits(63))
        mx.clear_cache()
        self.caches.clear()
        self.residents.leave()

    def _answer(self, job: QueuedRequest) -> None:
        def check() -> None:
            self._sign_at = time.monotonic()
            if job.cancelled.is_set():
                raise _GoneError

        check()
        waited = time.monotonic() - job.asked_at
        if waited > self._max_queued_seconds:
            raise BusyError(f"The request waited {waited:.0f} s for its turn.", next_step="Try again later.")
        if job.unload:
            self.residents.release(job.target)
            self.caches.clear()  # of all: their keys tell no base from another, and prompts are read again in a moment
            job.tell(_started(job, None))
            return
        loaded, resident = self.residents.enter(job.target, job.strength)
        room = min(loaded.max_tokens, self._max_context_tokens)
        prompts = job.prompts(loaded.base, room)
        job.tell(_started(job, resident))
        key = (loaded.identity, f"{resident.weights_sha256} {job.strength}" if resident is not None else "")
        for number, prompt in enumerate(prompts):
            left = room - len(prompt.ids) - len(loaded.base.tokenizer.encode(prompt.begins))
            limits = replace(job.limits, max_tokens=max(0, min(job.limits.max_tokens, left)))
            written: list[Piece | Ending] = []
            for copy in range(job.answers):
                index = number * job.answers + copy
                if copy and job.sampling.temperature <= 0:  # the likeliest answer is the same again
                    for event in written:
                        self._tell(job, index, event)
                    continue
                sampling = job.sampling
                if sampling.seed is not None and copy:
                    sampling = replace(sampling, seed=(sampling.seed + copy) % 2**63)
                written = []
                events = answer(
                    loaded.base, prompt, sampling, limits, caches=self.caches, key=key, top_scores=job.top_scores, check=check
                )  # fmt: skip
                for event in events if job.finish is None else whole_answer(events, job.finish):
                    if not written and index == 0:
                        self._metrics.first_token_seconds.observe(time.monotonic() - job.asked_at)
                    written.append(event)
                    self._tell(job, index, event)
        if self._in_use is not None and job.is_offered and len(prompts) * job.answers == 1:
            self._in_use.offer(
                job.lookup.target,
                job.target,
                job.lookup.place,
                "".join(event.text for event in written if isinstance(event, Piece)),
                retrieval=bool(job.lookup.found.pieces),
                seconds=time.monotonic() - job.asked_at,
                whole=isinstance(written[-1], Ending) and written[-1].reason == "stop",
            )

    def _tell(self, job: QueuedRequest, index: int, event: Piece | Ending) -> None:
        if isinstance(event, Ending):
            self._metrics.answered(event)
            job.tell(EndOf(index, event))
        else:
            job.tell(PieceOf(index, event))


def _started(job: QueuedRequest, resident: Resident | None) -> Started:
    version = job.target.record.version if job.target.record is not None else None
    weights = resident.weights_sha256 if resident is not None else None
    return Started(weights, version, job.lookup.header(), job.leaves_out_suffix)
