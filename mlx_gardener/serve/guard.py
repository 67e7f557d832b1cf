"""Who may ask: checked before anything of a request is read.

A page in a browser can send requests to this machine. Names other than this server's in Host are refused (DNS rebinding),
and so is whatever a browser says comes from another place (Origin, Sec-Fetch-Site) or is no JSON (forms need no permission
to be sent). Where others can reach the server, a bearer token is needed too. Bodies are bounded while they are read.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_gardener.serve.answers import error_body
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.settings import ServeSettings, is_loopback

#: Paths that need no token: whether the server lives is no secret.
_OPEN = {"/health", "/v1/health"}


class BodyTooLargeError(Exception):
    """A request's body is longer than allowed; raised where it is read."""


class Guard:
    """ASGI middleware that lets only allowed requests through, and counts answers."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        refusal = self._refusal(scope["method"], scope["path"], headers)
        path, status = _label(scope["path"]), 500

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if refusal is not None:
                await _refuse(counting, *refusal)
                return
            await self._app(scope, self._bounded(receive), counting)
        finally:
            self._metrics.requests[path, status] += 1

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 403, "host_not_allowed", f"This server is not called {host!r}. Start it with --allow-host."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "origin_not_allowed", "Requests from pages of other places are refused."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "origin_not_allowed", "Requests from pages of other places are refused."
        if self._settings.token is not None and path not in _OPEN:
            kind, _, token = headers.get("authorization", "").partition(" ")
            given = token.strip().encode("latin-1")
            if kind.lower() != "bearer" or not hmac.compare_digest(given, self._settings.token.encode()):
                return 401, "invalid_api_key", "A bearer token is needed, and this is not it."
        if method == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "not_json", "Send JSON, with Content-Type: application/json."
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > self._settings.max_body_bytes:
                most = self._settings.max_body_bytes
                return 413, "too_large", f"A request has at most {most} bytes."
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether Host names this server; addresses cannot be rebound, so any will do where it is not only loopback."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self._settings.host)

    def _bounded(self, receive: Receive) -> Receive:
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._settings.max_body_bytes:
                    raise BodyTooLargeError
            return message

        return bounded


def _label(path: str) -> str:
    """A path for counting: few different ones, whatever is asked for."""
    for known in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/infill", "/health", "/metrics"):
        if path == known or (path.startswith("/projects/") and path.endswith(known)):
            return known
    return "other"


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps(error_body(message, "invalid_request_error", code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
