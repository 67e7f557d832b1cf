"""Engines of tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_gardener.config import load_config
from mlx_gardener.dataset import Batch
from mlx_gardener.engine import Engine, Plan, PredictedParts, make_plan, model_facts, prepare_engine
from mlx_gardener.engine.speed import TWO_CORES
from mlx_gardener.model import BaseModel, load_base


def write_again(source: Path, target: Path, *, shards: int, bits: int | None) -> Path:
    """The tiny model in several files, quantised when ``bits`` is given."""
    base = load_base(str(source))
    config = json.loads((source / "config.json").read_text())
    if bits:
        nn.quantize(base.model, group_size=32, bits=bits, class_predicate=_wide_enough)
        config["quantization"] = {"group_size": 32, "bits": bits}
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    (target / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(base.model.parameters()))
    names = sorted(weights)
    for number in range(shards):
        part = {name: weights[name] for name in names[number::shards]}
        mx.save_safetensors(str(target / f"model-{number + 1:05}-of-{shards:05}.safetensors"), part)
    return target


def _wide_enough(_: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


def prepared(path: Path, **pins: object) -> tuple[BaseModel, Engine]:
    chosen = {f"engine.{name}": value for name, value in pins.items()} | {"data.sequence_lengths": [64]}
    config = load_config(environment={}, overrides=chosen)
    facts = model_facts(path)
    plan = make_plan(facts, config, config.memory_limit_bytes)
    base = load_base(str(path), base_weights=plan.base_weights, unread_layers=plan.streamed_layers)
    said: list[str] = []
    engine = prepare_engine(base, plan, config, facts=facts, backend=TWO_CORES, warn=said.append)
    assert not said
    return base, engine


def plan(rows: int, width: int = 16) -> Plan:
    return Plan({width: rows}, 2**32, 0, PredictedParts(), ())


def engine(base: BaseModel, chosen: Plan) -> Engine:
    return Engine(base.model, chosen, dtype=base.dtype)


def batch(rows: int = 6, width: int = 16, *, seed: int = 0, loss_share: float = 0.5) -> Batch:
    """Random tokens with random targets, padded tails, and one row without any target."""
    random = np.random.default_rng(seed)
    tokens = random.integers(10, 500, (rows, width)).astype(np.int32)
    mask = random.random((rows, width)) < loss_share
    mask[:, 0] = False
    lengths = random.integers(width // 2, width + 1, rows)
    for row, length in enumerate(lengths):
        tokens[row, length:] = 4
        mask[row, length:] = False
    mask[1] = False
    ids = np.where(np.arange(width)[None] < lengths[:, None], 1, 0).astype(np.int32)
    return Batch(tokens, mask, ids, int(mask.sum()), int(mask.sum()) * 3, mask.sum(1) * 3, ("",) * rows)
