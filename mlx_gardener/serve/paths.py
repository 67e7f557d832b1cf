"""What can be asked for, and which dialect its errors are written in.

llama.cpp's endpoints are those that its own clients ask (github.com/ggml-org/llama.cpp, tools/server/README.md), Ollama's those
below ``/api`` and ``/`` (github.com/ollama/ollama, server/routes.go); everything else speaks OpenAI's. ``/v1/events`` is where
Tabby's agent tells what it showed.
"""

from __future__ import annotations

import re
from typing import Literal

Dialect = Literal["openai", "llama", "ollama"]

_OWN_MODELS = "Its models are projects: `mlx-gardener train PATH` makes one."
_NO_EMBEDDINGS = "Its models complete code; ask a server with an embedding model."

#: Paths with the method each takes and the dialect of its errors. All are also below ``/projects/NAME``.
ENDPOINTS: dict[str, tuple[str, Dialect]] = {
    "/v1/completions": ("POST", "openai"),
    "/v1/chat/completions": ("POST", "openai"),
    "/chat/completions": ("POST", "openai"),
    "/v1/events": ("POST", "openai"),
    "/v1/models": ("GET", "openai"),
    "/models": ("GET", "openai"),
    "/infill": ("POST", "llama"),
    "/completion": ("POST", "llama"),
    "/completions": ("POST", "llama"),
    "/props": ("GET", "llama"),
    "/health": ("GET", "llama"),
    "/v1/health": ("GET", "llama"),
    "/metrics": ("GET", "openai"),
    "/api/generate": ("POST", "ollama"),
    "/api/chat": ("POST", "ollama"),
    "/api/show": ("POST", "ollama"),
    "/api/tags": ("GET", "ollama"),
    "/api/ps": ("GET", "ollama"),
    "/api/version": ("GET", "ollama"),
    "/": ("GET", "ollama"),
}
#: What Ollama does and this server does not, with the method that asks for it and what to do instead.
REFUSED: dict[str, tuple[str, str]] = {
    "/api/pull": ("POST", _OWN_MODELS),
    "/api/push": ("POST", "Give an adapter away with `mlx-gardener export`."),
    "/api/create": ("POST", _OWN_MODELS),
    "/api/copy": ("POST", _OWN_MODELS),
    "/api/delete": ("DELETE", "Remove a project or a version with `mlx-gardener remove`."),
    "/api/embed": ("POST", _NO_EMBEDDINGS),
    "/api/embeddings": ("POST", _NO_EMBEDDINGS),
}
_OF_A_PROJECT = re.compile(r"/projects/[^/]+/")
_OLLAMA = re.compile(r"(/projects/.+)?/api(/.*)?")


def endpoint_of(path: str) -> str | None:
    """The endpoint that a request's path names, alone or below a project; None for what there is not."""
    if path in ENDPOINTS:
        return path
    if path.startswith("/projects/"):
        if _OF_A_PROJECT.fullmatch(path):
            return "/"
        # The longest: /v1/completions before /completions.
        longest = sorted(ENDPOINTS.keys() - {"/"}, key=len, reverse=True)
        return next((known for known in longest if path.endswith(known)), None)
    return None


def dialect_of(path: str) -> Dialect:
    """How an error of this path is written."""
    endpoint = endpoint_of(path)
    if endpoint is not None:
        return ENDPOINTS[endpoint][1]
    return "ollama" if _OLLAMA.fullmatch(path) else "openai"
