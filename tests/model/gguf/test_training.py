"""Trainings on GGUF bases: the command line takes the file, and adapters find their base again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind

from mlx_gardener.adapter import base_name
from mlx_gardener.adapter.base import point_base
from mlx_gardener.config import LoraConfig
from mlx_gardener.engine import load_engine, make_plan, model_facts
from mlx_gardener.engine.speed import measured_backend
from mlx_gardener.model import choose_model, load_base, resolve_model
from mlx_gardener.registry import ProjectRegistry
from tests.model.gguf.files import tiny_model, write_gguf
from tests.support.adapters import make_adapter
from tests.support.commands import gardener, train_flags
from tests.support.trainings import tiny_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tiny llama with matrices of two kinds, as real files have them."""
    model, config = tiny_model("llama")
    return write_gguf(
        tmp_path / "tiny-Q4_1.gguf", "llama", model, config, kind=Kind.Q4_1, kinds={"ffn_down": Kind.F16}
    )


def test_train_takes_a_gguf_file(file: Path, repository: Path) -> None:
    quick = {"evaluation.arms": ["base", "adapter"], "evaluation.tasks": 0}
    done = gardener("train", str(repository), "--project", "web", "--json", *train_flags(file, **quick))
    assert done.returncode == 0, done.stderr
    registry = ProjectRegistry()
    record = registry.list_adapters("web")[0]
    folder = resolve_model(choose_model(str(file)))
    assert record.base_model == file.name and base_name(registry, record) == str(folder)
    shutil.rmtree(folder)
    assert base_name(registry, record) == str(file), "the folder is gone, but what it was read from is here"
    assert load_base(base_name(registry, record)).weights_sha256


def test_an_adapter_finds_a_file_that_was_moved(file: Path, repository: Path, tmp_path: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("web", repository)
    record = make_adapter(registry, "web", load_base(str(file)), LoraConfig(rank=2), seed=1)
    folder = resolve_model(choose_model(str(file)))
    assert record.base_model == file.name and base_name(registry, record) == str(folder)
    shutil.rmtree(folder)
    moved = file.rename(tmp_path / "moved.gguf")
    assert [found.version for found in point_base(registry, str(moved))] == [record.version]
    assert Path(base_name(registry, record)).is_dir()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_base_of_mixed_widths_is_computed_as_stored_and_streamed(file: Path, streamed: bool) -> None:
    """The check at load compares the segments' gradients with the whole graph's."""
    config = tiny_settings(file)
    pins = {"base_weights": "stored"} | ({"streamed_layers": 2} if streamed else {})
    config = config.model_copy(update={"engine": config.engine.model_copy(update=pins)})
    facts = model_facts(resolve_model(choose_model(str(file))))
    backend = measured_backend()
    plan = make_plan(facts, config, config.memory_limit_bytes, backend)
    assert plan.base_weights == "stored" and plan.streamed_layers == (2 if streamed else 0)
    warned: list[str] = []
    base, engine = load_engine(
        str(file), plan, config, facts=facts, backend=backend, warn=warned.append, dry_run=False
    )
    assert base.quantized and engine.whole_because is None and not warned
