"""Completions to try a version with: base or adapter, with or without retrieved code, from the computing thread that editors have.

In: code around a caret. Out: what is written, what stood in front of the prompt, tokens and milliseconds. Cost: an answer; the
base is loaded with the first.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from mlx_gardener.serve import prompts, streams
from mlx_gardener.serve.access import access_of
from mlx_gardener.serve.bodies import InfillBody
from mlx_gardener.serve.catalog import Target
from mlx_gardener.serve.generation import Limits
from mlx_gardener.serve.indexes import BEING_READ, Lookup
from mlx_gardener.serve.intake import count
from mlx_gardener.serve.parts import Parts
from mlx_gardener.ui.answers import Handlers, answer, read_body

if TYPE_CHECKING:
    from mlx_gardener.evaluate.complete import CaretPrompt
    from mlx_gardener.model import BaseModel


class TryBody(InfillBody):
    """``/infill`` with what answers: the project's ``version`` (the active one when None) or its base, with code in front or not."""

    project: str = Field(max_length=4096)
    version: str | None = None
    adapter: bool = True
    retrieval: bool = False


#: How long an answer waits for the first index of a repository, and between two looks whether it is there, seconds.
_INDEX_SECONDS, _LOOK_SECONDS = 60.0, 0.2


class Trying:
    """The handler, over the server's worker."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def handlers(self) -> Handlers:
        """By path."""
        return {"try": ("POST", self.complete)}

    async def _index(self, project: str) -> None:
        """Wait for a project's index, as answers for editors do not: here one is compared with another."""
        until = time.monotonic() + _INDEX_SECONDS
        while time.monotonic() < until:
            index, why = await asyncio.to_thread(self._parts.indexes.index_of, project)
            if index is not None or why != BEING_READ:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def complete(self, request: Request) -> JSONResponse:
        """One answer."""
        body = await read_body(request, TryBody)
        catalog = self._parts.catalog
        own = catalog.find(body.project if body.version is None else f"{body.project}@{body.version}")
        target = own if body.adapter else Target(own.base_id, own.base_id, own.base, None)
        access_of(request.scope).project = own.id
        if body.retrieval and own.record is not None:
            await self._index(own.record.project)
        front = ""

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[CaretPrompt]:
            nonlocal front
            made = prompts.infill_prompt(body, base, room, limits, lookup)
            front = base.tokenizer.decode(list(lookup.found.ids))
            return made

        job = self._parts.intake.job(
            target, body, prepare, sides=prompts.sides_of_infill(body), for_use=False
        )
        job.lookup.target, job.lookup.wish = own, "on" if body.retrieval else "off"
        _, texts, _, endings = await streams.whole(request, self._parts.worker, job)
        count(access_of(request.scope), endings, job)
        ending = endings[0]
        return answer(
            {
                "text": texts[0],
                "ended_by": ending.reason,
                "prompt_tokens": ending.prompt_tokens,
                "cached_tokens": ending.cached_tokens,
                "written_tokens": ending.written_tokens,
                "milliseconds": ending.prompt_ms + ending.written_ms,
                "pieces": [piece.to_json() for piece in job.lookup.found.pieces],
                "front": front,
                "retrieval": job.lookup.header(),
                "leaves_out_suffix": job.leaves_out_suffix,
            }
        )
