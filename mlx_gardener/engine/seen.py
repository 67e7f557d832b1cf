"""What dry runs and trainings on this machine saw of a base, kept so that the next one need not look again.

In: a base's facts, a plan, the settings. Out: `Scales` by which the formulas were off, and the tokens per second of the
last training. One small JSON file below the cache; damage or another version of MLX means that nothing is known.
Cost: a millisecond.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.plan import Plan, Scales
from mlx_gardener.engine.speed import machine_key
from mlx_gardener.platform.files import make_private
from mlx_gardener.platform.untrusted import read_json

_FILE = "dry_runs.json"
#: Shapes that are remembered; the oldest are forgotten.
_MOST = 200


def kept_scales(cache_dir: Path, facts: ModelFacts, plan: Plan, config: TrainingConfig) -> Scales | None:
    """What a dry run of the same shape saw on this machine; None where there was none."""
    found = _read(cache_dir).get(_shape_key(facts, plan, config))
    try:
        return None if found is None else Scales(**{name: float(value) for name, value in found.items()})
    except (TypeError, ValueError, AttributeError):
        return None


def keep_scales(
    cache_dir: Path, facts: ModelFacts, plan: Plan, config: TrainingConfig, scales: Scales
) -> None:
    """Remember what a dry run saw."""
    known = _read(cache_dir)
    key = _shape_key(facts, plan, config)
    known.pop(key, None)
    known[key] = asdict(scales)
    make_private(cache_dir)
    beside = cache_dir / f".{_FILE}.{os.getpid()}"
    kept = dict(list(known.items())[-_MOST:])
    beside.write_text(json.dumps({"machine": machine_key(), "shapes": kept}), encoding="utf-8")
    beside.replace(cache_dir / _FILE)


def _read(cache_dir: Path) -> dict[str, Any]:
    try:
        kept = read_json(cache_dir / _FILE)
        shapes = kept["shapes"] if kept["machine"] == machine_key() else {}
        return dict(shapes)
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # only a cache: it is seen again


def _shape_key(facts: ModelFacts, plan: Plan, config: TrainingConfig) -> str:
    """What memory and speed of a micro-batch depend on: the base's sizes, the plan but for the budget, the adapter."""
    sizes = {name: value for name, value in asdict(facts).items() if name != "name"}
    shape = {
        "rows": sorted(plan.rows_of_width.items()),
        **{
            name: getattr(plan, name)
            for name in (
                "tail_slice_tokens",
                "lanes",
                "attention_block",
                "attention_least",
                "base_weights",
                "dequantize",
                "streamed_layers",
                "words_on_disk",
            )
        },
        "has_live": bool(plan.live_layers),
    }
    told = [sizes, shape, config.lora.model_dump(mode="json"), config.engine.compute_dtype]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
