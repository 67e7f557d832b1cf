"""One completion, asked for as the editor asks: by a running server, or by one that is started for it."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_gardener.editors.plugins import text_of
from mlx_gardener.editors.settings import request_of
from mlx_gardener.errors import GardenerError
from mlx_gardener.platform.reasons import reason_of

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer

_TIMEOUT_SECONDS = 120


class ProofError(GardenerError):
    """A completion did not come back, or not from the adapter that it was asked of."""


@dataclass(frozen=True)
class Proof:
    """What came back: the text, and the sha256 of the weights of the adapter that wrote it."""

    text: str
    weights_sha256: str


def is_running(address: str) -> bool:
    """Whether a server of ours answers there."""
    try:
        with _open(urllib.request.Request(f"{address}/health"), 5) as answer:
            found = json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return isinstance(found, dict) and found.get("status") == "ok"


def prove(
    editor: str, project: str, address: str, token: str | None, tokenizer: CodeTokenizer, weights_sha256: str
) -> Proof:
    """Send one request as ``editor`` sends it.

    Args:
        weights_sha256: of the project's active adapter, which has to be the one that answers.

    Raises:
        ProofError: no answer came, an error, or another adapter's.
    """
    path, body = request_of(editor, project, tokenizer)
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
    try:
        with _open(request, _TIMEOUT_SECONDS) as answer:
            content = answer.read()
            adapter = answer.headers.get("X-Adapter", "")
    except urllib.error.HTTPError as error:
        raise ProofError(f"The server at {address} refused: {_message(error)}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ProofError(
            f"No completion came from {address} ({reason_of(error)}).",
            next_step="Start it with `mlx-gardener serve`.",
        ) from error
    if adapter != weights_sha256:
        raise ProofError(
            f"The completion came from another adapter ({adapter[:12] or 'none named'}).",
            next_step="See that the server at this address serves this project's registry.",
        )
    return Proof(_text(editor, content), adapter)


def _text(editor: str, raw: bytes) -> str:
    """The text in an answer, where the editor looks for it.

    Raises:
        ProofError: it is not there.
    """
    try:
        if editor not in ("vscode", "vim", "neovim"):
            return text_of(raw)
        content = json.loads(raw)
        return str(content[0]["content"] if isinstance(content, list) else content["content"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ProofError("The answer is none that the editor could read.") from error


def _open(request: urllib.request.Request, timeout: float) -> Any:
    # A proxy has no business between an editor and a server on the same machine.
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error)
