"""Hugging Face PEFT's adapter files, as strangers wrote them: safetensors and JSON only, nothing pickled.

In: a directory. Out: a `PeftAdapter` whose configuration and weights are checked: numbers that are numbers, magnitudes that
belong to DoRA, every module's rank and alpha by PEFT's patterns. What fits a base is `imports`' to say. Source:
peft/tuners/lora (version 0.21). Cost: the adapter is read once; patterns take at most two seconds.
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

#: The next step where configuration and weights contradict each other.
SAVE_AGAIN = "Save it again where it was made: `model.save_pretrained(path)` of PEFT keeps both in step."
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
            next_step=SAVE_AGAIN,
        )
    if not config.get("use_dora") and len(without) < len(modules):
        with_some = min(modules - set(without))
        raise AdapterError(
            f"{with_some!r} has magnitudes (lora_magnitude_vector), but the configuration does not say use_dora.",
            next_step=SAVE_AGAIN,
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
