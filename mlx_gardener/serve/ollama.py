"""Ollama's API (github.com/ollama/ollama, docs/api.md and server/routes.go), where editors look for it.

In: requests below ``/api``. Out: answers of the same worker, prompts and retrieval as ``/infill`` and ``/v1/completions`` have: a
prompt with a ``suffix`` takes the trained form, one without is read as it was written. Models are projects, under the names of
`catalog`; there is nothing to pull, create or delete here. Cost: that of the answers; a base's card is read once.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from mlx_gardener.serve import answers, prompts, streams
from mlx_gardener.serve.access import access_of
from mlx_gardener.serve.base_cards import BaseCard, base_card
from mlx_gardener.serve.catalog import Target
from mlx_gardener.serve.generation import Ending, Limits
from mlx_gardener.serve.indexes import Lookup
from mlx_gardener.serve.intake import count, told_error
from mlx_gardener.serve.off_loop import off_loop
from mlx_gardener.serve.ollama_bodies import GenerateBody, OllamaChatBody, ShowBody
from mlx_gardener.serve.parts import Parts
from mlx_gardener.serve.paths import REFUSED
from mlx_gardener.serve.routes import Handler
from mlx_gardener.serve.worker import BadRequestError, EndOf, Finished, PieceOf, QueuedRequest

if TYPE_CHECKING:
    from mlx_gardener.evaluate.complete import CaretPrompt
    from mlx_gardener.model import BaseModel

#: What may be asked to be written.
Asked = TypeVar("Asked", GenerateBody, OllamaChatBody)
#: The version of Ollama whose API this is: clients refuse what they take for an older one (Copilot Chat below 0.6.4).
OLLAMA_VERSION = "0.30.4"
#: What is in memory stays until others need its place: Ollama says "for ever" with a time that far away.
_FOR_EVER = timedelta(days=36525)


class OllamaApi:
    """Handlers of Ollama's endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._intake, self._catalog, self._worker = parts.intake, parts.catalog, parts.worker
        self._settings = parts.settings

    def handlers(self) -> dict[str, Handler]:
        """Handlers by path; see `paths`."""
        return {
            "/": self.root,
            "/api/version": self.version,
            "/api/tags": self.tags,
            "/api/show": self.show,
            "/api/ps": self.ps,
            "/api/generate": self.generate,
            "/api/chat": self.chat,
            **dict.fromkeys(REFUSED, self.refuse),
        }

    # Looking.

    async def root(self, request: Request) -> Response:
        """That somebody is there, in the words that clients look for."""
        if "model" in request.path_params:
            self._intake.target(request, None)
        return PlainTextResponse("Ollama is running")

    async def version(self, request: Request) -> Response:
        """``/api/version``: of the API, not of this package."""
        return JSONResponse({"version": OLLAMA_VERSION})

    async def refuse(self, request: Request) -> Response:
        """What Ollama does and this server does not."""
        path = next(path for path in REFUSED if request.scope["path"].endswith(path))
        message = f"mlx-gardener does not do {path}. {REFUSED[path][1]}"
        access_of(request.scope).refused = message
        return JSONResponse({"error": message}, status_code=501)

    async def tags(self, request: Request) -> Response:
        """``/api/tags``: every project, under each of its names."""

        def entries() -> list[dict[str, Any]]:
            found = self._catalog.editors_names()
            return [_entry(name, target, base_card(target.base)) for name, target in found]

        return JSONResponse({"models": await asyncio.to_thread(entries)})

    async def show(self, request: Request) -> Response:
        """``/api/show``."""
        body = await self._intake.body(request, ShowBody)
        target = self._intake.target(request, body.model)
        most = self._settings.max_context_tokens
        return JSONResponse(await asyncio.to_thread(lambda: _shown(target, base_card(target.base), most)))

    async def ps(self, request: Request) -> Response:
        """``/api/ps``: what is in memory."""

        def entries() -> list[dict[str, Any]]:
            from mlx_gardener.platform.device import backend

            on_gpu = backend() != "cpu"
            until = _written(time.time(), _FOR_EVER)
            targets = self._catalog.targets()
            bases = {target.base: target for target in targets if target.record is None}
            versions = {
                (record.project, record.version): target
                for target in targets
                if (record := target.record) is not None and not target.is_project
            }
            found = []
            for loaded, resident in self._worker.residents.loaded():
                target = bases.get(loaded.name) if resident is None else versions.get(resident.key[:2])
                if target is None:  # it was removed, and stays in memory until others need its place
                    continue
                name = _name_of(target)
                size = loaded.size_bytes + (resident.size_bytes if resident is not None else 0)
                room = min(loaded.max_tokens, self._settings.max_context_tokens)
                shown = {"size": size, "size_vram": size if on_gpu else 0, "context_length": room}
                entry = _entry(name, target, base_card(target.base))
                del entry["modified_at"], entry["capabilities"]
                found.append({**entry, **shown, "expires_at": until})
            return found

        return JSONResponse({"models": await asyncio.to_thread(entries)})

    # Writing.

    async def generate(self, request: Request) -> Response:
        """``/api/generate``."""
        began = time.monotonic()
        body, target, name = await self._asked(request, GenerateBody)

        def content(text: str) -> dict[str, Any]:
            return {"response": text}

        if body.is_empty:
            return await self._load(request, target, body, name, content)

        infill = body.infill() if body.suffix and not body.raw else None

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[CaretPrompt]:
            if infill is None:
                return prompts.completion_prompts(body.completion(), base, room, limits, lookup)
            if base.tokenizer.markers is None:
                raise BadRequestError(
                    f"{name!r} does not support insert: its base has no fill-in-the-middle markers.",
                    next_step="Leave the suffix out.",
                )
            return prompts.infill_prompt(infill, base, room, limits, lookup)

        sides = None if infill is None else prompts.sides_of_infill(infill)
        raw = [body.prompt] if infill is None else []
        job = self._intake.job(target, body.sampled(), prepare, raw=raw, sides=sides)
        return await self._answer(request, job, name, content, body.stream, began)

    async def chat(self, request: Request) -> Response:
        """``/api/chat``."""
        began = time.monotonic()
        body, target, name = await self._asked(request, OllamaChatBody)

        def content(text: str) -> dict[str, Any]:
            return {"message": {"role": "assistant", "content": text}}

        if not body.messages:
            return await self._load(request, target, body, name, content)
        text = await self._intake.chat_text(target, body.messages)

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[CaretPrompt]:
            return prompts.chat_prompt(text, base, room, limits)

        job = self._intake.job(target, body.sampled(), prepare)
        return await self._answer(request, job, name, content, body.stream, began)

    async def _asked(self, request: Request, kind: type[Asked]) -> tuple[Asked, Target, str]:
        """What was asked, of what, and by which name of it the answer speaks."""
        body = await self._intake.body(request, kind)
        target = self._intake.target(request, body.model)
        self._intake.tell_ignored(request, body.ignored())
        return body, target, body.model or target.id

    async def _load(
        self,
        request: Request,
        target: Target,
        body: GenerateBody | OllamaChatBody,
        name: str,
        content: Callable[[str], dict[str, Any]],
    ) -> Response:
        """Have a model in memory before it is asked, or let go of it (``keep_alive`` 0)."""
        job = self._intake.job(target, body.sampled(), lambda base, room, limits, lookup: [])
        job.unload = body.unloads
        started, _, _, _ = await streams.whole(request, self._worker, job)
        head = {"model": name, "created_at": _written(time.time()), **content("")}
        reason = "unload" if job.unload else "load"
        return JSONResponse(
            {**head, "done": True, "done_reason": reason}, headers=answers.headers(target, started)
        )

    async def _answer(
        self,
        request: Request,
        job: QueuedRequest,
        name: str,
        content: Callable[[str], dict[str, Any]],
        stream: bool,
        began: float,
    ) -> Response:
        """One document, or a line of JSON for each piece."""
        access = access_of(request.scope)

        def piece(text: str, ending: Ending | None) -> dict[str, Any]:
            head = {"model": name, "created_at": _written(time.time()), **content(text)}
            return (
                {**head, "done": False} if ending is None else {**head, "done": True, **_took(ending, began)}
            )

        if not stream:
            started, texts, _, endings = await streams.whole(request, self._worker, job)
            count(access, endings, job)
            headers = answers.headers(job.target, started)
            return await off_loop(
                len(texts[0]), lambda: JSONResponse(piece(texts[0], endings[0]), headers=headers)
            )

        async def lines() -> AsyncIterator[dict[str, Any]]:
            while not isinstance(event := await job.events.get(), Finished):
                if isinstance(event, PieceOf):
                    yield piece(event.piece.text, None)
                elif isinstance(event, EndOf):
                    count(access, [event.ending], job)
                    yield piece("", event.ending)
            if event.error is not None:
                yield told_error(request, event.error)

        started = await streams.started(request, self._worker, job)
        return streams.JsonLines(lines(), job, answers.headers(job.target, started), closing=None)


def _took(ending: Ending, began: float) -> dict[str, Any]:
    """Why an answer ended and what it took; times in nanoseconds. What neither reading nor writing took counts as loading."""
    total = int(1e9 * (time.monotonic() - began))
    read, written = int(1e6 * ending.prompt_ms), int(1e6 * ending.written_ms)
    return {
        "done_reason": "stop" if ending.reason == "stop" else "length",
        "total_duration": total,
        "load_duration": max(0, total - read - written),
        "prompt_eval_count": ending.prompt_tokens,
        "prompt_eval_duration": read,
        "eval_count": ending.written_tokens,
        "eval_duration": written,
    }


def _written(seconds: float, later: timedelta = timedelta()) -> str:
    """A time as RFC 3339 writes it."""
    return (datetime.fromtimestamp(seconds, UTC) + later).isoformat().replace("+00:00", "Z")


def _name_of(target: Target) -> str:
    """How a model is called with a tag."""
    if target.record is None:
        return f"{target.id}:latest"
    if target.record.active:
        return f"{target.record.project}:latest"
    return f"{target.record.project}:{target.record.version}"


def _entry(name: str, target: Target, card: BaseCard | None) -> dict[str, Any]:
    """A model in a list."""
    size = card.facts.stored_bytes if card is not None else 0
    digest = hashlib.sha256(target.base_id.encode()).hexdigest()
    if target.record is not None:
        weights = target.record.directory / "mlx" / "adapters.safetensors"
        size += weights.stat().st_size if weights.is_file() else 0
        digest = target.record.manifest_sha256
    return {
        "name": name,
        "model": name,
        "modified_at": _written(target.created_at),
        "size": size,
        "digest": digest,
        "details": _details(target, card),
        "capabilities": _capabilities(card),
    }


def _details(target: Target, card: BaseCard | None) -> dict[str, Any]:
    architecture = card.architecture if card is not None else ""
    return {
        "parent_model": target.base_id,
        "format": "safetensors",
        "family": architecture,
        "families": [architecture],
        "parameter_size": card.parameter_size if card is not None else "",
        "quantization_level": card.quantization if card is not None else "",
    }


def _capabilities(card: BaseCard | None) -> list[str]:
    return ["completion", "insert"] if card is not None and card.has_fim else ["completion"]


def _shown(target: Target, card: BaseCard | None, most_context: int) -> dict[str, Any]:
    """The answer of ``/api/show``."""
    info: dict[str, Any] = {"general.architecture": "", "general.basename": target.id}
    template, parameters = "{{ .Prompt }}", "temperature                    0"
    if card is not None:
        own, facts, template = card.architecture, card.facts, card.template
        room = min(facts.max_tokens, most_context)
        parameters += f"\nnum_ctx                        {room}"
        info |= {
            "general.architecture": own,
            "general.parameter_count": facts.parameters,
            f"{own}.context_length": room,
            f"{own}.embedding_length": facts.hidden,
            f"{own}.block_count": facts.layers,
            f"{own}.feed_forward_length": facts.intermediate,
            f"{own}.attention.head_count": facts.heads,
            f"{own}.vocab_size": facts.vocab,
        }
    if target.record is not None:
        info |= {
            "mlx_gardener.project": target.record.project,
            "mlx_gardener.version": target.record.version,
        }
    lines = (f"PARAMETER {' '.join(line.split())}" for line in parameters.splitlines())
    return {
        "modelfile": "\n".join([f"FROM {target.base_id}", f'TEMPLATE """{template}"""', *lines]) + "\n",
        "parameters": parameters,
        "template": template,
        "details": _details(target, card),
        "model_info": info,
        "capabilities": _capabilities(card),
        "modified_at": _written(target.created_at),
    }
