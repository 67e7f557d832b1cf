"""The HTTP side: routes and what each answers. Nothing here computes; handlers await the worker's events.

Every route is also below ``/projects/NAME/``, for editors that can be given an address and no model's name. Answers name
what wrote them: ``X-Model``, ``X-Adapter`` (sha256 of the adapter's weights, ``none`` for a base), ``X-Adapter-Version``, and what
code of the repository stood in front of the prompt: ``X-Gardener-Retrieval``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Router

from mlx_gardener.model.choose import choose_model, resolve_model
from mlx_gardener.platform.footprint import process_footprint_bytes
from mlx_gardener.platform.version import __version__
from mlx_gardener.serve import answers, prompts, streams
from mlx_gardener.serve.access import Access, access_of
from mlx_gardener.serve.bodies import (
    ChatBody,
    CompletionBody,
    InfillBody,
    LlamaCompletionBody,
    parse,
)
from mlx_gardener.serve.catalog import Catalog, Target
from mlx_gardener.serve.chats import chat_text, check_length
from mlx_gardener.serve.errors import shown_error
from mlx_gardener.serve.generation import Ending, Limits, TokenScore
from mlx_gardener.serve.guard import Guard
from mlx_gardener.serve.indexes import Indexes, Lookup
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.off_loop import off_loop
from mlx_gardener.serve.paths import ENDPOINTS
from mlx_gardener.serve.reading import read_json
from mlx_gardener.serve.routes import Handler, no_such_route, taking_one_method
from mlx_gardener.serve.settings import ServeSettings
from mlx_gardener.serve.worker import BadRequestError, EndOf, Finished, PieceOf, QueuedRequest, Worker

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

AnyBody = TypeVar("AnyBody", CompletionBody, ChatBody, InfillBody, LlamaCompletionBody)

#: Chat templates that may be rendered at the same time; each is a process.
_TEMPLATES_AT_ONCE = 2
#: A token with its log-probability in an answer, about.
_SCORE_BYTES = 64
#: Names of unknown fields that are remembered as told.
_MOST_TOLD = 200


class Server:
    """Handlers over a catalog and a worker."""

    def __init__(
        self,
        catalog: Catalog,
        worker: Worker,
        settings: ServeSettings,
        metrics: Metrics,
        indexes: Indexes,
        on_request: Callable[[Access], None] = lambda _: None,
    ) -> None:
        self._catalog = catalog
        self._worker = worker
        self._settings = settings
        self._metrics = metrics
        self._indexes = indexes
        self._on_request = on_request
        self._templates = asyncio.Semaphore(_TEMPLATES_AT_ONCE)
        self._told: set[str] = set()

    def app(self) -> Guard:
        """The ASGI application."""
        handlers: dict[str, Handler] = {
            "/v1/completions": self.completions,
            "/v1/chat/completions": self.chat,
            "/chat/completions": self.chat,
            "/v1/events": self.events,
            "/v1/models": self.models,
            "/models": self.models,
            "/infill": self.infill,
            "/completion": self.completion,
            "/completions": self.completion,
            "/props": self.props,
            "/health": self.health,
            "/v1/health": self.health,
            "/metrics": self.metrics,
        }
        routes = []
        for path, (method, _) in ENDPOINTS.items():
            for place in (path, "/projects/{model:path}" + path):
                routes.append(taking_one_method(place, method, handlers[path]))
        routes.append(taking_one_method("/v1/models/{model:path}", "GET", self.model))
        router = Router(routes=routes, default=no_such_route, redirect_slashes=False)
        return Guard(router, self._settings, self._metrics, self._on_request)

    # Looking.

    async def health(self, request: Request) -> Response:
        """That the server lives, and its computing thread."""
        worker = self._worker
        silent = worker.silent_seconds
        if worker.alive and silent < self._settings.stalled_seconds:
            # Tabby's agent asks for completions only where some model is named.
            return JSONResponse({"status": "ok", "version": __version__, "model": "mlx-gardener"})
        message = (
            f"The computing thread has given no sign for {silent:.0f} s." if worker.alive else "It ended."
        )
        content = {
            "status": "stalled",
            "version": __version__,
            "error": {"code": 503, "message": message, "type": "unavailable_error"},
        }
        return JSONResponse(content, status_code=503)

    async def events(self, request: Request) -> Response:
        """What Tabby's agent showed and what was taken of it: nothing of that is kept."""
        return JSONResponse({})

    async def models(self, request: Request) -> Response:
        """What can be asked for."""
        entries = [answers.model_entry(target) for target in self._catalog.targets()]
        return JSONResponse({"object": "list", "data": entries})

    async def model(self, request: Request) -> Response:
        """One of them."""
        return JSONResponse(answers.model_entry(self._catalog.find(request.path_params["model"])))

    async def props(self, request: Request) -> Response:
        """``/props``, as llama.cpp's server."""
        target = self._target(request, request.query_params.get("model"))

        def context() -> int:
            from mlx_gardener.engine.facts import model_facts

            return model_facts(resolve_model(choose_model(target.base))).max_tokens

        room = min(await asyncio.to_thread(context), self._settings.max_context_tokens)
        return JSONResponse(answers.props(target, room))

    async def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        worker = self._worker
        gauges = {
            "queue_requests": ("Requests that wait.", float(worker.waiting)),
            "busy": ("Whether an answer is being written.", float(worker.busy)),
            "bases_loaded": ("Bases in memory.", float(worker.residents.base_count)),
            "weights_bytes": ("What bases and adapters in memory take.", float(worker.residents.size_bytes)),
            "process_footprint_bytes": ("What the process takes.", float(process_footprint_bytes())),
            "index_chunks": ("Chunks that can be retrieved.", float(self._indexes.chunk_count)),
            "index_bytes": (
                "What their indexes take, mapped files included.",
                float(self._indexes.size_bytes),
            ),
        }
        counters = {
            "swaps_total": ("Times that another adapter was put in.", float(worker.residents.swaps)),
            "swap_seconds_total": ("Seconds that this took.", worker.residents.swap_seconds),
        }
        text = self._metrics.text(gauges, counters)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    # Writing.

    async def completions(self, request: Request) -> Response:
        """``/v1/completions``."""
        body = await self._body(request, CompletionBody)
        echoes = [text if body.echo and isinstance(text, str) else "" for text in body.prompts()]
        if body.echo and not all(isinstance(text, str) for text in body.prompts()):
            raise BadRequestError("echo: only prompts that are text are echoed.")

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[list[int]]:
            return prompts.completion_prompts(body, base, room, limits, lookup)

        job = self._job(self._target(request, body.model), body, prepare, body.n, body.logprobs)
        head = answers.head(job.target, "cmpl", "text_completion")

        def piece(index: int, text: str, scores: list[TokenScore], ending: Ending | None) -> dict[str, Any]:
            wanted = scores if body.logprobs is not None else None
            return answers.completion_choice(index, text, wanted, ending)

        def opening(index: int) -> list[dict[str, Any]]:
            echo = echoes[index // body.n]
            return [piece(index, echo, [], None)] if echo else []

        def choice(index: int, text: str, scores: list[TokenScore], ending: Ending) -> dict[str, Any]:
            return piece(index, echoes[index // body.n] + text, scores, ending)

        if body.stream:
            return await self._stream(request, job, head, piece, opening, body.with_usage)
        return await self._document(request, job, head, choice, body.n * sum(map(len, echoes)))

    async def chat(self, request: Request) -> Response:
        """``/v1/chat/completions``."""
        body = await self._body(request, ChatBody)
        check_length(body.characters, self._settings.max_context_tokens)
        target = self._target(request, body.model)

        def write_out() -> str:
            path = resolve_model(choose_model(target.base))
            return chat_text(path, target.base_id, [message.plain() for message in body.messages])

        async with self._templates:
            text = await asyncio.to_thread(write_out)

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[list[int]]:
            return prompts.chat_prompt(text, base, room, limits)

        job = self._job(target, body, prepare, body.n)

        def piece(index: int, text: str, scores: list[TokenScore], ending: Ending | None) -> dict[str, Any]:
            return answers.chat_delta(index, {"content": text} if text else {}, ending)

        def opening(index: int) -> list[dict[str, Any]]:
            return [answers.chat_delta(index, {"role": "assistant", "content": ""}, None)]

        def choice(index: int, text: str, scores: list[TokenScore], ending: Ending) -> dict[str, Any]:
            return answers.chat_choice(index, text, ending)

        if body.stream:
            head = answers.head(target, "chatcmpl", "chat.completion.chunk")
            return await self._stream(request, job, head, piece, opening, body.with_usage)
        head = answers.head(target, "chatcmpl", "chat.completion")
        return await self._document(request, job, head, choice)

    async def infill(self, request: Request) -> Response:
        """``/infill``, as llama.cpp's server."""
        body = await self._body(request, InfillBody)

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[list[int]]:
            return prompts.infill_prompt(body, base, room, limits, lookup)

        return await self._llama(request, body, prepare)

    async def completion(self, request: Request) -> Response:
        """``/completion``, as llama.cpp's server."""
        body = await self._body(request, LlamaCompletionBody)

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[list[int]]:
            return prompts.raw_prompts(body.prompts(), base, room, limits, lookup)

        return await self._llama(request, body, prepare)

    async def _llama(
        self,
        request: Request,
        body: InfillBody | LlamaCompletionBody,
        prepare: prompts.Prepare,
    ) -> Response:
        """An answer as llama.cpp's clients read it: one document, a list of them, or a stream."""
        job = self._job(self._target(request, body.model), body, prepare, body.n_cmpl)
        model, fields, access = job.target.id, body.response_fields, access_of(request.scope)
        if job.limits.max_tokens == 0:  # plugins warm llama.cpp's cache so; there is nothing to write
            nothing = Ending("length", "", 0, 0, 0, 0.0, 0.0)
            return JSONResponse(answers.llama(model, "", nothing, fields))
        if not body.stream:
            started, texts, _, endings = await streams.whole(request, self._worker, job)
            _count(access, endings, job)
            found = [
                answers.llama(model, text, ending, fields, at)
                for at, (text, ending) in enumerate(zip(texts, endings, strict=True))
            ]
            headers = answers.headers(job.target, started)
            return JSONResponse(found if body.n_cmpl > 1 else found[0], headers=headers)

        async def lines() -> AsyncIterator[dict[str, Any]]:
            while not isinstance(event := await job.events.get(), Finished):
                if isinstance(event, PieceOf):
                    yield {"index": 0, "content": event.piece.text, "stop": False}
                elif isinstance(event, EndOf):
                    _count(access, [event.ending], job)
                    yield answers.llama(model, "", event.ending, None)
            if event.error is not None:
                yield _told_error(request, event.error)

        started = await streams.started(request, self._worker, job)
        return streams.EventStream(lines(), job, answers.headers(job.target, started), closing=None)

    async def _body(self, request: Request, kind: type[AnyBody]) -> AnyBody:
        """A request's body, checked; fields that are unknown are told once."""
        data = bytearray()
        async for part in request.stream():
            data += part
        body, unknown = await off_loop(len(data), lambda: parse(kind, read_json(data)))
        for name in unknown[:20]:
            if name[:40] not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(name[:40])
                access_of(request.scope).ignored.append(name[:40])
        return body

    def _job(
        self,
        target: Target,
        body: CompletionBody | ChatBody | InfillBody | LlamaCompletionBody,
        prepare: prompts.Prepare,
        count: int,
        top_scores: int | None = None,
    ) -> QueuedRequest:
        """What the worker is to do; ``prepare`` makes the prompts' token ids when its turn comes."""
        limits = body.limits(self._settings.max_answer_tokens)
        lookup = Lookup(self._indexes, self._metrics, target)
        return QueuedRequest(
            target,
            lambda base, room: prepare(base, room, limits, lookup),
            lookup,
            body.sampling(),
            limits,
            answers=count,
            top_scores=top_scores,
            strength=body.strength(),
        )

    def _target(self, request: Request, model: str | None) -> Target:
        """What the path, else the body, names; else what stands in for nothing."""
        in_path = request.path_params.get("model")
        if in_path is not None:
            target = self._catalog.find(in_path)
            target = target if not model or "@" not in model else self._catalog.find(model)
        else:
            target = self._catalog.find(model) if model else self._catalog.default()
        access_of(request.scope).project = target.id
        return target

    async def _document(
        self,
        request: Request,
        job: QueuedRequest,
        head: dict[str, Any],
        choice: Callable[[int, str, list[TokenScore], Ending], dict[str, Any]],
        echoed: int = 0,
    ) -> Response:
        """One JSON document with all answers, as OpenAI's clients read it; ``echoed`` characters are the client's own."""
        started, texts, scores, endings = await streams.whole(request, self._worker, job)
        _count(access_of(request.scope), endings, job)

        def document() -> Response:
            choices = [
                choice(at, text, scores[at], ending)
                for at, (text, ending) in enumerate(zip(texts, endings, strict=True))
            ]
            content = {**head, "choices": choices, "usage": answers.usage(endings, job.answers)}
            return JSONResponse(content, headers=answers.headers(job.target, started))

        told = _SCORE_BYTES * (1 + (job.top_scores or 0)) * sum(map(len, scores))
        return await off_loop(echoed + sum(map(len, texts)) + told, document)

    async def _stream(
        self,
        request: Request,
        job: QueuedRequest,
        head: dict[str, Any],
        choice: Callable[[int, str, list[TokenScore], Ending | None], dict[str, Any]],
        opening: Callable[[int], list[dict[str, Any]]],
        with_usage: bool,
    ) -> Response:
        """Server-sent events, one a piece, as OpenAI's clients read them."""

        async def lines() -> AsyncIterator[dict[str, Any]]:
            endings: list[Ending] = []
            opened = -1
            while not isinstance(event := await job.events.get(), Finished):
                if isinstance(event, (PieceOf, EndOf)) and event.index > opened:
                    opened = event.index
                    for first in opening(opened):
                        yield {**head, "choices": [first]}
                if isinstance(event, PieceOf):
                    piece = event.piece
                    yield {**head, "choices": [choice(event.index, piece.text, list(piece.scores), None)]}
                elif isinstance(event, EndOf):
                    endings.append(event.ending)
                    _count(access_of(request.scope), endings, job)
                    yield {**head, "choices": [choice(event.index, "", [], event.ending)]}
            if event.error is not None:
                yield _told_error(request, event.error)
            elif with_usage:
                yield {**head, "choices": [], "usage": answers.usage(endings, job.answers)}

        started = await streams.started(request, self._worker, job)
        return streams.EventStream(lines(), job, answers.headers(job.target, started), closing="[DONE]")


def _told_error(request: Request, error: Exception) -> dict[str, Any]:
    """The body of an error in the middle of a stream; its status is sent already."""
    content = shown_error(error, request.url.path)[1]
    access_of(request.scope).refused = content["error"]["message"]
    return content


def _count(access: Access, endings: list[Ending], job: QueuedRequest) -> None:
    access.prompt_tokens = sum(ending.prompt_tokens for ending in endings[:: job.answers])
    access.written_tokens = sum(ending.written_tokens for ending in endings)
    found = job.lookup.found
    access.retrieved_chunks, access.retrieved_tokens = len(found.pieces), found.tokens
