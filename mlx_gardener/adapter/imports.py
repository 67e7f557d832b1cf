"""Adapters of Hugging Face PEFT taken into the registry: safetensors and JSON only, nothing pickled.

PEFT may give every module its own rank, alpha and place; mlx-lm's form has one rank and scale and the same modules in
the last N layers. What differs is made the same without changing the sum: a smaller rank is filled up with zeros, an
alpha of its own goes into B, and a module that has no adapter gets one whose B is zero. Source: peft/tuners/lora
(version 0.21). Cost: the base is read once.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from mlx_gardener.adapter.forms import from_peft
from mlx_gardener.errors import AdapterError
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import cached_file, read_json

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.adapter.manager import PeftManager
    from mlx_gardener.model import BaseModel
    from mlx_gardener.registry import AdapterRecord, ProjectRegistry

_MOST_RANK = 1024
_SAVE_AGAIN = "Save it again where it was made: `model.save_pretrained(path)` of PEFT keeps both in step."
#: A stranger's patterns may take for ever (``re`` cannot be interrupted, `regex` can); honest ones take microseconds.
_PATTERN_SECONDS = 2.0
#: `regex` writes counted repeats out when it compiles, which nothing interrupts.
_MOST_PATTERN, _MOST_REPEATS = 500, 10_000
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
#: Settings of PEFT that change what an adapter computes in ways that no form here holds.
_FOREIGN = (
    "bias", "modules_to_save", "fan_in_fan_out", "layer_replication", "lora_bias", "trainable_token_indices",
    "alora_invocation_tokens", "target_parameters", "use_qalora", "use_bdlora", "arrow_config", "megatron_config",
)  # fmt: skip
_LAYER = re.compile(r"(.*\blayers\.)(\d+)\.(.+)")


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT adapter as read: weights by mlx-lm's names, its configuration, and each module's rank and alpha by that."""

    weights: dict[str, mx.array]
    config: dict[str, Any]
    ranks: dict[str, float]
    alphas: dict[str, float]
    file: Path

    def scale_of(self, module: str) -> float:
        """What multiplies B A in ``module``: alpha over its rank, or over the rank's root with rsLoRA."""
        rank = self.ranks[module]
        return self.alphas[module] / (rank**0.5 if self.config.get("use_rslora") else rank)


def read_peft(directory: Path) -> PeftAdapter:
    """Read ``adapter_config.json`` and ``adapter_model.safetensors``; links are followed within the hub's cache only.

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
        config = read_json(
            cached_file(directory / "adapter_config.json"), max_bytes=2**24, follow_links=False
        )
        _check_config(config)
        file = cached_file(file)
        stored = load_arrays(file)
        _check_numbers(stored)
        weights = from_peft(stored)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{directory.name!r} cannot be imported as a PEFT adapter: {reason_of(error)}.",
            next_step="Name the directory that `save_pretrained` of PEFT wrote for a LoRA adapter.",
        ) from error
    _check_magnitudes(weights, config)
    modules = sorted({name.rpartition(".")[0] for name in weights})
    until = time.monotonic() + _PATTERN_SECONDS
    ranks, alphas = (
        _by_pattern(config.get(f"{kind}_pattern") or {}, modules, float(config[default]), until)
        for kind, default in (("rank", "r"), ("alpha", "lora_alpha"))
    )
    return PeftAdapter(weights, config, ranks, alphas, file)


def _check_numbers(weights: dict[str, mx.array]) -> None:
    """Raises ValueError where a tensor holds what is no number."""
    import mlx.core as mx

    for name, value in weights.items():
        if not mx.isfinite(value).all().item():
            raise ValueError(f"the tensor {name!r} holds NaN or infinity")


def _check_magnitudes(weights: dict[str, mx.array], config: dict[str, Any]) -> None:
    """DoRA's magnitudes belong to every module or to none.

    Raises:
        AdapterError: they are missing, or there are some that the configuration knows nothing of.
    """
    modules = {name.rpartition(".")[0] for name in weights}
    without = sorted(module for module in modules if f"{module}.m" not in weights)
    if config.get("use_dora") and without:
        raise AdapterError(
            f"The configuration says use_dora, but {without[0]!r} has no magnitudes (lora_magnitude_vector).",
            next_step=_SAVE_AGAIN,
        )
    if not config.get("use_dora") and len(without) < len(modules):
        with_some = min(modules - set(without))
        raise AdapterError(
            f"{with_some!r} has magnitudes (lora_magnitude_vector), but the configuration does not say use_dora.",
            next_step=_SAVE_AGAIN,
        )


def _check_config(config: Any) -> None:
    """Raises ValueError where the configuration is none, or asks for what cannot be held."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError("its peft_type is not LORA")
    for name in ("r", "lora_alpha"):
        if not _is_positive(config.get(name)):
            raise ValueError(f"its {name} is no positive number")
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict) or not all(map(_is_positive, patterns.values())):
            raise ValueError(f"its {name} is no table of positive numbers")
    targets = config.get("target_modules")
    if not (targets is None or isinstance(targets, str) or _are_names(targets)):
        raise ValueError("its target_modules is neither a text nor a list of names")
    for name in ("use_rslora", "use_dora"):
        if not isinstance(config.get(name, False), bool | None):
            raise ValueError(f"its {name} is neither true nor false")
    for name in _FOREIGN:
        if config.get(name) not in (None, False, "none", [], {}):
            raise ValueError(f"it uses {name}, which this program's adapters cannot hold")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise ValueError(
            f"it began as {config['init_lora_weights']!r}, which changes the base too; convert it with PEFT's "
            "path_initial_model_for_weight_conversion first"
        )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1e6


def _by_pattern(
    patterns: dict[str, float], modules: list[str], default: float, until: float
) -> dict[str, float]:
    """Every module's value by PEFT's rule: that of the first pattern that is its name, or ends it after a dot.

    Args:
        until: when to give up, by the monotonic clock.

    Raises:
        AdapterError: a pattern is no regular expression, or comparing takes too long.
    """
    left, found = set(modules), dict.fromkeys(modules, default)
    for pattern, value in patterns.items():
        plain = pattern.removeprefix("^")
        # Possessive, as this too is a stranger's text: no blank is looked at twice.
        repeats = re.findall(r"\{\s*+(\d*+)\s*+,?+\s*+(\d*+)\s*+\}", plain[: _MOST_PATTERN + 1])
        written_out = math.prod(max(1, *(int(number[:9] or 0) for number in pair)) for pair in repeats)
        too_long = AdapterError(
            f"The pattern {pattern[:80]!r} of this adapter takes too long to compare with its modules' names.",
            next_step="Replace it by the names of the modules it stands for.",
        )
        if len(plain) > _MOST_PATTERN or written_out > _MOST_REPEATS:
            raise too_long
        try:
            compiled = regex.compile(rf"(.*\.)?({plain})")
            for module in sorted(left):
                seconds = until - time.monotonic()
                if seconds <= 0:
                    raise TimeoutError
                if compiled.fullmatch(module, timeout=seconds):
                    found[module] = float(value)
                    left.discard(module)
        except (regex.error, RecursionError) as error:
            raise AdapterError(
                f"The pattern {pattern[:80]!r} of this adapter is no regular expression.",
                next_step="Correct rank_pattern or alpha_pattern in its adapter_config.json.",
            ) from error
        except TimeoutError as error:
            raise too_long from error
    return found


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
        said = int(adapter.ranks[module])
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
    changed = False
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
        if not mx.isfinite(value).all().item():
            raise AdapterError(
                f"{name!r} times its alpha over its rank is beyond what float32 holds.", next_step=_SAVE_AGAIN
            )
        if leaf == "m":
            changed = changed or not mx.allclose(weights[name], value).item()
        weights[name] = value
    mx.eval(weights)
    if not changed and not any(_has_effect(weights, module) for module in modules):
        raise AdapterError(
            "This adapter changes nothing: in every module A or B is zero, as before training.",
            next_step="Name the directory that holds what training left.",
        )
    return weights, settings


def _has_effect(weights: dict[str, mx.array], module: str) -> bool:
    return all(bool((weights[f"{module}.{leaf}"] != 0).any().item()) for leaf in ("lora_a", "lora_b"))


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
    from mlx_gardener.model import load_base

    manager.registry.get_project(project)
    adapter = read_peft(directory)
    model = load_base(base or _named_base(adapter.config))
    return register_imported(
        manager, project, adapter, model, form="Hugging Face PEFT's form", activate=activate
    )


def register_imported(
    manager: PeftManager, project: str, adapter: PeftAdapter, model: BaseModel, *, form: str, activate: bool
) -> AdapterRecord:
    """Register what was read as a new version of ``project``.

    Args:
        form: that it came in, for the card.

    Raises:
        AdapterError: it does not fit the base; nothing is registered.
    """
    from mlx_gardener.adapter.manifest import ManifestDetails
    from mlx_gardener.platform.untrusted import sha256_of

    weights, settings = to_one_shape(adapter, model)
    source_sha256 = sha256_of(adapter.file)
    _clear_away(manager.registry, project, source_sha256, model.weights_sha256)
    details = ManifestDetails(
        config={"lora": {name: settings["lora_parameters"][name] for name in ("rank", "scale")}},
        data={"commit": None},
        metrics={},
        evidence={},
        training={
            "imported": True,
            "source_sha256": source_sha256,
            "rank": adapter.config["r"],
            "lora_alpha": adapter.config["lora_alpha"],
            "use_rslora": bool(adapter.config.get("use_rslora")),
            "use_dora": bool(adapter.config.get("use_dora")),
        },
        plan={},
    )
    card = (
        f"# {project}: an imported adapter\n\nA LoRA adapter of `{model.id}` that was trained elsewhere and imported "
        f"from {form}. mlx-gardener has measured nothing about it: there is no evidence that it helps.\n"
    )
    with manager.stage_adapter(project, weights, base=model, settings=settings) as staged:
        return staged.commit(details, model_card=card, activate=activate)


def _clear_away(registry: ProjectRegistry, project: str, source_sha256: str, base_sha256: str) -> None:
    """Delete what killed imports left: half an adapter, and a whole one of the same that was put in its place unregistered.

    Raises:
        RegistryError: it cannot be deleted.
    """
    from mlx_gardener.adapter.manifest import read_manifest
    from mlx_gardener.platform.locks import is_held

    registry.sweep(project)
    versions = (registry.project_directory(project) / "adapters").glob("v*")
    # Who is asked second knows whatever another import has let go of by then.
    found = [directory for directory in sorted(versions) if not is_held(directory)]
    known = {record.directory for record in registry.list_adapters(project)}
    for directory in found:
        if directory in known:
            continue
        try:
            manifest = read_manifest(directory)
        except AdapterError:
            continue  # not ours to judge: `registry check` names it
        training, base = manifest["training"], manifest["base"]
        if (training.get("source_sha256"), base.get("weights_sha256")) == (source_sha256, base_sha256):
            registry.discard(directory)


def _named_base(config: dict[str, Any]) -> str:
    """The base that an adapter's configuration names, where it is here: a stranger's file fetches nothing.

    Raises:
        AdapterError: it is not here.
    """
    from mlx_gardener.model.choose import SEEDLING
    from mlx_gardener.model.hub import cached_model

    named = config.get("base_model_name_or_path")
    if named == SEEDLING:
        return SEEDLING
    if isinstance(named, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", named) and cached_model(named) is not None:
        return named
    raise AdapterError(
        f"The base model {named!r} that this adapter names is not in the local cache.",
        next_step="Name it with --base: a directory, or a hub id to fetch.",
    )
