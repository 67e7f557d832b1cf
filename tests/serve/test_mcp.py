"""Agents' tools, called by the official SDK's client: in this process, and as the command that agents start."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from mlx_gardener.adapter import ManifestDetails, PeftManager, attach_adapter
from mlx_gardener.evaluate.complete import complete
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs import indexed
from mlx_gardener.serve import indexes as indexes_module
from mlx_gardener.serve.mcp import Tools
from mlx_gardener.serve.parts import running
from mlx_gardener.serve.settings import ServeSettings
from tests.support.adapters import SHAPES, make_adapter
from tests.support.mcp import call, with_client
from tests.support.repositories import write_repository
from tests.support.requests import World

PREFIX, SUFFIX = "class Basket:\n    def area(self):\n        return ", "\n\n\nprint(Basket().area())\n"


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    done = await client.call_tool(tool, arguments)
    assert done.is_error
    return str(done.content[0].text)  # type: ignore[union-attr]


def test_the_sdks_client_lists_and_calls_the_tools(world: World) -> None:
    registry, base = world
    root = registry.get_project("alpha").path
    write_repository(root, modules=3)
    (root / "lantern.py").write_text("def light_the_lantern(oil):\n    flame = oil * 2\n    return flame\n")
    evidence = {"verdict": "inconclusive"}
    details = ManifestDetails({}, {}, {}, evidence, {}, {})
    with attach_adapter(base, PeftManager(registry).load_adapter("beta")):
        wanted = complete(base, PREFIX, SUFFIX, max_new_tokens=16)

    async def ask(client: Client) -> None:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == {"search_repository", "complete", "status", "verdict"}
        found = await call(client, "search_repository", project="alpha", query="light lantern", count=3)
        best = found["chunks"][0]
        assert best["path"] == "lantern.py" and "def light_the_lantern" in best["text"]
        assert best["start_line"] == 1 and 1 <= len(found["chunks"]) <= 3
        written = await call(client, "complete", project="beta", prefix=PREFIX, suffix=SUFFIX, max_tokens=16)
        assert written["text"] == wanted != "" and (written["project"], written["version"]) == ("beta", "v1")
        known = (await call(client, "status"))["projects"]
        assert [item["project"] for item in known] == sorted(SHAPES)
        one = (await call(client, "status", project="alpha"))["projects"]
        assert one[0]["version"] == "v1" and one[0]["base"] == "seedling" and not one[0]["is_training"]
        assert one[0]["training"]["status"] == "completed" and one[0]["repository"] == str(root)
        assert "never measured" in await refused(client, "verdict", project="alpha")
        make_adapter(registry, "alpha", base, SHAPES["alpha"], seed=1, details=details)
        assert "v2" in json.dumps(await call(client, "verdict", project="alpha"))
        assert "omega" in await refused(client, "complete", project="omega", prefix="x")
        assert "omega" in await refused(client, "status", project="omega")
        assert "Name one: alpha, beta" in await refused(client, "search_repository", query="x")
        assert "count" in await refused(client, "search_repository", project="alpha", query="x", count=99)
        assert "max_tokens" in await refused(client, "complete", project="beta", prefix="x", max_tokens=10**6)
        assert "alone" in await refused(client, "search_repository", project="seedling", query="x")

    with_client(registry, ask)


def test_searching_often_looks_at_the_repository_no_oftener_than_serving(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first search waits for a look, and so does one after the next is due; between them none is taken."""
    registry, _ = world
    root = registry.get_project("delta").path
    write_repository(root, modules=2)
    monkeypatch.setattr(indexes_module, "_LEAST_SECONDS", 3600.0)
    looks, original = [], indexed.refreshed

    def counted(*given: Any, **more: Any) -> Any:
        looks.append(given)
        return original(*given, **more)

    monkeypatch.setattr(indexed, "refreshed", counted)
    with running(registry, ServeSettings()) as parts:
        tools, indexes = Tools(parts), parts.indexes
        for _ in range(3):
            assert tools.search("basket", "delta", 4)["chunks"]
        assert len(looks) == 1
        (root / "fresh.py").write_text("def never_heard_of_before():\n    return 1\n")
        assert not any(
            chunk["path"] == "fresh.py"
            for chunk in tools.search("never_heard_of_before", "delta", 4)["chunks"]
        )
        indexes._kept["delta"].due_at = 0.0
        assert tools.search("never_heard_of_before", "delta", 4)["chunks"][0]["path"] == "fresh.py"
        assert len(looks) == 2
    assert b"\nmlx_gardener_index_looks_total 2.0\n" in parts.metrics.text({}, {})


def test_the_command_speaks_the_protocol_on_standard_output_and_nothing_else(world: World) -> None:
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "mlx_gardener", "mcp", "gamma"],
        env={**os.environ, "MLX_GARDENER_HOME": str(world[0].home)},
    )

    async def ask() -> None:
        async with Client(command) as client:
            assert client.server_info is not None and client.server_info.name == "mlx-gardener"
            written = await call(client, "complete", prefix=PREFIX, suffix=SUFFIX, max_tokens=4)
            assert written["project"] == "gamma"  # the only one that is served
            assert "beta" in await refused(client, "complete", project="beta", prefix="x")
            assert [item["project"] for item in (await call(client, "status"))["projects"]] == ["gamma"]
            assert "Name one: gamma" in await refused(client, "status", project="beta")

    asyncio.run(ask())


def test_without_the_sdk_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    from mlx_gardener.errors import ConfigError
    from mlx_gardener.serve.mcp import run_mcp

    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    with pytest.raises(ConfigError, match="not installed") as error:
        run_mcp(ProjectRegistry(), ServeSettings())
    assert "pipx install --force '.[mcp]'" in str(error.value.next_step)
