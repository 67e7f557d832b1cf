"""Storms for all tests here, one of usual settings and one of the smallest plan: their undisturbed runs are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.repositories import write_repository
from tests.survival.storm import SMALLEST_PLAN, Storm


@pytest.fixture(scope="session")
def storm(tiny_model_dir: Path, trained_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Storm:
    """Its runs have the usual plan."""
    scratch = tmp_path_factory.mktemp("storm")
    return Storm(write_repository(scratch / "repository"), scratch, str(tiny_model_dir), cache=trained_cache)


@pytest.fixture(scope="session")
def smallest_storm(
    tiny_model_dir: Path, trained_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Storm:
    """Its runs have no plan for less memory."""
    scratch = tmp_path_factory.mktemp("storm")
    repository = write_repository(scratch / "repository")
    return Storm(repository, scratch, str(tiny_model_dir), more=SMALLEST_PLAN, cache=trained_cache)
