"""Answers on their way to a client: collected whole, or streamed as they are written; a client that leaves stops its job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_gardener.serve.generation import Ending, TokenScore
from mlx_gardener.serve.worker import BusyError, EndOf, Finished, PieceOf, QueuedRequest, Started, Worker

_Result = TypeVar("_Result")


class EventStream(Response):
    """Server-sent events of a job; a client that goes away stops it."""

    media_type = "text/event-stream"
    _before, _after = "data: ", "\n\n"

    def __init__(
        self,
        lines: AsyncIterator[dict[str, Any]],
        job: QueuedRequest,
        headers: dict[str, str],
        *,
        closing: str | None,
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
            if not writing.done():
                raise ClientDisconnect
            writing.result()
        finally:
            self._job.cancelled.set()
            for task in (gone, writing):
                task.cancel()

    async def _write(self, send: Send) -> None:
        async def line(text: str) -> None:
            body = f"{self._before}{text}{self._after}".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
            # Where everything is written already (a copy of an answer), nothing above waits: others have their turn here.
            await asyncio.sleep(0)

        async for content in self._lines:
            await line(json.dumps(content))
        if self._closing is not None:
            await line(self._closing)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class JsonLines(EventStream):
    """The same as JSON, a line each, as Ollama's clients read it."""

    media_type = "application/x-ndjson"
    _before, _after = "", "\n"


async def started(request: Request, worker: Worker, job: QueuedRequest) -> Started:
    """Queue a job and wait until its answer begins; a client that goes away meanwhile takes it out again.

    Raises:
        Exception: what went wrong before the answer began.
    """
    worker.submit(job)
    event = await _unless_gone(request, job, job.events.get())
    if isinstance(event, Finished):
        raise event.error or BusyError("The request was stopped.")
    assert isinstance(event, Started)
    return event


async def whole(
    request: Request, worker: Worker, job: QueuedRequest
) -> tuple[Started, list[str], list[list[TokenScore]], list[Ending]]:
    """Everything of a job: texts, scores and ends of its answers in order.

    Raises:
        Exception: what went wrong with it.
    """

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

    first = await started(request, worker, job)
    texts, scores, endings = await _unless_gone(request, job, collect())
    return first, ["".join(parts) for parts in texts], scores, endings


async def _gone(receive: Receive) -> None:
    """Until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(request: Request, job: QueuedRequest, work: Awaitable[_Result]) -> _Result:
    """The result of ``work``, unless the client goes away first: then the job is stopped.

    Raises:
        ClientDisconnect: it went away.
        Exception: what ``work`` raises.
    """
    gone = asyncio.create_task(_gone(request.receive))
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    except BaseException:
        job.cancelled.set()
        raise
    finally:
        for task in (gone, working):
            task.cancel()
