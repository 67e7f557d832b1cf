"""Projects with adapters that differ in rank, scale, modules and what they say, and a real server over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving
from tests.support.adapters import SHAPES, make_projects
from tests.support.models import write_chat_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProjectRegistry, BaseModel]]:
    """Four projects on the embedded model, in a home that the module's tests share."""
    root = tmp_path_factory.mktemp("world")
    before = os.environ.get("MLX_GARDENER_HOME")
    os.environ["MLX_GARDENER_HOME"] = str(root / "home")
    base = load_base("seedling")
    yield make_projects(base, root / "code", "seedling", list(SHAPES)), base
    if before is None:
        del os.environ["MLX_GARDENER_HOME"]
    else:
        os.environ["MLX_GARDENER_HOME"] = before


@pytest.fixture(scope="module")
def address(world: tuple[ProjectRegistry, BaseModel]) -> Iterator[str]:
    """A server of the four projects; on a machine that is busy with others, one in eight may wait for minutes."""
    with serving(world[0], ServeSettings(port=0, max_queued_seconds=600.0)) as where:
        yield where


@pytest.fixture
def start(world: tuple[ProjectRegistry, BaseModel]) -> Iterator[Callable[..., str]]:
    """Start servers with other settings; they end with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def starting(**settings: object) -> str:
            return stack.enter_context(serving(world[0], ServeSettings(port=0, **settings)))  # type: ignore[arg-type]

        yield starting


@pytest.fixture
def chat_model_dir(tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    """The directory of `write_chat_model`'s."""
    return write_chat_model(tmp_path / "chatty", tiny_tokenizer_dir)
