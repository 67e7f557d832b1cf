"""Projects with adapters that differ in rank, scale, modules and what they say, and a real server over them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_gardener.adapter import ManifestDetails, PeftManager
from mlx_gardener.config import LoraConfig
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.model.lora import AdapterSettings, attach_lora, detach_lora, lora_parameters
from mlx_gardener.registry import AdapterRecord, ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving
from tests.conftest import write_tiny_model

DETAILS = ManifestDetails({}, {}, {}, {}, {}, {})
#: Rank, scale, modules and layers of the four projects' adapters: no two alike.
SHAPES = {
    "alpha": LoraConfig(rank=4, scale=2.0),
    "beta": LoraConfig(rank=8, scale=1.0, target_modules=("q_proj", "v_proj")),
    "gamma": LoraConfig(rank=2, scale=4.0, num_layers=2),
    "delta": LoraConfig(rank=4, scale=2.0, target_modules=("gate_proj", "up_proj", "down_proj")),
}


def make_adapter(
    registry: ProjectRegistry,
    project: str,
    base: BaseModel,
    config: LoraConfig,
    *,
    seed: int,
    strength: float = 0.6,
    activate: bool = True,
    details: ManifestDetails = DETAILS,
) -> AdapterRecord:
    """Write an adapter of random weights as a training would; ``strength`` 0 makes one that changes nothing."""
    targets = attach_lora(base.model, config, seed=seed)
    weights = {
        name: value if name.endswith("lora_a") else mx.random.normal(value.shape) * strength
        for name, value in lora_parameters(base.model).items()
    }
    mx.eval(weights)
    detach_lora(base.model)
    with PeftManager(registry).stage_adapter(
        project, weights, base=base, settings=AdapterSettings.of(targets, config)
    ) as staged:
        return staged.commit(details, model_card="card", activate=activate)


def make_projects(
    base: BaseModel, root: Path, model: str, names: list[str], registry: ProjectRegistry | None = None
) -> ProjectRegistry:
    """Projects of these names with an adapter each, in the registry of MLX_GARDENER_HOME or another."""
    registry = registry or ProjectRegistry()
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        registry.register_project(name, root / name)
        # The name of a local base is found in the settings of the training that used it.
        training = registry.begin_training(name, {"model": model})
        from mlx_gardener.registry import TrainingStatus

        registry.finish_training(training.id, TrainingStatus.COMPLETED, "Done", {})
        make_adapter(registry, name, base, SHAPES[name], seed=number + 1)
    return registry


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProjectRegistry, BaseModel]]:
    """Four projects on the embedded model, in a home that the module's tests share."""
    root = tmp_path_factory.mktemp("world")
    before = os.environ.get("MLX_GARDENER_HOME")
    os.environ["MLX_GARDENER_HOME"] = str(root / "home")
    base = load_base("seedling")
    yield make_projects(base, root / "code", "seedling", list(SHAPES)), base
    if before is None:
        del os.environ["MLX_GARDENER_HOME"]
    else:
        os.environ["MLX_GARDENER_HOME"] = before


@pytest.fixture(scope="module")
def address(world: tuple[ProjectRegistry, BaseModel]) -> Iterator[str]:
    """A server of the four projects; on a machine that is busy with others, one in eight may wait for minutes."""
    with serving(world[0], ServeSettings(port=0, max_queued_seconds=600.0)) as where:
        yield where


@pytest.fixture
def start(world: tuple[ProjectRegistry, BaseModel]) -> Iterator[Callable[..., str]]:
    """Start servers with other settings; they end with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def starting(**settings: object) -> str:
            return stack.enter_context(serving(world[0], ServeSettings(port=0, **settings)))  # type: ignore[arg-type]

        yield starting


def write_chat_model(directory: Path, tokenizer_dir: Path) -> Path:
    """A tiny random model with a chat template."""
    write_tiny_model(directory, tokenizer_dir)
    (directory / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if message.role not in ('system', 'user', 'assistant') %}"
        "{{ raise_exception('unknown role') }}{% endif %}<|file_sep|>{{ message.role }}\n{{ message.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|file_sep|>assistant\n{% endif %}"
    )
    return directory


@pytest.fixture
def chat_model_dir(tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    """The directory of `write_chat_model`'s."""
    return write_chat_model(tmp_path / "chatty", tiny_tokenizer_dir)


def wait_until(true: Callable[[], bool], seconds: float = 600.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.02)
    return False
