"""A machine whose speeds are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.engine.speed import TWO_CORES, _keep


@pytest.fixture
def two_idle_cores(home: Path) -> None:
    """Speeds are known and the same everywhere: what is measured here is not the machine."""
    _keep(home / "cache", TWO_CORES)
