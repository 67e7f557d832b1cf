"""A server with the page, over the registry of the test's home; the token that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving
from mlx_gardener.ui import make_page
from tests.support.pages import TOKEN, Asking


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
