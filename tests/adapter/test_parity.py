"""The adapter as written, loaded by mlx-lm and by Hugging Face PEFT on PyTorch: the same logits as ours.

Run with ``scripts/test --parity``; it installs PyTorch and PEFT into an environment of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gardener.adapter import ManifestDetails, PeftManager, attach_adapter
from mlx_gardener.adapter.exports import export_adapter
from mlx_gardener.config import LoraConfig
from mlx_gardener.model import load_base, seedling_path
from mlx_gardener.model.lora import AdapterSettings, attach_lora, detach_lora, lora_parameters
from mlx_gardener.registry import ProjectRegistry
from tests.support.models import write_tiny_model

TOLERANCE = 1e-4
DETAILS = ManifestDetails({"model": ""}, {}, {}, {}, {}, {})
QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}


@pytest.fixture(params=["llama", "qwen2", "seedling"])
def model_dir(request: pytest.FixtureRequest, tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    if request.param == "seedling":
        return seedling_path()
    overrides: dict[str, Any] = QWEN2 if request.param == "qwen2" else {}
    return write_tiny_model(tmp_path / request.param, tiny_tokenizer_dir, **overrides)


def relative(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max() / np.abs(first).max())


@pytest.mark.torch
@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(rank=8),
        LoraConfig(rank=4, scale=3.0, use_rslora=True),
        LoraConfig(rank=4, use_dora=True),
        LoraConfig(rank=4, num_layers=2, target_modules=("q_proj", "down_proj")),
    ],
    ids=["lora", "rslora", "dora", "part"],
)
def test_ours_mlx_lm_and_peft_give_the_same_logits(
    model_dir: Path, lora: LoraConfig, repository: Path
) -> None:
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = load_base(str(model_dir))
    targets = attach_lora(base.model, lora, seed=3)
    mx.random.seed(4)
    weights = {
        name: value + 0.05 * mx.random.normal(value.shape) if not name.endswith(".m") else value * 1.1
        for name, value in lora_parameters(base.model).items()
    }
    detach_lora(base.model)
    registry = ProjectRegistry()
    registry.register_project("parity", repository)
    manager = PeftManager(registry)
    record = manager.create_adapter(
        "parity",
        weights,
        base=base,
        settings=AdapterSettings.of(targets, lora),
        details=DETAILS,
        model_card="",
    )

    ids = np.random.default_rng(0).integers(10, 500, (2, 24))
    plain = np.array(base.model(mx.array(ids)))
    with attach_adapter(base, manager.load_adapter("parity")):
        ours = np.array(base.model(mx.array(ids)))
    assert relative(plain, ours) > 0.01, "the adapter changes the logits, or there is nothing to compare"

    import mlx_lm

    theirs_model, _ = mlx_lm.load(str(model_dir), adapter_path=str(record.directory / "mlx"))
    theirs_model.set_dtype(mx.float32)
    theirs = np.array(theirs_model(mx.array(ids)))

    torch.manual_seed(0)
    hf_base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    hf = PeftModel.from_pretrained(hf_base, record.directory / "peft").eval()
    with torch.no_grad():
        peft = hf(torch.tensor(ids)).logits.numpy()

    target = registry.home / "fused"
    export_adapter(manager.registry, "parity", None, "fused", target, dtype="float32")
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)(torch.tensor(ids))
    print(f"fused in Transformers {relative(ours, merged.logits.numpy()):.1e}")
    assert relative(ours, merged.logits.numpy()) < TOLERANCE
    print(f"mlx-lm {relative(ours, theirs):.1e}, PEFT {relative(ours, peft):.1e}")
    assert relative(ours, theirs) < TOLERANCE
    assert relative(ours, peft) < TOLERANCE
