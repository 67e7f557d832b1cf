"""A language client drives the real command over standard input and output, as an editor does."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lsprotocol import types
from pygls.lsp.client import LanguageClient

from tests.support.requests import World


def driven(
    world: World,
    *arguments: str,
    work: Callable[[LanguageClient], Awaitable[None]],
    encodings: list[str] | None = None,
) -> types.InitializeResult:
    """The command with a client that does ``work`` in between; what the server said of itself."""

    async def drive() -> types.InitializeResult:
        client = LanguageClient("test", "1")
        environment = {**os.environ, "MLX_GARDENER_HOME": str(world[0].home)}
        await client.start_io(sys.executable, "-m", "mlx_gardener", "lsp", *arguments, env=environment)
        general = types.GeneralClientCapabilities(position_encodings=encodings)
        told = await client.initialize_async(
            types.InitializeParams(capabilities=types.ClientCapabilities(general=general))
        )
        client.initialized(types.InitializedParams())
        await work(client)
        await client.shutdown_async(None)
        client.exit(None)
        await client.stop()
        return told

    return asyncio.run(asyncio.wait_for(drive(), 570))


def shown_by(world: World, *arguments: str, work: Callable[[LanguageClient], Awaitable[None]]) -> list[str]:
    """What the editor's user is told meanwhile."""
    messages: list[str] = []

    async def listening(client: LanguageClient) -> None:
        @client.feature(types.WINDOW_SHOW_MESSAGE)
        def shown(params: types.ShowMessageParams) -> None:
            messages.append(params.message)

        await work(client)

    driven(world, *arguments, work=listening)
    return messages


def opened(client: LanguageClient, file: Path, text: str) -> str:
    uri = file.as_uri()
    item = types.TextDocumentItem(uri, "python", 1, text)
    client.text_document_did_open(types.DidOpenTextDocumentParams(item))
    return uri


def asking(uri: str, line: int, character: int, **context: Any) -> types.InlineCompletionParams:
    kind = types.InlineCompletionTriggerKind.Automatic
    return types.InlineCompletionParams(
        types.InlineCompletionContext(kind, **context),
        types.TextDocumentIdentifier(uri),
        types.Position(line, character),
    )


async def written(client: LanguageClient, params: types.InlineCompletionParams) -> str:
    found = await client.text_document_inline_completion_async(params)
    assert isinstance(found, types.InlineCompletionList)
    return found.items[0].insert_text if found.items else ""
