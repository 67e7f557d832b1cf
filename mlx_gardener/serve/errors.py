"""Errors as answers: a status, and a JSON body in the dialect of the path that was asked."""

from __future__ import annotations

import logging
from typing import Any

from mlx_gardener.errors import AdapterError, GardenerError, MemoryBudgetError, ModelError, RegistryError
from mlx_gardener.serve.catalog import UnknownModelError
from mlx_gardener.serve.paths import ENDPOINTS, Dialect, dialect_of
from mlx_gardener.serve.worker import BadRequestError, BusyError

_log = logging.getLogger("mlx_gardener.serve")


class BodyTooLargeError(Exception):
    """A request's body is longer than allowed; raised where it is read."""


class BodyTooSlowError(Exception):
    """A request's body did not arrive in time; raised where it is read."""


class TooMuchWaitsError(Exception):
    """The bodies of all requests under way take more than allowed; raised where one more is read."""


#: Exception class -> HTTP status, OpenAI `type`, `code`. Order matters: the first class that the error is an instance of wins.
_STATUS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (BadRequestError, 400, "invalid_request_error", "bad_request"),
    (BodyTooLargeError, 413, "invalid_request_error", "too_large"),
    (BodyTooSlowError, 408, "invalid_request_error", "too_slow"),
    (TooMuchWaitsError, 503, "server_error", "busy"),
    (BusyError, 503, "server_error", "busy"),
    (MemoryBudgetError, 507, "server_error", "memory_budget"),
    (AdapterError, 500, "server_error", "adapter_unusable"),
    (ModelError, 500, "server_error", "model_unusable"),
    (RegistryError, 500, "server_error", "registry_unreadable"),
)
_MESSAGES = {
    BodyTooLargeError: "The request is too long.",
    BodyTooSlowError: "The request did not arrive in time.",
    TooMuchWaitsError: "Too many bytes of requests wait already. Try again in a moment.",
}
_MOST_CHARACTERS = 2000


def error_body(dialect: Dialect, status: int, message: str, kind: str, code: str) -> dict[str, Any]:
    """An error as clients of llama.cpp, of Ollama or of OpenAI read it."""
    if len(message) > _MOST_CHARACTERS:
        message = message[:_MOST_CHARACTERS] + " ..."
    if dialect == "ollama":
        return {"error": message}
    if dialect == "llama":
        return {"error": {"code": status, "message": message, "type": kind}}
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_message(content: dict[str, Any]) -> str:
    """What an `error_body` says."""
    error = content["error"]
    return str(error if isinstance(error, str) else error["message"])


def shown_error(error: Exception, path: str) -> tuple[int, dict[str, Any]]:
    """Status and body for what went wrong with a request of ``path``; a defect is logged and not shown."""
    said = error.in_terminal if isinstance(error, GardenerError) else str(error)
    for kind, status, name, code in _STATUS:
        if isinstance(error, kind):
            message = _MESSAGES.get(type(error)) or said
            return status, error_body(dialect_of(path), status, message, name, code)
    if not isinstance(error, GardenerError):
        _log.error("A request of %r failed", path, exc_info=error)
        said = "A defect of mlx-gardener; its log says more."
    return 500, error_body(dialect_of(path), 500, said, "server_error", "internal")


def no_such_path(path: str, method: str, allowed: str | None) -> tuple[int, dict[str, Any]]:
    """Status and body for a path that is not there, or not with this method; names those that are."""
    shown = path[:200]
    if allowed is not None:
        message = f"{shown} takes {allowed}, not {method}."
        return 405, error_body(dialect_of(path), 405, message, "invalid_request_error", "method_not_allowed")
    known = ", ".join(f"{takes} {name}" for name, (takes, _) in ENDPOINTS.items())
    message = f"There is no {shown} here. There are: {known}; each also below /projects/NAME."
    return 404, error_body(dialect_of(path), 404, message, "invalid_request_error", "not_found")
