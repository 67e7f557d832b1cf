"""A base, its data and a training loop over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import PreparedData, TrainingDataPreparator
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.training import TrainOutcome
from tests.support.loops import Runner, settings, train_on
from tests.support.repositories import write_repository


@pytest.fixture
def base(tiny_model_dir: Path) -> BaseModel:
    return load_base(str(tiny_model_dir))


@pytest.fixture(scope="session")
def data(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    place, tokenizer = tmp_path_factory.mktemp("data"), load_base(str(tiny_model_dir)).tokenizer
    preparator = TrainingDataPreparator(settings(), tokenizer=tokenizer, cache_dir=place / "cache")
    return preparator.prepare(write_repository(place / "repository"))


@pytest.fixture(scope="session")
def undisturbed_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoints of `undisturbed` lie."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="session")
def undisturbed(tiny_model_dir: Path, data: PreparedData, undisturbed_directory: Path) -> TrainOutcome:
    """What comes of a training by `settings()` that nothing disturbs."""
    base = load_base(str(tiny_model_dir))
    return train_on(base, data, settings(), undisturbed_directory)


@pytest.fixture
def run(base: BaseModel, data: PreparedData, tmp_path: Path) -> Runner:
    def go(config: TrainingConfig, *, directory: str = "checkpoints", **more: Any) -> TrainOutcome:
        return train_on(base, data, config, tmp_path / directory, **more)

    return go
