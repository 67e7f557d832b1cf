"""An MCP server over standard input and output (modelcontextprotocol.io): what agents ask of a project's adapter and repository.

In: JSON-RPC on standard input, by the official SDK (the extra ``mcp``). Out: four tools: search the repository by the index that
retrieval serves, complete with the adapter as ``/v1/completions`` does, say how trainings stand, and give an adapter's verdict. One
computing thread, as in `serve.server`; a base is loaded by the first completion and stays. Nothing is written but the index.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import ConfigError, GardenerError
from mlx_gardener.platform.extras import how_to_install
from mlx_gardener.platform.version import __version__
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.report import advice
from mlx_gardener.report.known import known_of
from mlx_gardener.retrieval.words import query_words
from mlx_gardener.serve import prompts
from mlx_gardener.serve.access import SUFFIX_LEFT_OUT
from mlx_gardener.serve.bodies import CompletionBody, parse
from mlx_gardener.serve.catalog import Target, UnknownModelError
from mlx_gardener.serve.generation import Limits
from mlx_gardener.serve.indexes import Lookup
from mlx_gardener.serve.parts import Parts, running
from mlx_gardener.serve.settings import ServeSettings
from mlx_gardener.serve.worker import BadRequestError, EndOf, Finished, PieceOf

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from mlx_gardener.evaluate.complete import CaretPrompt
    from mlx_gardener.model import BaseModel

_MOST_CHUNKS = 32
#: Longest piece of code that is told whole.
_MOST_CHARACTERS = 8000
_INSTRUCTIONS = (
    "Tools over this machine's repositories for which mlx-gardener trained adapters. `status` lists the projects; the other tools "
    "take one by its name, and the active or only one without."
)


def run_mcp(registry: ProjectRegistry, settings: ServeSettings) -> None:
    """Answer on standard input and output until it ends.

    Raises:
        ConfigError: the SDK is not installed.
        RegistryError: there is no such project as one of ``settings.projects``.
    """
    for name in settings.projects:
        registry.get_project(name)
    with running(registry, settings) as parts:
        Tools(parts).server().run("stdio")


class Tools:
    """The tools over the parts of a server."""

    def __init__(self, parts: Parts) -> None:
        self._registry, self._catalog, self._indexes = parts.registry, parts.catalog, parts.indexes
        self._worker, self._intake = parts.worker, parts.intake

    def server(self) -> MCPServer:
        """The SDK's server with these tools.

        Raises:
            ConfigError: the SDK is not installed.
        """
        try:
            from mcp.server.mcpserver import MCPServer
            from mcp.server.mcpserver.exceptions import ToolError
        except ImportError as error:
            raise ConfigError(
                "The Python SDK of MCP is not installed.",
                next_step=how_to_install("mcp"),
            ) from error
        found: MCPServer = MCPServer(
            "mlx-gardener", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING"
        )

        def anticipated(error: GardenerError) -> ToolError:
            return ToolError(error.in_terminal)

        @found.tool()
        async def search_repository(query: str, project: str | None = None, count: int = 8) -> dict[str, Any]:
            """Search a project's repository for code (functions, classes, ...) by identifiers and words, best first."""
            try:
                return await asyncio.to_thread(self.search, query, project, count)
            except GardenerError as error:
                raise anticipated(error) from error

        @found.tool()
        async def complete(
            prefix: str,
            suffix: str | None = None,
            project: str | None = None,
            path: str = "",
            max_tokens: int = 64,
        ) -> dict[str, Any]:
            """Code that a project's adapter writes between prefix and suffix; path is the file's in the repository."""
            try:
                return await self.complete(prefix, suffix, project, path, max_tokens)
            except GardenerError as error:
                raise anticipated(error) from error

        @found.tool()
        async def status(project: str | None = None) -> dict[str, Any]:
            """Projects with their repository, base, active adapter version and latest training."""
            try:
                return await asyncio.to_thread(self.status, project)
            except GardenerError as error:
                raise anticipated(error) from error

        @found.tool()
        async def verdict(project: str | None = None) -> dict[str, Any]:
            """What was measured of a project's active adapter on code it never saw, and what that means."""
            try:
                return await asyncio.to_thread(self.verdict, project)
            except GardenerError as error:
                raise anticipated(error) from error

        return found

    def search(self, query: str, project: str | None, count: int) -> dict[str, Any]:
        """The chunks that a query finds in the repository as it was at the last look, which is taken now where one is due.

        Raises:
            BadRequestError: ``count`` is impossible, or the repository cannot be indexed.
            UnknownModelError: there is no such project.
        """
        if not 1 <= count <= _MOST_CHUNKS:
            raise BadRequestError(f"count: from 1 to {_MOST_CHUNKS} (got {count}).")
        name = self._project(project)
        index, problem = self._indexes.looked_at(name)
        if index is None:
            raise BadRequestError(f"{name}: {problem}.")
        chunks = []
        for chunk in index.search(query_words("", query), count):
            first, last = index.lines[chunk].tolist()
            text = index.text_of(chunk)[:_MOST_CHARACTERS]
            place = {"path": index.path_of(chunk), "start_line": first, "end_line": last}
            chunks.append({**place, "text": text})
        return {"project": name, "chunks": chunks}

    async def complete(
        self, prefix: str, suffix: str | None, project: str | None, path: str, max_tokens: int
    ) -> dict[str, Any]:
        """What the adapter writes, as ``/v1/completions`` does; raises as that."""
        sides = {"prompt": prefix, "suffix": suffix, "path": path, "max_tokens": max_tokens}
        body = parse(CompletionBody, sides)[0]
        target = self._target(project)

        def prepare(base: BaseModel, room: int, limits: Limits, lookup: Lookup) -> list[CaretPrompt]:
            return prompts.completion_prompts(body, base, room, limits, lookup)

        job = self._intake.job(target, body, prepare, sides=prompts.sides_of(body))
        text, reason = "", ""
        self._worker.submit(job)
        try:
            while not isinstance(event := await job.events.get(), Finished):
                if isinstance(event, PieceOf):
                    text += event.piece.text
                elif isinstance(event, EndOf):
                    reason = event.ending.reason
        finally:
            job.cancelled.set()  # a call that is cancelled stops its answer
        if event.error is not None:
            raise event.error
        version = target.record.version if target.record is not None else None
        told = {"project": target.id, "version": version, "base": target.base_id}
        found = {**told, "text": text, "ended_by": reason, "retrieval": job.lookup.header()}
        return {**found, "note": SUFFIX_LEFT_OUT} if job.leaves_out_suffix else found

    def status(self, project: str | None) -> dict[str, Any]:
        """How a project and its latest training stand; without a name, all that are served.

        Raises:
            BadRequestError: no such project is served.
        """
        served = self._catalog.projects()
        if project and project not in served:
            raise BadRequestError(
                f"No project {project!r} is served.",
                next_step=f"Name one: {', '.join(served)}."
                if served
                else "Train one with `mlx-gardener train PATH`.",
            )
        known = [self._registry.get_project(name) for name in ([project] if project else served)]
        running = {record.project for record in self._registry.active_trainings()}
        found = []
        for item in known:
            latest = self._registry.latest_training(item.name)
            active = None if item.active_adapter is None else self._registry.get_adapter(item.name)
            training = None
            if latest is not None:
                training = {
                    "status": latest.status.value,
                    "phase": latest.phase.value,
                    "progress_percent": latest.percent,
                    "message": latest.message,
                }
            found.append(
                {
                    "project": item.name,
                    "repository": str(item.path),
                    "base": None if active is None else active.base_model,
                    "version": None if active is None else active.version,
                    "is_training": item.name in running,
                    "training": training,
                }
            )
        return {"projects": found}

    def verdict(self, project: str | None) -> dict[str, Any]:
        """What the evidence of the active version says, that of the newest `eval` that measured enough, or else of its training.

        Raises:
            BadRequestError: it was never measured.
        """
        record = self._registry.get_adapter(self._project(project))
        evidence = known_of(self._registry, record).get("evidence")
        if not evidence:
            raise BadRequestError(
                f"{record.project} {record.version} was never measured.",
                next_step=f"`mlx-gardener eval {record.project}` does that.",
            )
        told = {"project": record.project, "version": record.version, "verdict": evidence["verdict"]}
        return {**told, "headline": advice.headline(evidence)[0], "meaning": advice.meaning(evidence)}

    def _target(self, name: str | None) -> Target:
        """What a name, or none, stands for."""
        if name:
            return self._catalog.find(name)
        try:
            return self._catalog.default()
        except UnknownModelError as error:
            names = ", ".join(target.id for target in self._catalog.targets() if target.is_project)
            if not names:
                raise BadRequestError(
                    "No project that is served has an adapter yet.",
                    next_step="Train one with `mlx-gardener train PATH`.",
                ) from error
            raise BadRequestError(
                "No project was named, and none is the active or only one.",
                next_step=f"Name one: {names}.",
            ) from error

    def _project(self, name: str | None) -> str:
        target = self._target(name)
        if target.record is None:
            raise BadRequestError(f"{target.id!r} is a base alone, and has no repository.")
        return target.record.project
