"""A server with the page, over the registry of the test's home; the token that it asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving
from mlx_gardener.ui import make_page
from tests.support.trainings import SMALL

TOKEN = "a-token-of-the-tests-only"


class Asking:
    """A client of the page's answers."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.headers = {"authorization": f"Bearer {TOKEN}"}

    def get(self, path: str, /, **names: str) -> Any:
        done = self.raw("GET", path, params=names)
        assert done.status_code == 200, done.text
        return done.json()

    def post(self, path: str, /, **body: Any) -> Any:
        done = self.raw("POST", path, json=body)
        assert done.status_code == 200, done.text
        return done.json()

    def refused(self, path: str, /, **body: Any) -> str:
        done = self.raw("POST", path, json=body)
        assert done.status_code == 400, done.text
        return str(done.json()["error"]["message"])

    def raw(
        self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        known = self.headers if headers is None else headers
        return httpx.request(method, f"{self.address}/ui/api/{path}", headers=known, timeout=600, **more)


@pytest.fixture
def registry(home: Path) -> ProjectRegistry:
    """The registry of the test's home."""
    return ProjectRegistry()


@pytest.fixture
def open_page(registry: ProjectRegistry) -> Iterator[Callable[..., Asking]]:
    """Start servers with the page; they end with the test."""
    with ExitStack() as stack:

        def opening(**settings: Any) -> Asking:
            made = ServeSettings(port=0, **settings)
            address = stack.enter_context(
                serving(registry, made, page=make_page(made.token or TOKEN), loads_ahead=False)
            )
            return Asking(address)

        yield opening


@pytest.fixture
def page(open_page: Callable[..., Asking]) -> Asking:
    """The page of an own server."""
    return open_page()


@pytest.fixture
def small(registry: ProjectRegistry, repository: Path) -> str:
    registry.register_project("small", repository)
    return "small"


def tiny(model: Path, **more: object) -> dict[str, object]:
    """What the form sends for a training of a tiny model."""
    settings = {
        **SMALL, "evaluation.tasks": 2, "evaluation.max_new_tokens": 4, "throttling.low_priority": False,
        "progress_update_interval": 0.5, **more,
    }  # fmt: skip
    lines = "\n".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
    return {"model": str(model), "budget": 1.0, "timeout": 0, "epochs": 100, "more": lines}
