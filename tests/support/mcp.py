"""A client of the official SDK that is connected to the tools in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from mcp import Client

from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve.mcp import Tools
from mlx_gardener.serve.parts import running
from mlx_gardener.serve.settings import ServeSettings

_Result = TypeVar("_Result")


def with_client(registry: ProjectRegistry, ask: Callable[[Client], Awaitable[_Result]]) -> _Result:
    """What ``ask`` makes of a client that is connected to the tools in this process."""

    async def asking(tools: Tools) -> _Result:
        async with Client(tools.server()) as client:
            return await ask(client)

    with running(registry, ServeSettings(max_queued_seconds=600.0)) as parts:
        return asyncio.run(asking(Tools(parts)))


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    done = await client.call_tool(tool, arguments)
    assert not done.is_error, done.content
    assert done.structured_content is not None
    return dict(done.structured_content)
