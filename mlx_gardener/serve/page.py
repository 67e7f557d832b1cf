"""A web page beside the APIs: what it may use of the server, and which paths are its own.

The page itself is made in a room above (`mlx_gardener.ui`). Its files are no secret and need no token, so that a browser can
open them; what is below ``/ui/api/`` asks for one itself, also on loopback, since it can change things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.routing import BaseRoute

from mlx_gardener.serve.parts import Parts
from mlx_gardener.serve.routes import Handler

#: Where everything of the page is, but for the page itself, which is at ``/``.
PREFIX = "/ui/"


@dataclass(frozen=True)
class Page:
    """``index`` answers browsers at ``/``; ``routes`` are all below `PREFIX`; ``end`` ends answers that would go on for ever."""

    index: Handler
    routes: Sequence[BaseRoute]
    end: Callable[[], None]


#: Makes the page of a server.
PageMaker = Callable[[Parts], Page]


def wants_page(path: str, accept: str) -> bool:
    """Whether a request is a browser's that opens the page: clients of Ollama, which ask at ``/`` too, accept anything."""
    return path == "/" and "text/html" in accept.lower()
