"""A base as a training has it before its first step: planned, loaded, tried, with new adapters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx_gardener  # noqa: F401  # preloads the BLAS

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.engine import Engine
    from mlx_gardener.model import BaseModel


class Planned(NamedTuple):
    """What a step needs; ``vocab`` is how many token ids its rows may be of."""

    config: TrainingConfig
    base: BaseModel
    engine: Engine
    weights: dict[str, mx.array]
    vocab: int


def load_planned(path: Path, width: int, **settings: Any) -> Planned:
    """The base in ``path`` for rows of ``width`` tokens.

    Args:
        settings: by their dotted names.
    """
    from mlx_gardener.config import load_config
    from mlx_gardener.engine import load_engine, make_plan, measured_backend, model_facts
    from mlx_gardener.model.lora import attach_lora, lora_parameters

    overrides = {"model": str(path), "data.sequence_lengths": [width], **settings}
    config = load_config(environment={}, overrides=overrides)
    facts, backend = model_facts(path), measured_backend()
    plan = make_plan(facts, config, config.memory_limit_bytes, backend)

    def warn(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    base, engine = load_engine(str(path), plan, config, facts=facts, backend=backend, warn=warn)
    attach_lora(base.model, config.lora, seed=0)
    vocab = min(facts.vocab, base.tokenizer.vocab_size)
    return Planned(config, base, engine, lora_parameters(base.model), vocab)
