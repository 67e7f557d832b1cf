"""Who may ask, and how much may be sent: checked before anything of a request is read.

A page in a browser can send requests to this machine. Names other than this server's in Host are refused (DNS rebinding),
and so is whatever a browser says comes from another place (Origin, Sec-Fetch-Site) or is no JSON (forms need no permission
to be sent). Where others can reach the server, a bearer token is needed too. Bodies are bounded while they are read: each
in length and time, all together in length. Every request leaves one line, and every error is JSON.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_gardener.serve.access import Access, begin_access, refused_below
from mlx_gardener.serve.errors import (
    BodyTooLargeError,
    BodyTooSlowError,
    TooMuchWaitsError,
    error_body,
    error_message,
    shown_error,
)
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.page import PREFIX, wants_page
from mlx_gardener.serve.paths import dialect_of, endpoint_of
from mlx_gardener.serve.settings import ServeSettings, is_loopback

#: Paths that need no token: whether the server lives is no secret.
_OPEN = {"/health", "/v1/health"}
#: A Host (RFC 9110, 7.2): a name or an address, and perhaps a port.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[\w.~%-]+)?\]|[^\s/\\@:?#\[\]]+)(?::[0-9]{0,5})?")
#: Characters of it that are told back.
_SHOWN = 200
NO_TOKEN = "A bearer token is needed, and this is not it."


def has_token(authorization: str, token: str) -> bool:
    """Whether the header ``Authorization`` brings this bearer token."""
    kind, _, given = authorization.partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())


class Guard:
    """ASGI middleware that lets only allowed requests through, and counts and tells what came of each."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        metrics: Metrics,
        on_request: Callable[[Access], None] = lambda _: None,
        *,
        has_page: bool = False,
    ) -> None:
        self._app = app
        self._has_page = has_page
        self._settings = settings
        self._metrics = metrics
        self._on_request = on_request
        self._names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        path, begun, began = scope["path"], False, time.monotonic()
        access = begin_access(scope)
        body = _Body(receive, self)

        async def counting(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun, access.status = True, message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope["method"], path, headers)
            if refusal is not None:
                status, code, text = refusal
                access.refused = text
                await _refuse(
                    counting,
                    status,
                    error_body(dialect_of(path), status, text, "invalid_request_error", code),
                )
                return
            await self._app(scope, body.receive, counting)
        except ClientDisconnect:
            # 499 is what nginx calls a client that closed the request, in the middle of a stream, too.
            access.status, access.refused = refused_below(scope) or (499, "The client went away.")
        except Exception as error:  # whatever it was: the client gets JSON, the log the rest
            status, content = shown_error(error, path)
            access.refused = error_message(content)
            if not begun:
                await _refuse(counting, status, content)
        finally:
            self._held_bytes -= body.length
            access.seconds = time.monotonic() - began
            self._metrics.requests.labels(endpoint_of(path) or "other", access.status).inc()
            self._on_request(access)

    def hold(self, length: int) -> None:
        """Count bytes of a body that is being kept.

        Raises:
            TooMuchWaitsError: all bodies together are longer than allowed.
        """
        self._held_bytes += length
        if self._held_bytes > self._settings.max_waiting_bytes:
            raise TooMuchWaitsError

    @property
    def settings(self) -> ServeSettings:
        """What the server was told at its start."""
        return self._settings

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return (
                403,
                "host_not_allowed",
                f"This server is not called {host[:_SHOWN]!r}. Start it with --allow-host.",
            )
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host.lower():
            return 403, "origin_not_allowed", "Requests from pages of other places are refused."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "origin_not_allowed", "Requests from pages of other places are refused."
        token = None if self._is_open(path, headers) else self._settings.token
        if token is not None and not has_token(headers.get("authorization", ""), token):
            return 401, "invalid_api_key", NO_TOKEN
        if method == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "not_json", "Send JSON, with Content-Type: application/json."
            length = headers.get("content-length", "0")
            most = self._settings.max_body_bytes
            if not (length.isascii() and length.isdigit()) or len(length) > 18 or int(length) > most:
                return 413, "too_large", f"A request has at most {most} bytes."
        return None

    def _is_open(self, path: str, headers: dict[str, str]) -> bool:
        """Whether a path needs no token here; the page's own looks for one itself where it is needed."""
        is_page = path.startswith(PREFIX) or wants_page(path, headers.get("accept", ""))
        return path in _OPEN or (self._has_page and is_page)

    def _is_ours(self, host: str) -> bool:
        """Whether Host names this server; addresses cannot be rebound, so any will do where it is not only loopback."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").lower()
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self._settings.host)


class _Body:
    """A request's body while it is read: ``length`` bytes are held, until the request is answered."""

    def __init__(self, receive: Receive, guard: Guard) -> None:
        self._receive = receive
        self._guard = guard
        self._complete = False
        self._until: float | None = None
        self.length = 0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            BodyTooLargeError, BodyTooSlowError, TooMuchWaitsError: as they say.
        """
        if self._complete:  # what comes next is that the client leaves; that may take as long as it likes
            return await self._receive()
        settings = self._guard.settings
        self._until = self._until or time.monotonic() + settings.body_seconds
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise BodyTooSlowError from None
        if message["type"] == "http.request":
            self._complete = not message.get("more_body", False)
            more = len(message.get("body", b""))
            self.length += more
            self._guard.hold(more)
            if self.length > settings.max_body_bytes:
                raise BodyTooLargeError
        return message


def _place(origin: str) -> str | None:
    """Host and port of an Origin; None for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


async def _refuse(send: Send, status: int, content: dict[str, object]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 408:
        headers.append((b"connection", b"close"))  # the rest of it is not waited for
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
