"""A request as a job: its body read and checked, what it names found, and what the worker is to do for it.

In: a request of any dialect. Out: a `QueuedRequest`, which its handler gives to the worker (`serve.streams`), and the request's
line in the log. Cost: that of reading the body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.requests import Request

from mlx_gardener.model.choose import choose_model, resolve_model
from mlx_gardener.serve.access import Access, access_of
from mlx_gardener.serve.bodies import Body, Message, parse
from mlx_gardener.serve.catalog import Catalog, Target
from mlx_gardener.serve.chats import chat_text, check_length
from mlx_gardener.serve.errors import error_message, shown_error
from mlx_gardener.serve.generation import Ending, Limits, Sampling
from mlx_gardener.serve.in_use import InUse
from mlx_gardener.serve.indexes import Indexes, Lookup
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.next_edits import finish_of
from mlx_gardener.serve.off_loop import off_loop
from mlx_gardener.serve.prompts import Prepare, Sides
from mlx_gardener.serve.reading import read_json
from mlx_gardener.serve.settings import ServeSettings
from mlx_gardener.serve.worker import QueuedRequest

if TYPE_CHECKING:
    from mlx_gardener.evaluate.complete import CaretPrompt
    from mlx_gardener.model import BaseModel

AnyBody = TypeVar("AnyBody", bound=Body)

#: Chat templates that may be rendered at the same time; each is a process.
_TEMPLATES_AT_ONCE = 2
#: Names of unknown fields that are remembered as told.
_MOST_TOLD = 200


class Asked(Protocol):
    """What a body says of how its answer is written."""

    def limits(self, most: int) -> Limits:
        """Where the answer ends; at most so many tokens."""

    def sampling(self) -> Sampling:
        """How tokens are chosen."""

    def strength(self) -> float:
        """What the adapter's scale is multiplied by."""


class Intake:
    """What all dialects do with a request before it is computed."""

    def __init__(
        self,
        catalog: Catalog,
        settings: ServeSettings,
        metrics: Metrics,
        indexes: Indexes,
        in_use: InUse | None = None,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._metrics = metrics
        self._indexes = indexes
        self._in_use = in_use
        self._templates = asyncio.Semaphore(_TEMPLATES_AT_ONCE)
        self._told: set[str] = set()

    async def body(self, request: Request, kind: type[AnyBody]) -> AnyBody:
        """A request's body, checked; fields that are unknown are told once."""
        data = bytearray()
        async for part in request.stream():
            data += part
        body, unknown = await off_loop(len(data), lambda: parse(kind, read_json(data)))
        self.tell_ignored(request, unknown)
        return body

    def tell_ignored(self, request: Request, names: list[str]) -> None:
        """Name fields that change nothing in the request's line, each once in a server's life."""
        for name in names[:20]:
            if name[:40] not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(name[:40])
                access_of(request.scope).ignored.append(name[:40])

    def target(self, request: Request, model: str | None) -> Target:
        """What the path, else the body, names; else what stands in for nothing."""
        in_path = request.path_params.get("model")
        if in_path is not None:
            target = self._catalog.find(in_path)
            target = target if not model or "@" not in model else self._catalog.find(model)
        else:
            target = self._catalog.find(model) if model else self._catalog.default()
        access_of(request.scope).project = target.id
        return target

    def job(
        self,
        target: Target,
        asked: Asked,
        prepare: Prepare,
        count: int = 1,
        top_scores: int | None = None,
        *,
        raw: Sequence[object] = (),
        sides: Sides | None = None,
        for_use: bool = True,
    ) -> QueuedRequest:
        """What the worker is to do; ``prepare`` makes the prompts when its turn comes.

        Args:
            raw: prompts that are read as the client wrote them.
            sides: of a prompt in the trained form. Where it names its file, chance may give it to the base (``serve.compare``).
            for_use: whether somebody may put the answer into a file.
        """
        limits = asked.limits(self._settings.max_answer_tokens)
        lookup = Lookup(self._indexes, self._metrics, target)
        path = "" if sides is None else sides.path

        def made(base: BaseModel, room: int) -> list[CaretPrompt]:
            if sides is not None:
                job.leaves_out_suffix = sides.leaves_out(base.tokenizer)
            return prepare(base, room, limits, lookup)

        # An adapter at another strength is none of the versions that figures of use are of.
        is_offered = for_use and count == 1 and asked.strength() == 1.0
        job = QueuedRequest(
            self._in_use.drawn(target, path) if self._in_use is not None and is_offered else target,
            made,
            lookup,
            asked.sampling(),
            limits,
            answers=count,
            top_scores=top_scores,
            strength=asked.strength(),
            finish=finish_of(raw),
            is_offered=is_offered,
        )
        return job

    async def chat_text(self, target: Target, messages: Sequence[Message]) -> str:
        """What the template of a target's base makes of messages; raises as `chats.chat_text`."""
        characters = sum(len(text) for message in messages for text in message.texts())
        check_length(characters, self._settings.max_context_tokens)

        def write_out() -> str:
            path = resolve_model(choose_model(target.base))
            return chat_text(path, target.base_id, [message.plain() for message in messages])

        async with self._templates:
            return await asyncio.to_thread(write_out)


def told_error(request: Request, error: Exception) -> dict[str, Any]:
    """The body of an error in the middle of a stream; its status is sent already."""
    content = shown_error(error, request.scope["path"])[1]
    access_of(request.scope).refused = error_message(content)
    return content


def count(access: Access, endings: list[Ending], job: QueuedRequest) -> None:
    """Note in a request's line what its answers took."""
    access.prompt_tokens = sum(ending.prompt_tokens for ending in endings[:: job.answers])
    access.written_tokens = sum(ending.written_tokens for ending in endings)
    access.retrieved_chunks = len(job.lookup.found.pieces)
    access.retrieved_tokens = job.lookup.found.tokens
    access.leaves_out_suffix = job.leaves_out_suffix
