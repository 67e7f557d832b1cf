"""The HTTP side: routes and what each answers. Nothing here computes; handlers await the worker's events.

Every route is also below ``/projects/NAME/``, for editors that can be given an address and no model's name. Answers name
what wrote them: ``X-Model``, ``X-Adapter`` (sha256 of the adapter's weights, ``none`` for a base), ``X-Adapter-Version``, and what
code of the repository stood in front of the prompt: ``X-Gardener-Retrieval``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Router

from mlx_gardener.model.choose import choose_model, resolve_model
from mlx_gardener.platform.footprint import process_footprint_bytes
from mlx_gardener.platform.version import __version__
from mlx_gardener.serve import answers, prompts, streams
from mlx_gardener.serve.access import Access, access_of
from mlx_gardener.serve.bodies import ChatBody, CompletionBody, InfillBody, LlamaCompletionBody
from mlx_gardener.serve.generation import Ending, Limits, TokenScore
from mlx_gardener.serve.guard import Guard
from mlx_gardener.serve.indexes import Lookup
from mlx_gardener.serve.intake import count, told_error
from mlx_gardener.serve.off_loop import off_loop
from mlx_gardener.serve.ollama import OllamaApi
from mlx_gardener.serve.page import PageMaker, wants_page
from mlx_gardener.serve.parts import Parts
from mlx_gardener.serve.paths import ENDPOINTS, REFUSED
from mlx_gardener.serve.routes import Handler, no_such_route, taking_one_method
from mlx_gardener.serve.worker import BadRequestError, EndOf, Finished, PieceOf, QueuedRequest

if TYPE_CHECKING:
    from mlx_gardener.evaluate.complete import CaretPrompt
    from mlx_gardener.model import BaseModel

#: A token with its log-probability in an answer, about.
_SCORE_BYTES = 64


class Server:
    """Handlers over the parts of a server."""

    def __init__(
        self,
        parts: Parts,
        on_request: Callable[[Access], None] = lambda _: None,
        page: PageMaker | None = None,
    ) -> None:
        self._parts = parts
        self._catalog, self._worker, self._intake = parts.catalog, parts.worker, parts.intake
        self._on_request = on_request
        self._page = None if page is None else page(parts)

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
            **OllamaApi(self._parts).handlers(),
        }
        routes: list[BaseRoute] = []
        if self._page is not None:
            handlers["/"] = self._root(handlers["/"], self._page.index)
            routes += self._page.routes
        for path, (method, _) in {**ENDPOINTS, **REFUSED}.items():
            # Below a project "/" is that alone, and not the end of any other path.
            below = "/projects/{model}/" if path == "/" else "/projects/{model:path}" + path
            for place in (path, below):
                routes.append(taking_one_method(place, method, handlers[path]))
        routes.append(taking_one_method("/v1/models/{model:path}", "GET", self.model))
        router = Router(routes=routes, default=no_such_route, redirect_slashes=False)
        return Guard(
            router,
            self._parts.settings,
            self._parts.metrics,
            self._on_request,
            has_page=self._page is not None,
        )

    def end(self) -> None:
        """Let answers come to their end that wait for something to happen: the server ends."""
        if self._page is not None:
            self._page.end()

    @staticmethod
    def _root(others: Handler, browsers: Handler) -> Handler:
        """``/``: the page for browsers, what it was for everybody else."""

        async def root(request: Request) -> Response:
            opens = wants_page(request.scope["path"], request.headers.get("accept", ""))
            return await (browsers if opens else others)(request)

        return root

    # Looking.

    async def health(self, request: Request) -> Response:
        """That the server lives, and its computing thread."""
        worker = self._worker
        silent = worker.silent_seconds
        if worker.alive and silent < self._parts.settings.stalled_seconds:
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
        target = self._intake.target(request, request.query_params.get("model"))

        def context() -> int:
            from mlx_gardener.engine.facts import model_facts

            return model_facts(resolve_model(choose_model(target.base))).max_tokens

        room = min(await asyncio.to_thread(context), self._parts.settings.max_context_tokens)
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
            "index_chunks": ("Chunks that can be retrieved.", float(self._parts.indexes.chunk_count)),
            "index_bytes": (
                "What their indexes take, mapped files included.",
                float(self._parts.indexes.size_bytes),
            ),
        }
        counters = {
            "swaps_total": ("Times that another adapter was put in.", float(worker.residents.swaps)),
            "swap_seconds_total": ("Seconds that this took.", worker.residents.swap_seconds),
        }
        text = self._parts.metrics.text(gauges, counters)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    # Writing.

    async def completions(self, request: Request) -> Response:
        """``/v1/completions``."""
        body = await self._intake.body(request, CompletionBody)
        echoes = [text if body.echo and isinstance(text, str) else "" for text in body.prompts()]
        if body.echo and not all(isinstance(text, str) for text in body.prompts()):
            raise BadRequestError("echo: only prompts that are text are echoed.")

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[CaretPrompt]:
            return prompts.completion_prompts(body, base, room, limits, lookup)

        raw = () if body.suffix is not None or body.file else body.prompts()
        target = self._intake.target(request, body.model)
        job = self._intake.job(
            target,
            body,
            prepare,
            body.n,
            body.logprobs,
            raw=raw,
            sides=prompts.sides_of(body),
        )
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
        body = await self._intake.body(request, ChatBody)
        target = self._intake.target(request, body.model)
        text = await self._intake.chat_text(target, body.messages)

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[CaretPrompt]:
            return prompts.chat_prompt(text, base, room, limits)

        job = self._intake.job(target, body, prepare, body.n)

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
        body = await self._intake.body(request, InfillBody)

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[CaretPrompt]:
            return prompts.infill_prompt(body, base, room, limits, lookup)

        return await self._llama(request, body, prepare, sides=prompts.sides_of_infill(body))

    async def completion(self, request: Request) -> Response:
        """``/completion``, as llama.cpp's server."""
        body = await self._intake.body(request, LlamaCompletionBody)

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[CaretPrompt]:
            return prompts.raw_prompts(body.prompts(), base, room, limits, lookup)

        return await self._llama(request, body, prepare, raw=body.prompts())

    async def _llama(
        self,
        request: Request,
        body: InfillBody | LlamaCompletionBody,
        prepare: prompts.Prepare,
        *,
        raw: Sequence[object] = (),
        sides: prompts.Sides | None = None,
    ) -> Response:
        """An answer as llama.cpp's clients read it: one document, a list of them, or a stream."""
        target = self._intake.target(request, body.model)
        job = self._intake.job(target, body, prepare, body.n_cmpl, raw=raw, sides=sides)
        model, fields, access = job.target.id, body.response_fields, access_of(request.scope)
        if job.limits.max_tokens == 0:  # plugins warm llama.cpp's cache so; there is nothing to write
            nothing = Ending("length", "", 0, 0, 0, 0.0, 0.0)
            return JSONResponse(answers.llama(model, "", nothing, fields))
        if not body.stream:
            started, texts, _, endings = await streams.whole(request, self._worker, job)
            count(access, endings, job)
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
                    count(access, [event.ending], job)
                    yield answers.llama(model, "", event.ending, None)
            if event.error is not None:
                yield told_error(request, event.error)

        started = await streams.started(request, self._worker, job)
        return streams.EventStream(lines(), job, answers.headers(job.target, started), closing=None)

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
        count(access_of(request.scope), endings, job)

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
                    count(access_of(request.scope), endings, job)
                    yield {**head, "choices": [choice(event.index, "", [], event.ending)]}
            if event.error is not None:
                yield told_error(request, event.error)
            elif with_usage:
                yield {**head, "choices": [], "usage": answers.usage(endings, job.answers)}

        started = await streams.started(request, self._worker, job)
        return streams.EventStream(lines(), job, answers.headers(job.target, started), closing="[DONE]")
