"""What all arms are asked, drawn from a repository's held-out files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import PreparedData, TrainingDataPreparator, names_defined
from mlx_gardener.evaluate.stages import Survey
from mlx_gardener.model import load_tokenizer
from tests.support.repositories import write_repository, write_tests
from tests.support.trainings import tiny_settings


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path
) -> tuple[Any, PreparedData, TrainingConfig]:
    """A base that has no more than a tokenizer, the data, and the settings."""
    place = tmp_path_factory.mktemp("survey")
    repository = write_repository(place / "repository", modules=24)
    write_tests(repository)
    config = tiny_settings(place, **{"data.test_fraction": 0.3, "data.split": "files"})
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    data = TrainingDataPreparator(config, tokenizer=tokenizer, cache_dir=place / "cache").prepare(repository)
    return SimpleNamespace(tokenizer=tokenizer), data, config


def survey(prepared: tuple[Any, PreparedData, TrainingConfig], tasks: int) -> Survey:
    return Survey.make(*prepared, 2000, tasks, can_write=True, forward_tokens=1e9, step_tokens=20)


def test_only_names_that_a_training_file_defines_are_asked_for(
    prepared: tuple[Any, PreparedData, TrainingConfig],
) -> None:
    data, tasks = prepared[1], survey(prepared, 500).tasks
    trained = {record.path for record in data.split.train}
    every = names_defined(data.scan.files)
    unknown = {name for name, paths in every.items() if not paths & trained}
    assert unknown and tasks.defined == set(every) - unknown
    assert tasks.cross_file
    for task in tasks.cross_file:
        assert any(name in task.target for name in tasks.defined), task.target


@pytest.mark.parametrize("kind", ["lines", "cross_file", "assertions", "spans"])
def test_tasks_of_every_kind_come_from_files_in_turn_and_fewer_are_the_first_of_more(
    prepared: tuple[Any, PreparedData, TrainingConfig], kind: str
) -> None:
    every = getattr(survey(prepared, 500).tasks, kind)
    files = {task.path for task in every}
    turns = Counter(task.path for task in every)
    assert len(files) >= 3 and len(every) > 2 * len(files) and len(set(every)) == len(every)
    assert {task.path for task in every[: len(files)]} == files
    twice = sum(count > 1 for count in turns.values())
    assert len({task.path for task in every[len(files) : len(files) + twice]}) == twice
    for count in (2, len(files) + 1):
        assert getattr(survey(prepared, count).tasks, kind) == every[:count]
