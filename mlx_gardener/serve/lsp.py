"""A language server over standard input and output (LSP 3.18): inline completions in editors that speak the protocol themselves.

In: the editor's messages, by pygls (the extra ``lsp``): files as they are typed, whole or change by change, and
``textDocument/inlineCompletion``. Out: what the adapter of the project that a file belongs to writes at the caret, the answer of
``/v1/completions`` with that file's path. A server that runs is asked where its address is given; else one computing thread writes
here, as in `serve.mcp`, and the base is loaded by the first completion. A request that the editor takes back stops within a
token. What cannot be answered is shown to the editor's user once, and answered with no completion.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import re
import socket
import sys
from collections.abc import Callable, Coroutine
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

from mlx_gardener.errors import ConfigError, DataError, GardenerError
from mlx_gardener.platform.extras import how_to_install
from mlx_gardener.platform.files import resolved
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.version import __version__
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve.mcp import Tools
from mlx_gardener.serve.parts import running
from mlx_gardener.serve.settings import ServeSettings
from mlx_gardener.serve.worker import BusyError

if TYPE_CHECKING:
    from lsprotocol import types
    from pygls.lsp.server import LanguageServer

#: Longest completion, tokens.
_TOKENS = 64
_TIMEOUT_SECONDS = 120
#: Longest message, bytes: a file that an editor opens, and its escapes.
_MESSAGE_BYTES = 2**26
#: Characters before and after the caret that are sent: many more than a model is shown, and fewer than a server takes.
_SIDE = 2**17
#: What ends a line in the protocol; Python's own splitting knows more.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")

#: What a project (None for the default one) writes at a place: project, path, prefix, suffix.
Ask = Callable[["str | None", str, str, str], Coroutine[Any, Any, str]]


def run_lsp(registry: ProjectRegistry, settings: ServeSettings, address: str | None = None) -> None:
    """Answer on standard input and output until it ends.

    Args:
        settings: ``projects`` that files are completed by, ``token`` for the server at ``address``.
        address: of a running server, which is asked then.

    Raises:
        ConfigError: pygls is not installed.
        DataError: a message is longer than any.
        RegistryError: there is no such project as one of ``settings.projects``.
    """
    for name in settings.projects:
        registry.get_project(name)
    # What it cannot read is answered as an error, and no traceback is for people.
    logging.getLogger("pygls").setLevel(logging.CRITICAL + 1)
    stdin = cast("BinaryIO", Bounded(sys.stdin.buffer))
    if address is not None:
        language_server(registry, settings, _asking(address, settings.token)).start_io(stdin)
        return
    with running(registry, settings) as parts:
        tools = Tools(parts)

        async def ask(project: str | None, path: str, prefix: str, suffix: str) -> str:
            return str((await tools.complete(prefix, suffix, project, path, _TOKENS))["text"])

        language_server(registry, settings, ask).start_io(stdin)


class Bounded(RawIOBase):
    """A stream of messages, of which none is made room for that is longer than any file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readline(self, size: int | None = -1) -> bytes:
        """A header's line."""
        return self._stream.readline(_MESSAGE_BYTES)

    def read(self, size: int = -1) -> bytes:
        """A message.

        Raises:
            DataError: it says that it is too long.
        """
        if not 0 <= size <= _MESSAGE_BYTES:
            raise DataError(
                f"The editor sends a message of {size} bytes; {_MESSAGE_BYTES} are possible.",
                next_step="Open a smaller file.",
            )
        return self._stream.read(size)


def language_server(registry: ProjectRegistry, settings: ServeSettings, ask: Ask) -> LanguageServer:
    """pygls' server with what it can do.

    Raises:
        ConfigError: pygls is not installed.
    """
    try:
        from lsprotocol import types
        from pygls.lsp.server import LanguageServer
    except ImportError as error:
        raise ConfigError(
            "pygls, which speaks the language server protocol, is not installed.",
            next_step=how_to_install("lsp"),
        ) from error
    server: LanguageServer = LanguageServer(
        "mlx-gardener", __version__, types.TextDocumentSyncKind.Incremental
    )
    told: set[str] = set()

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def opened(params: types.DidOpenTextDocumentParams) -> None:
        _with_own_lines(server)

    @server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, types.InlineCompletionOptions())
    async def inline_completion(params: types.InlineCompletionParams) -> types.InlineCompletionList:
        document = server.workspace.text_documents.get(_key(params.text_document.uri))
        if document is None:  # never opened, or closed meanwhile
            return types.InlineCompletionList([])
        start = end = document.offset_at_position(params.position)
        chosen, text = params.context.selected_completion_info, document.source
        if chosen is not None:  # the popup's choice is what has to be continued
            start, end = (
                document.offset_at_position(chosen.range.start),
                document.offset_at_position(chosen.range.end),
            )
        begun = "" if chosen is None else chosen.text
        before, after = text[max(0, start - _SIDE) : start], text[end : end + _SIDE]
        try:
            project, path = place_of(registry, settings.projects, document.path)
            written = await ask(project, path, before + begun, after)
        except GardenerError as error:
            if error.in_terminal not in told and not isinstance(error, BusyError):
                told.add(error.in_terminal)
                server.window_show_message(
                    types.ShowMessageParams(types.MessageType.Warning, f"mlx-gardener: {error.in_terminal}")
                )
            return types.InlineCompletionList([])
        if not written.strip():
            return types.InlineCompletionList([])
        place = chosen.range if chosen is not None else types.Range(params.position, params.position)
        return types.InlineCompletionList([types.InlineCompletionItem(begun + written, range=place)])

    return server


def place_of(registry: ProjectRegistry, served: tuple[str, ...], file: str) -> tuple[str | None, str]:
    """The project that a file lies in, the innermost one, and its path there; None and its name where it lies in none.

    Args:
        served: those that count; empty for all.

    Raises:
        GardenerError: the registry cannot be read, or the file is a link that leads nowhere.
    """
    given = Path(file)
    # Editors name a file as it was opened, projects have their roots with links followed; what was never saved has no root.
    places = [given, resolved(given)] if given.is_absolute() else [given]
    projects = [
        (project.name, Path(project.path))
        for project in registry.list_projects()
        if project.active_adapter is not None and (not served or project.name in served)
    ]
    for place in places:
        around = [(name, root) for name, root in projects if place.is_relative_to(root)]
        if around:
            name, root = max(around, key=lambda pair: len(pair[1].parts))
            return name, place.relative_to(root).as_posix()
    return None, given.name


def _key(uri: str) -> str:
    """How pygls names a document."""
    from urllib.parse import unquote

    return unquote(uri)


def _with_own_lines(server: LanguageServer) -> None:
    """Have documents end their lines where the protocol says; pygls' own also do at form feeds and at U+2028."""
    from pygls.workspace import TextDocument

    class Document(TextDocument):
        @property
        def lines(self) -> tuple[str, ...]:
            return tuple(lines_of(self.source))

    known = server.workspace.text_documents
    for uri, document in known.items():
        if type(document) is TextDocument:
            known[uri] = Document(
                document.uri,
                document.source,
                document.version,
                document.language_id,
                position_codec=document.position_codec,
            )


def lines_of(text: str) -> list[str]:
    """A text's lines with what ends them, as positions count them: also the empty one behind a last line's end."""
    lines = _LINE.findall(text)
    return lines if lines and not lines[-1].endswith(("\n", "\r")) else [*lines, ""]


def _asking(address: str, token: str | None) -> Ask:
    """Asks a running server; a request that is taken back closes its connection, which stops the answer there."""
    parts = urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"

    async def ask(project: str | None, path: str, prefix: str, suffix: str) -> str:
        connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS)
        body = {"prompt": prefix, "suffix": suffix, "path": path, "max_tokens": _TOKENS, "model": project}

        def send() -> tuple[int, Any]:
            try:
                connection.request("POST", f"{parts.path}/v1/completions", json.dumps(body), headers)
                answer = connection.getresponse()
                return answer.status, json.load(answer)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise ConfigError(
                    f"No completion came from {address} ({reason_of(error)}).",
                    next_step="Start it with `mlx-gardener serve`.",
                ) from error
            finally:
                connection.close()

        try:
            status, content = await asyncio.to_thread(send)
        except asyncio.CancelledError:
            if (found := connection.sock) is not None:
                with contextlib.suppress(OSError):  # it is closed already
                    found.shutdown(socket.SHUT_RDWR)
            raise
        if status == 503:
            raise BusyError(f"The server at {address} is busy.")
        try:
            if status != 200:
                raise ConfigError(f"The server at {address} refused: {content['error']['message']}")
            return str(content["choices"][0]["text"])
        except (KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                f"What answers at {address} is no mlx-gardener.", next_step="Name another --address."
            ) from error

    return ask
