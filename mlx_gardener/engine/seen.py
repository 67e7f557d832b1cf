"""What dry runs and trainings on this machine saw of a base, kept so that the next one need not look again.

In: a base's facts, a plan, the settings. Out: `Scales` by which the formulas were off, the tokens per second of the
last training, and what attention of its heads takes. One small JSON file below the cache; damage or another version of MLX
means that nothing is known.
Cost: a millisecond.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.engine.attention import Attention, measure_attention
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.plan import Plan, Scales
from mlx_gardener.engine.speed import Backend, beside_others, machine_key, measured_backend, speed_alone
from mlx_gardener.platform.files import make_private, write_whole
from mlx_gardener.platform.untrusted import read_json
from mlx_gardener.platform.version import __version__

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

_FILE = "dry_runs.json"
#: Shapes that are remembered; the oldest are forgotten.
_MOST = 200
#: Of a base's facts, what says nothing of its size, or nothing beside the others.
_NO_SIZES = {"name", "head_dim", "product_outputs"}


def kept_scales(
    cache_dir: Path, facts: ModelFacts, plan: Plan, config: TrainingConfig, backend: Backend
) -> Scales | None:
    """What a dry run of the same shape saw on this machine; None where there was none."""
    found = _read(cache_dir).get(_shape_key(facts, plan, config, backend))
    try:
        return None if found is None else Scales(**{name: float(value) for name, value in found.items()})
    except (TypeError, ValueError, AttributeError):
        return None


def keep_scales(
    cache_dir: Path, facts: ModelFacts, plan: Plan, config: TrainingConfig, backend: Backend, scales: Scales
) -> None:
    """Remember what a dry run saw."""
    _add(cache_dir, _shape_key(facts, plan, config, backend), asdict(scales))


def _add(cache_dir: Path, key: str, value: dict[str, Any]) -> None:
    """Keep a value; where nothing can be written it is seen again the next time."""
    known = _read(cache_dir)
    known.pop(key, None)
    known[key] = value
    kept = dict(list(known.items())[-_MOST:])
    with suppress(OSError):
        make_private(cache_dir)
        told = json.dumps({"machine": machine_key(), "shapes": kept})
        write_whole(cache_dir / _FILE, told, lasting=False)


def known_backend(cache_dir: Path | None, facts: ModelFacts) -> Backend:
    """This machine's backend, with what trainings of the same base on it showed."""
    backend = replace(measured_backend(cache_dir), attention=_kept_attention(cache_dir, facts))
    known = None if cache_dir is None else _read(cache_dir).get(_base_key(facts, backend))
    try:
        if known is None:
            return backend
        busy = float(known["busy"])
        load = beside_others(busy)
        if load and backend.kind == "cpu":
            load += ", scaled to a machine without them"
        return replace(
            backend,
            speed_scale=speed_alone(float(known["speed"]), busy, backend.kind),
            forward_share=float(known["forward"]),
            scales=Scales(**{name: float(value) for name, value in known["scales"].items()}),
            speed_from=f"seen in a training of this base on this machine{load}",
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return backend


def with_attention(backend: Backend, cache_dir: Path | None, facts: ModelFacts) -> Backend:
    """``backend`` with what attention of a base's heads takes on it: measured, in about a second, where that is not known yet."""
    if backend.attention is not None:
        return backend
    found = measure_attention(facts.heads, facts.key_heads, facts.features, kind=backend.kind)
    if cache_dir is not None:
        _add(cache_dir, _attention_key(facts), found.to_json())
    return replace(backend, attention=found)


def _kept_attention(cache_dir: Path | None, facts: ModelFacts) -> Attention | None:
    told = None if cache_dir is None else _read(cache_dir).get(_attention_key(facts))
    try:
        return None if told is None else Attention.from_json(told)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None  # damaged, or of another version: measured again


def _attention_key(facts: ModelFacts) -> str:
    return f"attention of {facts.heads} heads, {facts.key_heads} of keys, {facts.features} wide"


def keep_training(
    cache_dir: Path,
    facts: ModelFacts,
    plan: Plan,
    backend: Backend,
    *,
    tokens_per_second: float,
    forward_share: float,
    busy: float,
) -> None:
    """Remember what a training of a base took, for the next one's forecast.

    Args:
        plan: that it had to its end.
        backend: that the plan was made with.
        tokens_per_second: positions of all updates over their seconds.
        forward_share: how many times as fast its validations were.
        busy: the share of the processors that others took meanwhile.
    """
    formula = plan.predicted_tokens_per_second / plan.scales.speed / backend.speed_scale
    scales = asdict(replace(plan.scales, speed=1.0))
    told = {"speed": tokens_per_second / formula, "forward": forward_share, "busy": busy, "scales": scales}
    _add(cache_dir, _base_key(facts, backend), told)


def _base_key(facts: ModelFacts, backend: Backend) -> str:
    """Of a base's sizes, and of the machine's speed as measured: what was seen is a share of what follows from it."""
    sizes = {name: value for name, value in asdict(facts).items() if name not in _NO_SIZES}
    told = [sizes, backend.flops_per_second]
    return "base " + hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def was_checked(cache_dir: Path | None, base: BaseModel) -> bool:
    """Whether the cut of this architecture, its tiles and kept products were found right on this machine with these versions."""
    return cache_dir is not None and _read(cache_dir).get(_check_key(base)) is not None


def keep_checked(cache_dir: Path, base: BaseModel) -> None:
    """Remember that the cut of a base is right."""
    _add(cache_dir, _check_key(base), {})


def _check_key(base: BaseModel) -> str:
    told = [base.config, str(base.dtype), base.quantized, version("mlx-lm"), __version__]
    return (
        "cut, tiles and products "
        + hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:24]
    )


def _read(cache_dir: Path) -> dict[str, Any]:
    try:
        kept = read_json(cache_dir / _FILE)
        shapes = kept["shapes"] if kept["machine"] == machine_key() else {}
        return dict(shapes)
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # only a cache: it is seen again


def _shape_key(facts: ModelFacts, plan: Plan, config: TrainingConfig, backend: Backend) -> str:
    """What memory and speed of a micro-batch depend on: the base's sizes, the plan but for the budget, the adapter.

    And the machine's speed as measured, as in `_base_key`.
    """
    sizes = {name: value for name, value in asdict(facts).items() if name not in _NO_SIZES}
    shape = {
        "rows": sorted(plan.rows_of_width.items()),
        **{
            name: getattr(plan, name)
            for name in (
                "loss_slice_tokens",
                "cpu_streams",
                "attention_block",
                "attention_least",
                "tile_tokens",
                "states_on_disk",
                "base_weights",
                "dequantize",
                "streamed_layers",
                "vocabulary_on_disk",
            )
        },
        "has_live": bool(plan.kept_layers),
    }
    adapter = config.lora.model_dump(mode="json")
    told = [sizes, shape, adapter, config.engine.compute_dtype, backend.flops_per_second]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
