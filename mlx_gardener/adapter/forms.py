"""The same weights in mlx-lm's form and in Hugging Face PEFT's.

mlx-lm: y = W x + scale * (x A) B with A (inputs, rank), B (rank, outputs). PEFT: y = W x + alpha / r * B A x with
A (rank, inputs), B (outputs, rank); so ``lora_A = lora_a.T``, ``lora_B = lora_b.T`` and ``lora_alpha = scale * rank``,
which also holds for rsLoRA, whose scale is already the effective one. DoRA's magnitude keeps its shape.
Sources: mlx_lm/tuner/lora.py and dora.py, peft/tuners/lora (versions 0.32 and 0.21).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.model.lora import AdapterSettings

_PEFT_LEAF = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}


def write_mlx_form(
    directory: Path, weights: dict[str, mx.array], settings: AdapterSettings, base_model: str
) -> None:
    """``adapters.safetensors`` and ``adapter_config.json``, as ``mlx_lm`` reads with ``--adapter-path``."""
    import mlx.core as mx

    directory.mkdir()
    mx.save_safetensors(str(directory / "adapters.safetensors"), weights, metadata={"format": "mlx"})
    _write_json(directory / "adapter_config.json", {**settings.to_json(), "model": base_model})


def has_peft_form(weights: dict[str, mx.array]) -> bool:
    """Whether PEFT can hold these weights: adapters of stacked experts (three dimensions) it cannot."""
    return all(value.ndim <= 2 for value in weights.values())


def write_peft_form(
    directory: Path, weights: dict[str, mx.array], settings: AdapterSettings, base_model: str, layers: int
) -> None:
    """``adapter_model.safetensors`` and ``adapter_config.json``, as PEFT's ``PeftModel.from_pretrained`` reads."""
    import mlx.core as mx

    directory.mkdir()
    mx.save_safetensors(
        str(directory / "adapter_model.safetensors"), to_peft(weights), metadata={"format": "pt"}
    )
    trained = settings.layers
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.scale * settings.rank,
        "lora_dropout": settings.dropout,
        "target_modules": list(settings.keys),
        "layers_to_transform": None if trained >= layers else list(range(layers - trained, layers)),
        "layers_pattern": None if trained >= layers else "layers",
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": settings.is_dora,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    _write_json(directory / "adapter_config.json", config)


def to_peft(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Weights by PEFT's names and in its orientation."""
    converted = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        turned = value.T if leaf in ("lora_a", "lora_b") else value
        converted[f"base_model.model.{module}.{_PEFT_LEAF[leaf]}"] = turned
    return converted


def from_peft(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Weights by mlx-lm's names; the inverse of `to_peft`.

    Raises:
        ValueError: a name is no LoRA weight.
    """
    leaves = {peft: mlx for mlx, peft in _PEFT_LEAF.items()}
    converted = {}
    for name, value in weights.items():
        match = re.fullmatch(
            r"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)(?:(?<=vector)\.weight)?",
            name,
        )
        if match is None:
            raise ValueError(f"{name!r} is no LoRA weight")
        leaf = leaves[match[2]]
        converted[f"{match[1]}.{leaf}"] = value.T if leaf != "m" else value
    return converted


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
