"""A base, its data and a training loop over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import PreparedData, TrainingDataPreparator
from mlx_gardener.engine import Engine, Plan, PredictedParts
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.platform.kept import KeptValues
from mlx_gardener.training import TrainOutcome, train
from mlx_gardener.training.time_plan import Clock
from tests.conftest import write_repository
from tests.support.loops import Recorder, Runner, settings


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


def train_on(
    base: BaseModel,
    data: PreparedData,
    config: TrainingConfig,
    checkpoint_dir: Path,
    *,
    recorder: Recorder | None = None,
    resume: bool = False,
    rows: int = 2,
    clock: Clock | None = None,
    speed: float = 1e9,
    store: KeptValues | None = None,
) -> TrainOutcome:
    recorder = recorder or Recorder()
    plan = Plan(
        {64: rows, 128: rows}, config.memory_limit_bytes, 0, PredictedParts(), (),
        predicted_tokens_per_second=speed, predicted_forward_tokens_per_second=speed,
    )  # fmt: skip
    return train(
        base,
        data,
        config,
        Engine(base.model, plan, dtype=base.dtype),
        publish=recorder.publish,
        interrupt=recorder.interrupt,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        clock=clock,
        store=store,
    )


@pytest.fixture
def run(base: BaseModel, data: PreparedData, tmp_path: Path) -> Runner:
    def go(config: TrainingConfig, *, directory: str = "checkpoints", **more: Any) -> TrainOutcome:
        return train_on(base, data, config, tmp_path / directory, **more)

    return go
