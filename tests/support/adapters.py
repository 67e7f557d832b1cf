"""Registered adapters of tiny models."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_gardener.adapter import ManifestDetails, PeftManager, attach_adapter
from mlx_gardener.config import LoraConfig
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.model.lora import AdapterSettings, attach_lora, detach_lora, lora_parameters
from mlx_gardener.registry import AdapterRecord, ProjectRegistry, TrainingStatus
from tests.model.gguf.files import logits

DETAILS = ManifestDetails({"model": ""}, {}, {}, {}, {}, {})
#: What must not be told: where a local model lies.
LOCAL_DETAILS = ManifestDetails(
    {"model": "/secret/place/model"}, {}, {"adapter_bits_per_byte": 1.0}, {}, {}, {}
)

#: Tokens that the tiny models of GGUF files are asked about, and the adapters these get.
IDS = [*range(40, 64), 3, 250, 7, 7, 9]
LORA = LoraConfig(rank=4, target_modules="all-linear")


def project_with(base: BaseModel, repository: Path, lora: LoraConfig, *, size: float = 0.02) -> PeftManager:
    """A project ``web`` with an adapter of random weights about as large as trained ones."""
    registry = ProjectRegistry()
    registry.register_project("web", repository)
    targets = attach_lora(base.model, lora, seed=3)
    mx.random.seed(4)
    weights = {
        name: value + size * mx.random.normal(value.shape) if not name.endswith(".m") else value
        for name, value in lora_parameters(base.model).items()
    }
    mx.eval(weights)
    detach_lora(base.model)
    manager = PeftManager(registry)
    manager.create_adapter(
        "web", weights, base=base, settings=AdapterSettings.of(targets, lora), details=DETAILS, model_card=""
    )
    return manager


@pytest.fixture
def manager(repository: Path) -> PeftManager:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    return PeftManager(registry)


def trained(base: BaseModel) -> tuple[dict[str, mx.array], AdapterSettings]:
    config = LoraConfig(rank=4)
    targets = attach_lora(base.model, config, seed=1)
    weights = {name: value + 0.1 for name, value in lora_parameters(base.model).items()}
    mx.eval(weights)
    detach_lora(base.model)
    return weights, AdapterSettings.of(targets, config)


def create(manager: PeftManager, base: BaseModel) -> AdapterRecord:
    weights, settings = trained(base)
    return manager.create_adapter(
        "small",
        weights,
        base=base,
        settings=settings,
        details=LOCAL_DETAILS,
        model_card="card",
        extra_files={"x.txt": b"x"},
    )


def adapted_logits(manager: PeftManager, base: Path) -> np.ndarray:
    """What the adapter says here."""
    model = load_base(str(base))
    with attach_adapter(model, manager.load_adapter("web")):
        return logits(model.model, IDS)


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
        registry.finish_training(training.id, TrainingStatus.COMPLETED, "Done", {})
        make_adapter(registry, name, base, SHAPES[name], seed=number + 1)
    return registry
