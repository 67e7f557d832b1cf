"""LoRA layers in an mlx-lm model: put in, read, set, taken out again.

The layers are mlx-lm's own (LoRALinear, LoRASwitchLinear, DoRALinear), so that what is trained here is what
``mlx_lm`` loads later. Adapter weights are float32 masters; the training step casts them to the base's type on their
way into the model, so a bfloat16 base stays bfloat16 (one float32 operand would promote the whole delta).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import LoraConfig
from mlx_gardener.errors import ModelError
from mlx_gardener.platform.untrusted import read_header

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

_LEAVES = ("lora_a", "lora_b", "m")


@dataclass(frozen=True)
class LoraTargets:
    """Which modules have adapters: ``keys`` are names within a layer, ``layers`` counts from the last one."""

    keys: tuple[str, ...]
    layers: int
    parameters: int


def attach_lora(model: nn.Module, config: LoraConfig, *, seed: int) -> LoraTargets:
    """Put fresh adapters into ``model``; with B at zero its output does not change yet.

    A is uniform within 1/sqrt(inputs) and B zero, as in mlx-lm; ``seed`` decides A.

    Raises:
        ModelError: the model has fewer than ``config.num_layers`` or no module that fits ``config.target_modules``, or DoRA is
            asked of a mixture of experts.
    """
    import mlx.core as mx

    trained = _trained_layers(model, config)
    keys = _target_keys(trained, config)
    model.freeze()
    mx.random.seed(seed)
    targets = LoraTargets(tuple(sorted(keys)), len(trained), 0)
    try:
        AdapterSettings.of(targets, config).put_into(model)
    except ValueError as error:
        raise ModelError(
            f"The model cannot take these adapters: {error}.", next_step="Change lora.* settings."
        ) from error
    adapters = lora_parameters(model)
    model.update(nested({name: value.astype(mx.float32) for name, value in adapters.items()}))
    model.freeze()
    mx.eval(lora_parameters(model))
    return replace(targets, parameters=sum(value.size for value in lora_parameters(model).values()))


def check_targets(model: nn.Module, config: LoraConfig) -> None:
    """Raises ModelError where the model lacks the layers that ``config`` trains, or they a module for its adapters."""
    _target_keys(_trained_layers(model, config), config)


def _trained_layers(model: nn.Module, config: LoraConfig) -> list[nn.Module]:
    layers: list[nn.Module] = model.layers
    if config.num_layers is None:
        return layers
    if config.num_layers > len(layers):
        raise ModelError(
            f"lora.num_layers is {config.num_layers}, but the model has {len(layers)} layers.",
            next_step=f"Name at most {len(layers)}, or leave it out: all are trained then.",
        )
    return layers[-config.num_layers :]


def effective_scale(config: LoraConfig) -> float:
    """What multiplies B A: alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv:2312.03732)."""
    return config.scale * math.sqrt(config.rank) if config.use_rslora else config.scale


def _target_keys(layers: list[nn.Module], config: LoraConfig) -> set[str]:
    import mlx.nn as nn
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    kinds = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
    found = {name for layer in layers for name, module in layer.named_modules() if isinstance(module, kinds)}
    if config.target_modules == "all-linear":
        # A router decides which expert sees a token; moving it with a small adapter unbalances the experts.
        keys = {name for name in found if not name.endswith((".gate", ".router"))}
    else:
        keys = {
            name
            for name in found
            if any(name == wanted or name.endswith("." + wanted) for wanted in config.target_modules)
        }
    if not keys:
        names = ", ".join(sorted({name.rpartition(".")[2] for name in found})) or "none"
        raise ModelError(
            f"No linear module of the model fits lora.target_modules = {config.target_modules!r}.",
            next_step=f"Its linear modules are: {names}.",
        )
    return keys


def lora_parameters(model: nn.Module) -> dict[str, mx.array]:
    """Adapter weights by mlx-lm's names (``model.layers.0.self_attn.q_proj.lora_a``), in the order of the names."""
    found = {f"{path}.{leaf}": module[leaf] for path, module, leaf in lora_places(model)}
    return dict(sorted(found.items()))


def lora_places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(path, module, attribute) of every adapter weight in ``model``."""
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

    for path, module in model.named_modules():
        if isinstance(module, (LoRALinear, LoRASwitchLinear, DoRALinear)):
            yield from ((path, module, leaf) for leaf in _LEAVES if leaf in module)


def set_lora_parameters(model: nn.Module, weights: dict[str, mx.array]) -> None:
    """Put adapter weights into a model that has the same adapters.

    Raises:
        ModelError: a name or shape does not fit.
    """
    present = lora_parameters(model)
    wrong = sorted(set(weights) ^ set(present)) or [
        name for name, value in weights.items() if value.shape != present[name].shape
    ]
    if wrong:
        raise ModelError(
            f"The adapter does not fit the model: {wrong[0]} (and {len(wrong) - 1} more).",
            next_step="Use the base model that the adapter was trained on.",
        )
    model.update(nested(weights))


def detach_lora(model: nn.Module) -> None:
    """Take all adapters out; the model is the base again."""
    from mlx.utils import tree_unflatten
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

    plain = [
        (path, module.linear)
        for path, module in model.named_modules()
        if isinstance(module, (LoRALinear, LoRASwitchLinear, DoRALinear))
    ]
    if plain:
        model.update_modules(tree_unflatten(plain))
    model.freeze()


@dataclass(frozen=True)
class AdapterSettings:
    """Which adapters lie in a base, as mlx-lm's ``adapter_config.json`` says it.

    Attributes:
        layers: the last so many have adapters.
        rank, scale, dropout: of every adapter; ``scale`` multiplies B A.
        keys: names of the modules within a layer that have one.
        is_dora: whether they are weight-decomposed.
    """

    layers: int
    rank: int
    scale: float
    keys: tuple[str, ...]
    dropout: float = 0.0
    is_dora: bool = False

    @classmethod
    def of(cls, targets: LoraTargets, config: LoraConfig) -> AdapterSettings:
        """Those of the adapters that `attach_lora` put in."""
        scale = effective_scale(config)
        return cls(targets.layers, config.rank, scale, targets.keys, config.dropout, config.use_dora)

    def to_json(self) -> dict[str, Any]:
        """What mlx-lm reads."""
        return {
            "fine_tune_type": "dora" if self.is_dora else "lora",
            "num_layers": self.layers,
            "lora_parameters": {
                "rank": self.rank,
                "scale": self.scale,
                "dropout": self.dropout,
                "keys": list(self.keys),
            },
        }

    @classmethod
    def from_json(cls, values: Any) -> AdapterSettings:
        """What a file says.

        Raises:
            ValueError: LoRA layers cannot be made of it; says what is wrong.
        """
        lora = values.get("lora_parameters") if isinstance(values, dict) else None
        if not isinstance(lora, dict):
            raise ValueError("adapter_config.json has no lora_parameters")
        if values.get("fine_tune_type") not in ("lora", "dora"):
            raise ValueError("its fine_tune_type is neither lora nor dora")
        for name, value, most in (
            ("num_layers", values.get("num_layers"), 100_000),
            ("rank", lora.get("rank"), 2**16),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ValueError(f"its {name} is not a number from 1 to {most}")
        for name in ("scale", "dropout"):
            value = lora.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"its {name} is no number")
        if not 0 <= lora["dropout"] < 1:
            raise ValueError("its dropout is not between 0 and 1")
        keys = lora.get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("its keys are no list of names")
        is_dora = values["fine_tune_type"] == "dora"
        return cls(values["num_layers"], lora["rank"], lora["scale"], tuple(keys), lora["dropout"], is_dora)

    def put_into(self, model: nn.Module) -> None:
        """Fresh adapters in ``model``, by mlx-lm.

        Raises:
            ValueError: a module cannot take one.
        """
        from mlx_lm.tuner.utils import linear_to_lora_layers

        values = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout, "keys": set(self.keys)}
        linear_to_lora_layers(model, self.layers, values, use_dora=self.is_dora)


def nested(weights: dict[str, mx.array]) -> Any:
    """Flat names as the nested tree that `nn.Module.update` takes."""
    from mlx.utils import tree_unflatten

    return tree_unflatten(list(weights.items()))


def load_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, in memory.

    Raises:
        OSError, RuntimeError, ValueError: it cannot be read.
    """
    import mlx.core as mx

    read_header(file, follow_links=False)  # MLX believes what a header claims
    arrays = mx.load(str(file), format="safetensors")  # a blob of the hub's cache has no ending
    if not isinstance(arrays, dict):
        raise ValueError(f"{file.name} holds no named arrays")
    mx.eval(arrays)
    return dict(sorted(arrays.items()))  # sums over all of them must not depend on a file's order
