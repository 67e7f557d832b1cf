"""The repositories' indexes while a server runs: read at the start, looked after in the background, and used as they are.

In: who is asked. Out: a `Lookup` for each request, by which its prompt gets code in front and its answer's header says which.
An answer never waits for an index: what is there is used, and where its repository was not looked at lately a thread does that
afterwards (`runs.indexed`). After a look that took t seconds the next one comes 20 t later at the earliest, and never before
two seconds: a twentieth of the time at most, however large the repository. A new index takes the old one's place in one
assignment.
Cost: of an answer, one search (`benchmarks/retrieval.py`); memory as in `retrieval.index`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mlx_gardener.config import RetrievalWish
from mlx_gardener.errors import GardenerError
from mlx_gardener.evaluate.in_use import Place
from mlx_gardener.evaluate.registered import RetrievalChoice, choose_retrieval
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.registry.evaluations import DIRECTORY
from mlx_gardener.retrieval import Context, Index, Retriever, Rules, code_in_front
from mlx_gardener.runs.indexed import index_rules, kept_index, update_index
from mlx_gardener.serve.catalog import Target
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.repository_paths import path_from_root

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer

_LEAST_SECONDS = 2.0
_REST = 20.0
#: After a look that failed.
_FAILED_SECONDS = 60.0
_HEADER_CHARACTERS = 2000
#: Why there is no index yet, where there soon is one.
BEING_READ = "its repository is being read"


class _EndingError(Exception):
    """The server ends while a repository is looked at."""


@dataclass
class _Kept:
    """What is known of one project's repository."""

    index: Index | None = None
    rules: Rules | None = None
    due_at: float = 0.0
    looking: bool = False
    look: Future[None] | None = None
    problem: str = BEING_READ


class Indexes:
    """Indexes of the projects that are served.

    Args:
        wish: ``serve.retrieval``.
    """

    def __init__(self, registry: ProjectRegistry, wish: RetrievalWish, metrics: Metrics) -> None:
        self._registry, self._wish, self._metrics = registry, wish, metrics
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="serve-index")

    @property
    def chunk_count(self) -> int:
        """Chunks of all indexes."""
        return sum(index.chunk_count for index in self._all())

    @property
    def size_bytes(self) -> int:
        """What all indexes take, mapped files included."""
        return sum(index.size_bytes for index in self._all())

    def _all(self) -> list[Index]:
        return [kept.index for kept in list(self._kept.values()) if kept.index is not None]

    def stop(self) -> None:
        """End what is under way."""
        self._ending.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def choice(self, target: Target, wish: RetrievalWish | None = None) -> RetrievalChoice:
        """Whether code is retrieved for answers of ``target``, and why; ``wish`` takes the place of the server's."""
        if target.record is None:
            return RetrievalChoice(False, "a base alone has no repository", 0)
        directory, manifest = target.record.directory, target.record.manifest_sha256
        try:
            changed = (directory / DIRECTORY).stat().st_mtime_ns
        except OSError:
            changed = 0  # there are none
        return _choose(directory, wish or self._wish, (manifest, changed))

    def root_of(self, project: str) -> Path:
        """Where a project's repository is.

        Raises:
            RegistryError: there is no such project, or the registry cannot be read.
        """
        return self._registry.get_project(project).path

    def open(self, target: Target) -> str:
        """Read a project's index before its first request, as far as there is one; what comes of it, a phrase."""
        choice = self.choice(target)
        if not choice.on or target.record is None:
            return f"off ({choice.why})"
        project = target.record.project
        rules = index_rules(self._registry, project)
        found = kept_index(self._registry, project, rules)
        if found is not None:
            with self._lock:
                self._kept[project] = _Kept(found, rules)
        self._look_soon(project)
        there = f"{found.chunk_count:,} chunks" if found is not None else BEING_READ
        return f"on ({choice.why}), {there}"

    def index_of(self, project: str) -> tuple[Index | None, str]:
        """The index as it is now, or why there is none; has the repository looked at, if that is due."""
        rules = index_rules(self._registry, project)
        with self._lock:
            kept = self._kept.setdefault(project, _Kept())
            if (
                kept.index is not None and kept.rules != rules
            ):  # something is to be forgotten, or another version answers
                kept.index, kept.due_at, kept.problem = None, 0.0, BEING_READ
            found, problem = kept.index, kept.problem
        self._look_soon(project)
        return found, problem

    def looked_at(self, project: str) -> tuple[Index | None, str]:
        """As `index_of`, but for who rather waits than gets what is old: after the look that is due or under way.

        A look is due as seldom as ever, so that asking often costs no more than a twentieth of the time.
        """
        self.index_of(project)
        with self._lock:
            look = self._kept[project].look
        if look is not None:
            with suppress(CancelledError):  # the server ends
                look.result()
        return self.index_of(project)

    def _look_soon(self, project: str) -> None:
        with self._lock:
            kept = self._kept.setdefault(project, _Kept())
            if kept.looking or time.monotonic() < kept.due_at or self._ending.is_set():
                return
            kept.looking = True
        try:
            kept.look = self._thread.submit(self._look, project, kept)
        except RuntimeError:  # the server ends
            kept.looking = False

    def _look(self, project: str, kept: _Kept) -> None:
        began = time.monotonic()
        wait = _LEAST_SECONDS
        try:
            rules = index_rules(self._registry, project)
            earlier = kept.index if kept.rules == rules else kept_index(self._registry, project, rules)
            if earlier is not None and kept.index is not earlier:
                kept.index, kept.rules = earlier, rules  # it serves while it is brought up to date
            found = update_index(self._registry, project, rules, earlier=earlier, interrupt=self._asked)
            self._metrics.index_looks.inc()
            self._metrics.index_changes.inc(found is not earlier)
            with self._lock:
                kept.index, kept.rules, kept.problem = found, rules, ""
        except _EndingError:
            pass
        except (GardenerError, OSError) as error:
            kept.problem = f"its repository cannot be indexed: {reason_of(error)}"
            self._metrics.index_failures.inc()
            wait = _FAILED_SECONDS
        finally:
            took = time.monotonic() - began
            self._metrics.index_seconds.inc(took)
            kept.due_at = time.monotonic() + max(wait, _REST * took)
            kept.looking = False

    def _asked(self) -> None:
        if self._ending.is_set():
            raise _EndingError


@lru_cache(maxsize=1024)
def _choose(directory: Path, wish: RetrievalWish, state: tuple[str, int]) -> RetrievalChoice:
    """`choose_retrieval`, anew where ``state``, of what it reads, is another one."""
    return choose_retrieval(directory, wish)


@dataclass
class Lookup:
    """Retrieval for one request: `in_front` is called when its prompt is made, `header` says what came of it.

    Attributes:
        why: nothing was retrieved.
        wish: of this request, in the place of the server's.
        place: where the answer goes, once the prompt was made of it.
    """

    indexes: Indexes
    metrics: Metrics
    target: Target
    why: str = "the prompt is taken as it was written"
    found: Context = field(default_factory=Context)
    wish: RetrievalWish | None = None
    place: Place | None = None

    def path_from_root(self, sent: str) -> str:
        """How the repository names a file that a client names, see `repository_paths`; as it was sent where there is none."""
        if not sent.startswith(("/", "file://")) or self._root is None:
            return sent
        return path_from_root(self._root, sent)

    @cached_property
    def _root(self) -> Path | None:
        if self.target.record is None:
            return None
        with suppress(GardenerError):  # the project was removed meanwhile
            return self.indexes.root_of(self.target.record.project)
        return None

    def in_front(
        self,
        tokenizer: CodeTokenizer,
        path: str,
        before: str,
        after: str | None,
        *,
        own: Sequence[int],
        sent: Sequence[int] = (),
        most_tokens: int,
    ) -> list[int]:
        """What stands in front of a prompt; see `retrieval.code_in_front`."""
        self.place = Place.at(path, before, after)
        choice, retriever = self.indexes.choice(self.target, self.wish), None
        self.why = choice.why
        if choice.on and self.target.record is not None:
            index, self.why = self.indexes.index_of(self.target.record.project)
            if index is not None:
                retriever = Retriever(index, tokenizer, limit_tokens=choice.limit_tokens)
        began = time.perf_counter()
        ids, self.found = code_in_front(
            retriever, path, before, after, own=own, sent=sent, most_tokens=most_tokens
        )
        if retriever is not None:
            self.why = "nothing fits, or there is no room"
            self.metrics.retrieved(self.found, time.perf_counter() - began)
        return ids

    def goes_to(self, path: str, before: str, after: str | None) -> None:
        """Say where the answer goes, where that is not what the prompt was made of."""
        self.place = Place.at(path, before, after)

    def header(self) -> str:
        """``3 chunks, 512 tokens; src/a.py:10-24, ...`` or ``none; ...``, in ASCII."""
        if not self.found.pieces:
            return f"none; {quote(self.why, safe=_SAFE + ',%')}"
        count = len(self.found.pieces)
        told = f"{count} chunk{'s' * (count > 1)}, {self.found.tokens} tokens; "
        places = [
            f"{quote(piece.path, safe=_SAFE)}:{piece.start_line}-{piece.end_line}"
            for piece in self.found.pieces
        ]
        return (told + ", ".join(places))[:_HEADER_CHARACTERS]


#: Characters that headers may have as they are; the rest is percent-encoded.
_SAFE = " !#$&'()*+/:=?@[]~;."
