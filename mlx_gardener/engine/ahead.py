"""A model before it is fetched: its tokenizer, and the facts that decide memory and speed, without its weights.

In: a chosen model. Out: a directory with its config and tokenizer, and its facts. Cost: a second for a model that is here,
as `model.check_model`, more for a GGUF file that was not read yet; config and tokenizer, some megabytes, for one that is
still on the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import LoraConfig
from mlx_gardener.engine.facts import ModelFacts, Stored, bits_of, facts_of, model_facts
from mlx_gardener.errors import ModelError
from mlx_gardener.model import ModelChoice, check_model
from mlx_gardener.model.choose import read_model_config, seedling_path
from mlx_gardener.model.hub import cached_model, fetch_description
from mlx_gardener.model.lora import check_targets
from mlx_gardener.model.package_index import packaged
from mlx_gardener.platform.reasons import reason_of

if TYPE_CHECKING:
    import mlx.nn as nn


def look_ahead(choice: ModelChoice, lora: LoraConfig) -> tuple[Path, ModelFacts]:
    """The directory with a model's config and tokenizer, and its facts; what a training would refuse is refused.

    Of a model that is still on the package index the facts are known; config and tokenizer are then the embedded model's.

    Raises:
        ModelError: as `check_model`; of a model that is not here, damaged weights are seen only when they are.
    """
    if choice.is_here or cached_model(choice.name) is not None:
        path = check_model(choice, lora)
        return path, model_facts(path)
    if (wanted := packaged(choice.name)) is not None:
        return seedling_path(), ModelFacts(wanted.name, **wanted.sizes)
    path = fetch_description(choice.name)
    config = read_model_config(path)
    try:
        model = _without_weights(config)
        weights = list(_arrays(model, config))
    except Exception as error:  # mlx-lm raises many kinds for a config that it does not know
        raise ModelError(
            f"The model {choice.name!r} cannot be loaded ({reason_of(error)}).",
            next_step="Choose one that mlx-lm supports.",
        ) from error
    check_targets(model, lora)
    return path, facts_of(path.name, config, iter(weights))


def _without_weights(config: dict[str, Any]) -> nn.Module:
    """mlx-lm's module for a config, quantised as it says; MLX makes none of its arrays until somebody asks for them."""
    import mlx.nn as nn
    from mlx_lm.utils import _get_classes

    model_class, arguments = _get_classes(config)
    model: nn.Module = model_class(arguments.from_dict(config))
    if quantization := config.get("quantization"):
        nn.quantize(
            model,
            group_size=quantization["group_size"],
            bits=quantization["bits"],
            mode=quantization.get("mode", "affine"),
            class_predicate=lambda path, module: quantization.get(path, hasattr(module, "to_quantized")),
        )
    return model


def _arrays(model: nn.Module, config: dict[str, Any]) -> Iterator[Stored]:
    """Every array, as `facts` counts those of weight files."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    kind = str(config.get("torch_dtype") or config.get("dtype") or "")
    float_bytes = 4 if "float32" in kind else 2
    for name, value in tree_flatten(model.parameters()):
        floating = mx.issubdtype(value.dtype, mx.floating)
        stored = value.size * (float_bytes if floating else value.itemsize)
        parameters = value.size
        bits = bits_of(config, name)
        if bits and value.dtype == mx.uint32:
            parameters = value.size * 32 // bits
        elif bits and name.endswith((".scales", ".biases")):
            parameters = 0
        half = stored if floating and float_bytes == 2 else 0
        yield Stored(name, parameters, stored, half, value.shape)
