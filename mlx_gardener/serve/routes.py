"""Paths to their handlers: what is asked in another way is answered as every error here, as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlx_gardener.serve.access import access_of
from mlx_gardener.serve.errors import error_message, no_such_path

Handler = Callable[[Request], Awaitable[Response]]


def taking_one_method(place: str, method: str, handler: Handler) -> Route:
    """The route of a path that takes one method; another is answered as errors are here."""

    async def taking(request: Request) -> Response:
        if request.method == method or (request.method == "HEAD" and method == "GET"):
            return await handler(request)
        status, content = no_such_path(request.scope["path"], request.method, method)
        access_of(request.scope).refused = error_message(content)
        return JSONResponse(content, status_code=status, headers={"allow": method})

    route = Route(place, taking)
    route.methods = None  # any comes to the handler: Starlette's own refusal is plain text
    return route


async def no_such_route(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer to a path that is not there."""
    status, content = no_such_path(scope["path"][:200], scope["method"], None)
    access_of(scope).refused = error_message(content)
    await JSONResponse(content, status_code=status)(scope, receive, send)
