"""The HTTP side: routes, streams, errors. Nothing here computes; handlers await the worker's events.

Every route is also below ``/projects/NAME/``, for editors that can be given an address and no model's name. Answers name
what wrote them: ``X-Model``, ``X-Adapter`` (sha256 of the adapter's weights, ``none`` for a base) and ``X-Adapter-Version``.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlx_gardener import __version__
from mlx_gardener.errors import AdapterError, GardenerError, MemoryBudgetError, ModelError, RegistryError
from mlx_gardener.platform.footprint import process_footprint_bytes
from mlx_gardener.platform.untrusted import parse_json
from mlx_gardener.serve import answers, prompts
from mlx_gardener.serve.bodies import ChatBody, CompletionBody, InfillBody, parse
from mlx_gardener.serve.catalog import Catalog, Target, UnknownModelError
from mlx_gardener.serve.generation import Ending, TokenScore
from mlx_gardener.serve.guard import BodyTooLargeError, Guard
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.settings import ServeSettings
from mlx_gardener.serve.worker import (
    BadRequestError,
    BusyError,
    EndOf,
    Finished,
    Job,
    PieceOf,
    Started,
    Worker,
)

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

AnyBody = TypeVar("AnyBody", CompletionBody, ChatBody, InfillBody)

#: Errors by kind: status, OpenAI's type, code. The first that fits.
_STATUS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (BadRequestError, 400, "invalid_request_error", "bad_request"),
    (BodyTooLargeError, 413, "invalid_request_error", "too_large"),
    (BusyError, 503, "server_error", "busy"),
    (MemoryBudgetError, 507, "server_error", "memory_budget"),
    (AdapterError, 500, "server_error", "adapter_unusable"),
    (ModelError, 500, "server_error", "model_unusable"),
    (RegistryError, 500, "server_error", "registry_unreadable"),
)
_RETRY_SECONDS = "1"


class Server:
    """Handlers over a catalog and a worker."""

    def __init__(self, catalog: Catalog, worker: Worker, settings: ServeSettings, metrics: Metrics) -> None:
        self._catalog = catalog
        self._worker = worker
        self._settings = settings
        self._metrics = metrics

    def app(self) -> Guard:
        """The ASGI application."""
        routes = []
        for path, handler, method in (
            ("/v1/models", self.models, "GET"),
            ("/v1/completions", self.completions, "POST"),
            ("/v1/chat/completions", self.chat, "POST"),
            ("/infill", self.infill, "POST"),
            ("/health", self.health, "GET"),
        ):
            routes += [
                Route(path, _shown(handler), methods=[method]),
                Route("/projects/{model:path}" + path, _shown(handler), methods=[method]),
            ]
        routes += [
            Route("/v1/health", _shown(self.health), methods=["GET"]),
            Route("/v1/models/{model:path}", _shown(self.model), methods=["GET"]),
            Route("/metrics", _shown(self.metrics), methods=["GET"]),
        ]
        return Guard(Starlette(routes=routes), self._settings, self._metrics)

    # Looking.

    async def health(self, request: Request) -> Response:
        """That the server lives."""
        return JSONResponse({"status": "ok", "version": __version__})

    async def models(self, request: Request) -> Response:
        """What can be asked for."""
        return JSONResponse(
            {"object": "list", "data": [_model(target) for target in self._catalog.targets()]}
        )

    async def model(self, request: Request) -> Response:
        """One of them."""
        return JSONResponse(_model(self._catalog.find(request.path_params["model"])))

    async def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        worker = self._worker
        gauges = {
            "queue_requests": ("Requests that wait.", float(worker.waiting)),
            "busy": ("Whether an answer is being written.", float(worker.busy)),
            "bases_loaded": ("Bases in memory.", float(worker.residents.base_count)),
            "weights_bytes": ("What bases and adapters in memory take.", float(worker.residents.size_bytes)),
            "process_footprint_bytes": ("What the process takes.", float(process_footprint_bytes())),
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
        body = parse(CompletionBody, await _json(request))
        job = self._job(request, body, prompts.completion_prompts, count=body.n, top_scores=body.logprobs)
        echoes = [text if body.echo and isinstance(text, str) else "" for text in body.prompts()]
        if body.echo and not all(isinstance(text, str) for text in body.prompts()):
            raise BadRequestError("echo: only prompts that are text are echoed.")
        head = _head(job.target, "cmpl", "text_completion")

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
        return await self._document(request, job, head, choice)

    async def chat(self, request: Request) -> Response:
        """``/v1/chat/completions``."""
        body = parse(ChatBody, await _json(request))
        job = self._job(request, body, prompts.chat_prompt, count=body.n)

        def piece(index: int, text: str, scores: list[TokenScore], ending: Ending | None) -> dict[str, Any]:
            return answers.chat_delta(index, {"content": text} if text else {}, ending)

        def opening(index: int) -> list[dict[str, Any]]:
            return [answers.chat_delta(index, {"role": "assistant", "content": ""}, None)]

        def choice(index: int, text: str, scores: list[TokenScore], ending: Ending) -> dict[str, Any]:
            return answers.chat_choice(index, text, ending)

        if body.stream:
            head = _head(job.target, "chatcmpl", "chat.completion.chunk")
            return await self._stream(request, job, head, piece, opening, body.with_usage)
        return await self._document(request, job, _head(job.target, "chatcmpl", "chat.completion"), choice)

    async def infill(self, request: Request) -> Response:
        """``/infill``, as llama.cpp's server."""
        body = parse(InfillBody, await _json(request))
        job = self._job(request, body, prompts.infill_prompt)
        model = job.target.id
        if job.limits.max_tokens == 0:  # plugins warm llama.cpp's cache so; there is nothing to write
            nothing = Ending("length", "", 0, 0, 0, 0.0, 0.0)
            return JSONResponse(answers.infill(model, "", nothing, body.response_fields))
        if not body.stream:
            started, texts, _, endings = await self._whole(request, job)
            content = answers.infill(model, texts[0], endings[0], body.response_fields)
            return JSONResponse(content, headers=_headers(job.target, started))

        async def lines() -> AsyncIterator[dict[str, Any]]:
            while not isinstance(event := await job.events.get(), Finished):
                if isinstance(event, PieceOf):
                    yield {"index": 0, "content": event.piece.text, "stop": False}
                elif isinstance(event, EndOf):
                    yield answers.infill(model, "", event.ending, None)
            if event.error is not None:
                yield _shown_error(event.error)[1]

        started = await self._started(request, job)
        return EventStream(lines(), job, _headers(job.target, started), closing=None)

    def _job(
        self,
        request: Request,
        body: AnyBody,
        prepare: Callable[[AnyBody, BaseModel, int, int], list[list[int]]],
        *,
        count: int = 1,
        top_scores: int | None = None,
    ) -> Job:
        """What the worker is to do; ``prepare`` makes the prompts' token ids when its turn comes."""
        limits = body.limits(self._settings.max_answer_tokens)
        return Job(
            self._target(request, body.model),
            lambda base, room: prepare(body, base, room, limits.max_tokens),
            body.sampling(),
            limits,
            answers=count,
            top_scores=top_scores,
        )

    def _target(self, request: Request, model: str | None) -> Target:
        """What the path, else the body, names; else what stands in for nothing."""
        in_path = request.path_params.get("model")
        if in_path is not None:
            target = self._catalog.find(in_path)
            return target if not model or "@" not in model else self._catalog.find(model)
        return self._catalog.find(model) if model else self._catalog.default()

    async def _started(self, request: Request, job: Job) -> Started:
        """Queue a job and wait until its answer begins; a client that goes away meanwhile takes it out again."""
        self._worker.submit(job)
        event = await _unless_gone(request, job, job.events.get())
        if isinstance(event, Finished):
            raise event.error or BusyError("The request was stopped.")
        assert isinstance(event, Started)
        return event

    async def _whole(
        self, request: Request, job: Job
    ) -> tuple[Started, list[str], list[list[TokenScore]], list[Ending]]:
        """Everything of a job: texts, scores and ends of its answers in order."""

        async def collect() -> tuple[list[list[str]], list[list[TokenScore]], list[Ending]]:
            texts: list[list[str]] = [[]]
            scores: list[list[TokenScore]] = [[]]
            endings: list[Ending] = []
            while not isinstance(event := await job.events.get(), Finished):
                if isinstance(event, PieceOf):
                    texts[-1].append(event.piece.text)
                    scores[-1].extend(event.piece.scores)
                elif isinstance(event, EndOf):
                    endings.append(event.ending)
                    texts.append([])
                    scores.append([])
            if event.error is not None:
                raise event.error
            return texts[:-1], scores[:-1], endings

        started = await self._started(request, job)
        texts, scores, endings = await _unless_gone(request, job, collect())
        return started, ["".join(parts) for parts in texts], scores, endings

    async def _document(
        self,
        request: Request,
        job: Job,
        head: dict[str, Any],
        choice: Callable[[int, str, list[TokenScore], Ending], dict[str, Any]],
    ) -> Response:
        """One JSON document with all answers, as OpenAI's clients read it."""
        started, texts, scores, endings = await self._whole(request, job)
        choices = [
            choice(at, text, scores[at], ending)
            for at, (text, ending) in enumerate(zip(texts, endings, strict=True))
        ]
        content = {**head, "choices": choices, "usage": answers.usage(endings, job.answers)}
        return JSONResponse(content, headers=_headers(job.target, started))

    async def _stream(
        self,
        request: Request,
        job: Job,
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
                    yield {**head, "choices": [choice(event.index, "", [], event.ending)]}
            if event.error is not None:
                yield _shown_error(event.error)[1]
            elif with_usage:
                yield {**head, "choices": [], "usage": answers.usage(endings, job.answers)}

        started = await self._started(request, job)
        return EventStream(lines(), job, _headers(job.target, started), closing="[DONE]")


class EventStream(Response):
    """Server-sent events of a job; a client that goes away stops it."""

    media_type = "text/event-stream"

    def __init__(
        self, lines: AsyncIterator[dict[str, Any]], job: Job, headers: dict[str, str], *, closing: str | None
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-store"})
        del self.headers["content-length"]
        self._lines, self._job, self._closing = lines, job, closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        gone = asyncio.create_task(_gone(receive))
        writing = asyncio.create_task(self._write(send))
        try:
            await asyncio.wait({gone, writing}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            self._job.cancelled.set()
            for task in (gone, writing):
                task.cancel()

    async def _write(self, send: Send) -> None:
        async def line(text: str) -> None:
            await send(
                {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}
            )

        async for content in self._lines:
            await line(json.dumps(content))
        if self._closing is not None:
            await line(self._closing)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    """Until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(request: Request, job: Job, work: Any) -> Any:
    """The result of ``work``, unless the client goes away first: then the job is stopped."""
    gone = asyncio.create_task(_gone(request.receive))
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise BusyError("The client went away.")
    except BaseException:
        job.cancelled.set()
        raise
    finally:
        for task in (gone, working):
            task.cancel()


def _shown(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """A handler whose errors are answers."""

    async def shown(request: Request) -> Response:
        try:
            return await handler(request)
        except (GardenerError, BodyTooLargeError) as error:
            status, body = _shown_error(error)
            headers = {"retry-after": _RETRY_SECONDS} if status == 503 else {}
            return JSONResponse(body, status_code=status, headers=headers)
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody

    return shown


def _shown_error(error: Exception) -> tuple[int, dict[str, Any]]:
    for kind, status, name, code in _STATUS:
        if isinstance(error, kind):
            message = "The request is too long." if kind is BodyTooLargeError else str(error)
            return status, answers.error_body(message, name, code)
    message = (
        str(error) if isinstance(error, GardenerError) else "A defect of mlx-gardener; its log says more."
    )
    return 500, answers.error_body(message, "server_error", "internal")


async def _json(request: Request) -> object:
    try:
        return parse_json(await request.body())
    except ValueError as error:
        raise BadRequestError(f"The request is not JSON ({error}).") from error


def _model(target: Target) -> dict[str, Any]:
    record = target.record
    return {
        "id": target.id,
        "object": "model",
        "created": int(target.created_at),
        "owned_by": "mlx-gardener",
        "base": target.base_id,
        "adapter_version": record.version if record is not None else None,
        "active": record.active if record is not None else None,
    }


def _head(target: Target, prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": target.id,
        "system_fingerprint": f"mlx-gardener-{__version__}",
    }


def _headers(target: Target, started: Started) -> dict[str, str]:
    return {
        "x-model": target.id,
        "x-adapter": started.weights_sha256 or "none",
        "x-adapter-version": started.version or "none",
    }
