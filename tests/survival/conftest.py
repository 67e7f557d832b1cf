"""Storms for all tests here, one of usual settings and one of the smallest plan: their undisturbed runs are made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_repository
from tests.survival.storm import SMALLEST_PLAN, Storm


def _storm(scratch: Path, model: Path, more: dict[str, Any] | None = None) -> tuple[Storm, Path]:
    """A storm and its home."""
    home = scratch / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_GARDENER_HOME", str(home))
        return Storm(write_repository(scratch / "repository"), scratch, str(model), more=more), home


@pytest.fixture(scope="session")
def storm_and_home(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Storm, Path]:
    return _storm(tmp_path_factory.mktemp("storm"), tiny_model_dir)


@pytest.fixture(scope="session")
def smallest_storm_and_home(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Storm, Path]:
    return _storm(tmp_path_factory.mktemp("storm"), tiny_model_dir, SMALLEST_PLAN)


@pytest.fixture
def storm(storm_and_home: tuple[Storm, Path], monkeypatch: pytest.MonkeyPatch) -> Storm:
    """The session's storm, with its home in the environment."""
    made, home = storm_and_home
    monkeypatch.setenv("MLX_GARDENER_HOME", str(home))
    return made


@pytest.fixture
def smallest_storm(smallest_storm_and_home: tuple[Storm, Path], monkeypatch: pytest.MonkeyPatch) -> Storm:
    """The same for a storm whose runs have no plan for less memory."""
    made, home = smallest_storm_and_home
    monkeypatch.setenv("MLX_GARDENER_HOME", str(home))
    return made
