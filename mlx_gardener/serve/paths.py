"""What can be asked for, and which dialect its errors are written in.

llama.cpp's endpoints are those that its own clients ask (github.com/ggml-org/llama.cpp, tools/server/README.md); everything
else speaks OpenAI's. ``/v1/events`` is where Tabby's agent tells what it showed.
"""

from __future__ import annotations

from typing import Literal

Dialect = Literal["openai", "llama"]

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
}


def endpoint_of(path: str) -> str | None:
    """The endpoint that a request's path names, alone or below a project; None for what there is not."""
    if path in ENDPOINTS:
        return path
    if path.startswith("/projects/"):
        # The longest: /v1/completions before /completions.
        return next(
            (known for known in sorted(ENDPOINTS, key=len, reverse=True) if path.endswith(known)), None
        )
    return None


def dialect_of(path: str) -> Dialect:
    """How an error of this path is written."""
    endpoint = endpoint_of(path)
    return "openai" if endpoint is None else ENDPOINTS[endpoint][1]
