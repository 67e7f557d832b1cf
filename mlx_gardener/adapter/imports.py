"""Adapters of Hugging Face PEFT taken into the registry: safetensors and JSON only, nothing pickled.

PEFT may give every module its own rank, alpha and place; mlx-lm's form has one rank and scale and the same modules in
the last N layers. What differs is made the same without changing the sum: a smaller rank is filled up with zeros, an
alpha of its own goes into B, and a module that has no adapter gets one whose B is zero. Source: peft/tuners/lora
(version 0.21). Cost: the base is read once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from mlx_gardener.adapter.forms import from_peft
from mlx_gardener.errors import AdapterError
from mlx_gardener.platform.untrusted import read_header, read_json

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.adapter.manager import PeftManager
    from mlx_gardener.model import BaseModel
    from mlx_gardener.registry import AdapterRecord

_MOST_RANK = 1024
_SAVE_AGAIN = "Save it again where it was made: `model.save_pretrained(path)` of PEFT keeps both in step."
#: A stranger's pattern may take for ever (``re`` cannot be interrupted, `regex` can); honest ones take microseconds.
_PATTERN_SECONDS = 0.2
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
#: Settings of PEFT that change what an adapter computes in ways that no form here holds.
_FOREIGN = (
    "bias", "modules_to_save", "fan_in_fan_out", "layer_replication", "lora_bias", "trainable_token_indices",
    "alora_invocation_tokens", "target_parameters", "use_qalora", "use_bdlora", "arrow_config", "megatron_config",
)  # fmt: skip
_LAYER = re.compile(r"(.*\blayers\.)(\d+)\.(.+)")


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT adapter as read: weights by mlx-lm's names, and its configuration."""

    weights: dict[str, mx.array]
    config: dict[str, Any]

    def scale_of(self, module: str) -> float:
        """What multiplies B A in ``module``: alpha over its rank, or over the rank's root with rsLoRA."""
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"]))
        rank = float(_by_pattern(self.config.get("rank_pattern"), module, self.config["r"]))
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)


def read_peft(directory: Path) -> PeftAdapter:
    """Read ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        AdapterError: they are missing or damaged, pickled, or say something that cannot be held; says what.
    """
    from mlx_gardener.model.lora import load_arrays

    file = directory / "adapter_model.safetensors"
    if not file.exists() and (directory / "adapter_model.bin").exists():
        raise AdapterError(
            f"{directory.name!r} holds its weights as adapter_model.bin, pickled, which can run any code when it is read.",
            next_step="Save it again where you trust it: `model.save_pretrained(path)` of PEFT writes safetensors.",
        )
    try:
        config = read_json(directory / "adapter_config.json", max_bytes=2**24)
        _check_config(config)
        read_header(file, follow_links=False)
        weights = from_peft(load_arrays(file))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{directory.name!r} cannot be imported as a PEFT adapter: {error}.",
            next_step="Name the directory that `save_pretrained` of PEFT wrote for a LoRA adapter.",
        ) from error
    return PeftAdapter(weights, config)


def _check_config(config: Any) -> None:
    """Raises ValueError where the configuration is none, or asks for what cannot be held."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError("its peft_type is not LORA")
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e6:
            raise ValueError(f"its {name} is no positive number")
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict) or not all(
            isinstance(key, str) and isinstance(value, (int, float)) and value > 0
            for key, value in patterns.items()
        ):
            raise ValueError(f"its {name} is no table of positive numbers")
    for name in _FOREIGN:
        if config.get(name) not in (None, False, "none", [], {}):
            raise ValueError(f"it uses {name}, which this program's adapters cannot hold")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise ValueError(
            f"it began as {config['init_lora_weights']!r}, which changes the base too; convert it with PEFT's "
            "path_initial_model_for_weight_conversion first"
        )


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is the module's name, or ends it after a dot."""
    for pattern, value in (patterns or {}).items():
        plain = pattern.removeprefix("^")
        if module == plain or module.endswith(f".{plain}"):
            return value
        try:
            if regex.fullmatch(rf"(.*\.)?({plain})", module, timeout=_PATTERN_SECONDS):
                return value
        except regex.error as error:
            raise AdapterError(
                f"The pattern {pattern!r} of this adapter is no regular expression.",
                next_step="Correct rank_pattern or alpha_pattern in its adapter_config.json.",
            ) from error
        except TimeoutError as error:
            raise AdapterError(
                f"The pattern {pattern!r} of this adapter takes too long to compare with a name.",
                next_step="Replace it by the names of the modules it stands for.",
            ) from error
    return default


def to_one_shape(adapter: PeftAdapter, base: BaseModel) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Weights and settings in mlx-lm's form, for ``base``.

    Raises:
        AdapterError: a module is not in the base's layers, or a shape does not fit.
    """
    import mlx.core as mx
    from mlx_lm.tuner.utils import linear_to_lora_layers

    from mlx_gardener.model.lora import detach_lora, lora_parameters

    modules = sorted({name.rpartition(".")[0] for name in adapter.weights})
    ranks = {}
    for module in modules:
        pair = [adapter.weights.get(f"{module}.{leaf}") for leaf in ("lora_a", "lora_b")]
        if any(value is None or value.ndim != 2 for value in pair) or pair[0].shape[1] != pair[1].shape[0]:  # type: ignore[union-attr]
            raise AdapterError(
                f"The module {module!r} has no pair of matrices A and B that fit each other.",
                next_step=_SAVE_AGAIN,
            )
        ranks[module] = pair[0].shape[1]  # type: ignore[union-attr]
        said = int(_by_pattern(adapter.config.get("rank_pattern"), module, adapter.config["r"]))
        if ranks[module] != said:
            raise AdapterError(
                f"The rank of {module!r} is {ranks[module]}, but the configuration says {said}.",
                next_step=_SAVE_AGAIN,
            )
    rank = max(ranks.values(), default=0)
    if not 1 <= rank <= _MOST_RANK:
        raise AdapterError(
            f"A rank of {rank} cannot be imported; 1 to {_MOST_RANK} can.",
            next_step="Train it again with a rank in between.",
        )
    places = {module: _LAYER.fullmatch(module) for module in modules}
    outside = next((module for module, place in places.items() if place is None), None)
    if outside is not None:
        raise AdapterError(
            f"The adapter changes {outside!r}, which lies outside of the model's layers; mlx-lm has no place for that.",
            next_step="Train it again on modules within the layers.",
        )
    keys = sorted({place[3] for place in places.values() if place is not None})
    first = min(int(place[2]) for place in places.values() if place is not None)
    count = len(base.model.layers)
    settings: dict[str, Any] = {
        "fine_tune_type": "dora" if adapter.config.get("use_dora") else "lora",
        "num_layers": max(1, count - first),
        "lora_parameters": {
            "rank": rank,
            "scale": adapter.scale_of(modules[0]),
            "dropout": 0.0,
            "keys": keys,
        },
    }
    shared = settings["lora_parameters"]["scale"]
    try:
        linear_to_lora_layers(
            base.model,
            settings["num_layers"],
            {**settings["lora_parameters"], "keys": set(keys)},
            use_dora=bool(adapter.config.get("use_dora")),
        )
        present = dict(lora_parameters(base.model))
        weights = {
            name: value.astype(mx.float32) if name.endswith(".m") else mx.zeros(value.shape)
            for name, value in present.items()
        }
        mx.eval(weights)
    except ValueError as error:
        raise AdapterError(
            f"{base.id} cannot take this adapter ({error}).",
            next_step="Name the model it was trained on with --base.",
        ) from error
    finally:
        detach_lora(base.model)
    for name, value in adapter.weights.items():
        module, _, leaf = name.rpartition(".")
        value = value.astype(mx.float32)
        if leaf == "lora_a":
            value = mx.pad(value, [(0, 0), (0, rank - ranks[module])])
        elif leaf == "lora_b":
            value = mx.pad(value * (adapter.scale_of(module) / shared), [(0, rank - ranks[module]), (0, 0)])
        if name not in weights or weights[name].shape != value.shape:
            fits = (
                "has no such linear layer" if name not in weights else f"wants {tuple(weights[name].shape)}"
            )
            raise AdapterError(
                f"{name!r} of shape {tuple(value.shape)} does not fit: {base.id} {fits}.",
                next_step="Name the model it was trained on with --base.",
            )
        weights[name] = value
    mx.eval(weights)
    return weights, settings


def import_adapter(
    manager: PeftManager, project: str, directory: Path, *, base: str | None = None, activate: bool = False
) -> AdapterRecord:
    """Register a PEFT adapter as a new version of ``project``, without evidence.

    Args:
        base: the model it was trained on; what its configuration names when None, as far as that is on this machine.
        activate: whether other programs pick it up from now on.

    Raises:
        AdapterError: it cannot be read, held, or does not fit the base; nothing is registered.
        ModelError: the base cannot be found.
        RegistryError: there is no such project.
    """
    from mlx_gardener.adapter.manifest import ManifestDetails, sha256_of
    from mlx_gardener.model import load_base

    manager.registry.get_project(project)
    adapter = read_peft(directory)
    model = load_base(base or _named_base(adapter.config))
    weights, settings = to_one_shape(adapter, model)
    details = ManifestDetails(
        config={"lora": {name: settings["lora_parameters"][name] for name in ("rank", "scale")}},
        data={"commit": None},
        metrics={},
        evidence={},
        training={
            "imported": True,
            "source_sha256": sha256_of(directory / "adapter_model.safetensors"),
            "rank": adapter.config["r"],
            "lora_alpha": adapter.config["lora_alpha"],
            "use_rslora": bool(adapter.config.get("use_rslora")),
            "use_dora": bool(adapter.config.get("use_dora")),
        },
        plan={},
    )
    card = (
        f"# {project}: an imported adapter\n\nA LoRA adapter of `{model.id}` that was trained elsewhere and imported "
        "from Hugging Face PEFT's form. mlx-gardener has measured nothing about it: there is no evidence that it helps.\n"
    )
    with manager.stage_adapter(project, weights, base=model, settings=settings) as staged:
        return staged.commit(details, model_card=card, activate=activate)


def _named_base(config: dict[str, Any]) -> str:
    """The base that an adapter's configuration names, where it is here: a stranger's file fetches nothing.

    Raises:
        AdapterError: it is not here.
    """
    from mlx_gardener.model.choose import SEEDLING, cached_model

    named = config.get("base_model_name_or_path")
    if named == SEEDLING:
        return SEEDLING
    if isinstance(named, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", named) and cached_model(named) is not None:
        return named
    raise AdapterError(
        f"The base model {named!r} that this adapter names is not in the local cache.",
        next_step="Name it with --base: a directory, or a hub id to fetch.",
    )
