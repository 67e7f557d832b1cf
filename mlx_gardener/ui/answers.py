"""How the page's requests are read and answered: bodies checked, work on a thread, results as JSON.

A handler is a function of a request's path names and body that returns JSON types; whatever it raises of `errors` is
shown to who asked. The event loop, which answers editors too, waits for none of it.
"""

from __future__ import annotations

import asyncio
import html
import inspect
import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse

from mlx_gardener.report.svg import standalone
from mlx_gardener.serve.bodies import Body, parse
from mlx_gardener.serve.reading import read_json
from mlx_gardener.serve.routes import Handler
from mlx_gardener.serve.worker import BadRequestError

AnyBody = TypeVar("AnyBody", bound=Body)
#: Scans take long, and one waits for another: editors' answers and the page's streams have other threads.
_THREADS = ThreadPoolExecutor(8, thread_name_prefix="page")
#: Method and handler, by path below ``/ui/api/``.
Handlers = dict[str, tuple[str, Handler]]


def looking(work: Callable[..., Any]) -> tuple[str, Handler]:
    """A GET: ``work`` takes the path's names and those of the query that it knows as keywords."""
    known = inspect.signature(work).parameters
    needed = {name for name, one in known.items() if one.default is inspect.Parameter.empty}

    async def handler(request: Request) -> JSONResponse:
        names = {**request.query_params, **request.path_params}
        if missing := sorted(needed - names.keys()):
            raise BadRequestError(f"The request does not say {' and '.join(missing)}.")
        return answer(
            await _beside(partial(work, **{name: names[name] for name in names.keys() & known.keys()}))
        )

    return "GET", handler


def changing(kind: type[AnyBody], work: Callable[[AnyBody], Any]) -> tuple[str, Handler]:
    """A POST: ``work`` takes the body."""

    async def handler(request: Request) -> JSONResponse:
        body = await read_body(request, kind)
        return answer(await _beside(partial(work, body)))

    return "POST", handler


async def _beside(work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)


async def read_body(request: Request, kind: type[AnyBody]) -> AnyBody:
    """The body of a request, checked.

    Raises:
        BadRequestError: it is no JSON, or says something else.
    """
    data = bytearray()
    async for part in request.stream():
        data += part
    return parse(kind, read_json(data))[0]


def picture(svg: str) -> dict[str, str]:
    """A picture of `report.svg` as a file of its own, with what it says of itself in words; "" stays."""
    title = re.search(r"<title>(.*?)</title>", svg, re.DOTALL)
    return {"svg": standalone(svg) if svg else "", "alt": html.unescape(title[1]) if title else ""}


def answer(content: Any) -> JSONResponse:
    """A document; see `as_json`."""
    return JSONResponse(as_json(content))


def as_json(content: Any) -> Any:
    """``content`` with null where a number is none that JSON can say, and U+FFFD for what no text can say (names of files)."""
    if isinstance(content, dict):
        return {as_json(key): as_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [as_json(value) for value in content]
    if isinstance(content, str):
        return content.encode("utf-8", "replace").decode() if not content.isascii() else content
    return None if isinstance(content, float) and not math.isfinite(content) else content
