"""A tokenizer for settings, and a home with a project that editors can be connected to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_gardener.model import CodeTokenizer, load_base
from mlx_gardener.model.tokens import load_tokenizer
from mlx_gardener.registry import ProjectRegistry
from tests.support.adapters import make_projects


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> CodeTokenizer:
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def trained(tmp_path: Path, home: Path, tiny_model_dir: Path) -> Iterator[ProjectRegistry]:
    """One project with an adapter on the tiny model."""
    yield make_projects(load_base(str(tiny_model_dir)), tmp_path / "code", str(tiny_model_dir), ["alpha"])
