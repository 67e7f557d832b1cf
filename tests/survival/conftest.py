"""One storm for all tests here: its undisturbed run is made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import write_repository
from tests.survival.storm import Storm


@pytest.fixture(scope="session")
def storm_with_reference(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Storm, Path]]:
    scratch = tmp_path_factory.mktemp("storm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_GARDENER_HOME", str(scratch / "home"))
        storm = Storm(write_repository(scratch / "repository"), scratch, str(tiny_model_dir))
    yield storm, scratch / "home"


@pytest.fixture
def storm(storm_with_reference: tuple[Storm, Path], monkeypatch: pytest.MonkeyPatch) -> Storm:
    """The session's storm, with its home in the environment."""
    made, home = storm_with_reference
    monkeypatch.setenv("MLX_GARDENER_HOME", str(home))
    return made
