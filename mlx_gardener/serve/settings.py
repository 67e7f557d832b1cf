"""What a server is told at its start, and the token that guards it where others could reach it."""

from __future__ import annotations

import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.config import GIB, RetrievalWish
from mlx_gardener.errors import ConfigError
from mlx_gardener.platform.files import make_private, write_private
from mlx_gardener.platform.untrusted import read_bytes

#: llama.cpp's editor plugins ask on this port unless told otherwise.
DEFAULT_PORT = 8012
TOKEN_VARIABLE = "MLX_GARDENER_TOKEN"
_TOKEN_FILE = "serve-token"


@dataclass(frozen=True)
class ServeSettings:
    """How a server listens and what it may take.

    Attributes:
        projects: those served; empty for all that have an adapter.
        token: what clients must bring as a bearer token; None asks for none.
        budget_bytes: what bases and adapters in memory may take together.
        max_queued: requests that may wait; one more is answered 503.
        max_queued_seconds: how long one may wait before it is answered 503.
        max_body_bytes: longest request.
        max_waiting_bytes: longest all requests together that are not answered yet; one more is answered 503.
        max_connections: open ones; one more is answered 503.
        head_seconds: how long a request's headers may take to arrive, before the connection is closed.
        body_seconds: how long its body may take after them, before it is answered 408.
        stalled_seconds: how long the computing thread may give no sign before /health says so.
        max_context_tokens: prompt and answer together, where the model does not allow less.
        max_answer_tokens: longest answer that can be asked for.
        retrieval: whether code of the repository stands in front of prompts; "auto" as the version's evidence says.
        evidence_in_use: whether it is counted what stays of answers (`serve.in_use`).
        compare: the share of the requests that can be counted that the base answers in the adapter's place.
        allowed_hosts: names in a request's Host, besides those of loopback and ``host``.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    projects: tuple[str, ...] = ()
    token: str | None = None
    budget_bytes: int = 4 * GIB
    max_queued: int = 64
    max_queued_seconds: float = 60.0
    max_body_bytes: int = 4 * 2**20
    max_waiting_bytes: int = 64 * 2**20
    max_connections: int = 128
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    stalled_seconds: float = 60.0
    max_context_tokens: int = 8192
    max_answer_tokens: int = 4096
    retrieval: RetrievalWish = "auto"
    evidence_in_use: bool = False
    compare: float = 0.0
    allowed_hosts: tuple[str, ...] = ()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def choose_token(host: str, given: str | None, home: Path) -> tuple[str | None, str]:
    """The bearer token to ask for, and where it came from in words.

    ``given``, else the environment's, else none on loopback; elsewhere the one in the home, made on first use (0600).

    Raises:
        ConfigError: the token cannot be sent in a header, or its file cannot be written or read.
    """
    token, origin = given, "--token"
    if token is None and os.environ.get(TOKEN_VARIABLE):
        token, origin = os.environ[TOKEN_VARIABLE], TOKEN_VARIABLE
    if token is None and is_loopback(host):
        return None, "none is asked for on loopback"
    if token is None:
        token, origin = _stored_token(home), f"the file {_TOKEN_FILE} in the home"
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"The token from {origin} is not usable: 16 or more printable ASCII characters without spaces are needed.",
            next_step="Leave it out: a good one is made and kept.",
        )
    return token, origin


def stored_token(home: Path) -> str | None:
    """The token that a server of this home made, if one did."""
    try:
        return read_bytes(home / _TOKEN_FILE, max_bytes=4096).decode("ascii").strip()
    except (OSError, ValueError):
        return None


def _stored_token(home: Path) -> str:
    found = stored_token(home)
    if found:
        return found
    token = secrets.token_urlsafe(32)
    try:
        make_private(home)
        write_private(home / _TOKEN_FILE, token + "\n")
    except OSError as error:
        raise ConfigError(
            f"A token cannot be kept in the home ({error.strerror}).",
            next_step=f"Make the home writable, or give a token with --token or {TOKEN_VARIABLE}.",
        ) from error
    return token
