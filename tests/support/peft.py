"""Adapters as Hugging Face PEFT writes them, for tests that import some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

HIDDEN, INNER = 48, 96
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
          "base_model_name_or_path": "some/base"}  # fmt: skip


def write_peft(
    directory: Path, modules: dict[str, int], extra: dict[str, mx.array] | None = None, **config: Any
) -> Path:
    """A PEFT adapter of random weights; ``modules`` are names within the model and their ranks."""
    directory.mkdir()
    mx.random.seed(5)
    weights = dict(extra or {})
    for module, rank in modules.items():
        inputs = INNER if module.endswith("down_proj") else HIDDEN
        outputs = INNER if module.endswith("up_proj") else HIDDEN
        weights[f"base_model.model.{module}.lora_A.weight"] = mx.random.normal((rank, inputs))
        weights[f"base_model.model.{module}.lora_B.weight"] = mx.random.normal((outputs, rank))
    mx.save_safetensors(str(directory / "adapter_model.safetensors"), weights)
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return directory
