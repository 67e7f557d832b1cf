"""What is served is what evidence measured: no answer differs, for base and adapter, with retrieval and without."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.config import load_config
from tests.support.repositories import write_repository, write_tests
from tests.support.trainings import tiny_settings


def compared(
    monkeypatch: pytest.MonkeyPatch, config: Any, root: Path, home: Path, prompts: int
) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "served_equals_measured", raising=False)
    write_repository(root, modules=24)
    write_tests(root)
    made = importlib.import_module("served_equals_measured")
    monkeypatch.setattr(made, "NOISE", 0.3)
    found: dict[str, Any] = made.measure(config, root, home, prompts)
    return found


def test_what_is_served_is_what_was_measured(
    home: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_settings(tiny_model_dir, **{"data.test_fraction": 0.2, "data.split": "files"})
    found = compared(monkeypatch, config, tmp_path / "code", home, 8)
    assert found["different"] == 0, found["different_examples"]
    assert found["answers"] == 4 * 8 and all(found["prompts"].values())
    assert found["answers_that_the_adapter_changes"] > 4, "else equality would prove little"
    assert found["with_retrieved_code"]["base"] == 0 and found["with_retrieved_code"]["adapter_bm25"] > 4


@pytest.mark.slow
def test_two_hundred_prompts_on_the_embedded_model_have_no_difference(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "model": "seedling", "data.split": "files", "data.test_fraction": 0.3, "training_data_quality_threshold": 0.1,
        "min_training_chunks": 5, "evaluation.max_new_tokens": 24,
    }  # fmt: skip
    found = compared(
        monkeypatch, load_config(environment={}, overrides=settings), tmp_path / "code", home, 200
    )
    assert found["different"] == 0, found["different_examples"]
    assert found["answers"] == 800 and found["answers_that_the_adapter_changes"] > 100
