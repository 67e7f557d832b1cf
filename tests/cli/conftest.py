"""What tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.registry import ProjectRegistry
from tests.registry.worlds import install_adapter


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    """A registry with the project ``small`` and an active adapter of it, which cannot be loaded."""
    made = ProjectRegistry()
    made.register_project("small", repository)
    install_adapter(made, "small", "v1")
    made.activate_adapter("small", "v1")
    return made
