"""The page's files, its addresses, and who may ask there.

Its files are open; everything below ``/ui/api/`` asks for the bearer token of the server, or where that asks for none (on
loopback) for one that is made for its life and that only who started it is shown: other users of the machine reach
loopback too, and a page of another place cannot send it. `serve.guard` has seen Host, Origin and the body's type before.
"""

from __future__ import annotations

import secrets
from importlib import resources
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from mlx_gardener.errors import GardenerError, RegistryError
from mlx_gardener.serve.access import access_of
from mlx_gardener.serve.guard import NO_TOKEN, has_token
from mlx_gardener.serve.page import PREFIX, Page, PageMaker
from mlx_gardener.serve.parts import Parts
from mlx_gardener.serve.routes import Handler, taking_one_method
from mlx_gardener.ui.answers import Handlers
from mlx_gardener.ui.projects import Projects
from mlx_gardener.ui.scanning import Scans
from mlx_gardener.ui.training import Trainings
from mlx_gardener.ui.trying import Trying
from mlx_gardener.ui.verdicts import Verdicts

#: What the page may do in a browser: nothing but run its own files and ask this server. Pictures are made of answers (blob:).
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def page_token(token: str | None) -> str:
    """What the page's requests must bring: the server's own bearer token, or a new one."""
    return token or secrets.token_urlsafe(32)


def page_address(address: str, token: str | None) -> str:
    """Where a browser opens the page; with ``token`` behind #, which browsers send nowhere."""
    return f"{address}/" + ("" if token is None else f"#token={quote(token, safe='')}")


def make_page(token: str) -> PageMaker:
    """The page of a server, whose requests bring ``token``."""

    def make(parts: Parts) -> Page:
        files = _files()
        scans = Scans(parts.registry)
        trainings = Trainings(parts.registry, scans)
        found: Handlers = {
            **Projects(parts.registry).handlers(),
            **scans.handlers(),
            **trainings.handlers(),
            **Verdicts(parts.registry).handlers(),
            **Trying(parts).handlers(),
        }
        routes: list[BaseRoute] = [
            taking_one_method(f"{PREFIX}api/{path}", method, _guarded(token, handler))
            for path, (method, handler) in found.items()
        ]
        routes += [
            taking_one_method(PREFIX + name, "GET", _sending(content, name))
            for name, content in files.items()
        ]
        return Page(_sending(files["index.html"], "index.html"), routes, trainings.end)

    return make


def _files() -> dict[str, bytes]:
    place = resources.files("mlx_gardener.ui") / "static"
    return {file.name: file.read_bytes() for file in place.iterdir() if file.is_file()}


def _sending(content: bytes, name: str) -> Handler:
    kind = _TYPES[name.rpartition(".")[2]]

    async def send(request: Request) -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=HEADERS)

    return send


def _guarded(token: str, handler: Handler) -> Handler:
    """``handler`` for requests that bring the token; its errors as the page shows them."""

    async def guarded(request: Request) -> Response:
        if not has_token(request.headers.get("authorization", ""), token):
            return _refused(request, 401, {"message": NO_TOKEN, "next_step": ""})
        try:
            answer = await handler(request)
        except GardenerError as error:
            status = 404 if isinstance(error, RegistryError) and request.method == "GET" else 400
            return _refused(request, status, error.to_json())
        answer.headers.update(HEADERS)
        answer.headers["cache-control"] = "no-store"
        return answer

    return guarded


def _refused(request: Request, status: int, error: dict[str, Any]) -> Response:
    access_of(request.scope).refused = str(error["message"])
    headers = {**HEADERS, "cache-control": "no-store"}
    return JSONResponse({"error": error}, status_code=status, headers=headers)
