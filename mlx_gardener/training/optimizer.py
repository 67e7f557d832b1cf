"""The optimiser, its learning rate, and clipping; pure functions around `mlx.optimizers`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import OptimizerConfig

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.optimizers as optim


#: Decay of the moments (Kingma and Ba 2015, section 2); the first is the momentum of optimisers that have one.
BETAS = (0.9, 0.999)
#: Shares of the updates that the rate rises over, and of the peak that it ends at: usual for LoRA (judgement).
WARMUP_FRACTION, FINAL_FRACTION = 0.05, 0.1
#: Gradients are scaled down to this norm where theirs is larger, as in most trainings of transformers.
CLIP_NORM = 1.0


def make_optimizer(config: OptimizerConfig) -> optim.Optimizer:
    """The optimiser that ``config.name`` names; its learning rate is set before every update.

    Adam's and AdamW's moments are bias-corrected (Kingma and Ba 2015, algorithm 1), which mlx leaves off by default.
    """
    import mlx.optimizers as optim

    betas = [*BETAS]
    makers: dict[str, Any] = {
        "adamw": lambda: optim.AdamW(
            0.0, betas=betas, weight_decay=config.weight_decay, bias_correction=True
        ),
        "adam": lambda: optim.Adam(0.0, betas=betas, bias_correction=True),
        "sgd": lambda: optim.SGD(0.0, momentum=BETAS[0], weight_decay=config.weight_decay),
        "lion": lambda: optim.Lion(0.0, betas=betas, weight_decay=config.weight_decay),
        "adafactor": lambda: optim.Adafactor(
            0.0, relative_step=False, scale_parameter=False, weight_decay=config.weight_decay
        ),
        "muon": lambda: optim.Muon(0.0, momentum=BETAS[0], weight_decay=config.weight_decay),
    }
    optimizer: optim.Optimizer = makers[config.name]()
    return optimizer


def recommended_learning_rate(hidden_size: int) -> float:
    """Peak learning rate for a base of this width when none is set: 8e-4 at 1536, falling with width.

    Drawn through two points: SmolLM2-135M (width 576) learned more at 2.5e-3 than at 9.8e-4, and Qwen2.5-Coder-1.5B (1536) more at
    8e-4 than at 2.9e-4, in the same updates (docs/evidence.md). At 4096 it is 2.6e-4; 2e-4 holds up there (Biderman et al. 2024,
    arXiv:2405.09673, and practice). Wider bases want less, as Yang et al. 2022 (arXiv:2203.03466) derive for Adam. Capped at 3e-3,
    which did better than 1e-3 on the embedded model (width 256, validation loss on click's sources).
    """
    return min(3e-3, 8e-4 * (1536 / hidden_size) ** 1.16)


def learning_rate_at(step: int, total_steps: int, peak: float, config: OptimizerConfig) -> float:
    """The learning rate of update ``step`` (1-based) of ``total_steps``.

    Rises linearly over the first `WARMUP_FRACTION` of the updates, then follows ``schedule`` down to `FINAL_FRACTION` of
    the peak at the last one.
    """
    warmup = min(round(total_steps * WARMUP_FRACTION), total_steps - 1)
    if step <= warmup:
        return peak * step / (warmup + 1)
    done = (step - warmup - 1) / max(1, total_steps - warmup - 1)
    if config.schedule == "constant":
        return peak
    falling = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return peak * (FINAL_FRACTION + (1 - FINAL_FRACTION) * falling)


def global_norm(gradients: dict[str, mx.array]) -> float:
    """Euclidean norm over all gradients together."""
    import mlx.core as mx

    squares = sum((mx.square(value.astype(mx.float32)).sum() for value in gradients.values()), mx.array(0.0))
    return float(mx.sqrt(squares).tolist())  # type: ignore[arg-type]  # a scalar's list is its number


#: Stands between a weight's name, which has dots, and the name of its state.
_SEPARATOR = "|"


def flatten_state(state: dict[str, Any]) -> dict[str, mx.array]:
    """An optimiser's state as named arrays: ``step``, ``learning_rate``, and ``weight|moment`` for every weight."""
    flat: dict[str, mx.array] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            flat.update({f"{name}{_SEPARATOR}{leaf}": array for leaf, array in value.items()})
        else:
            flat[name] = value
    return flat


def unflatten_state(flat: dict[str, mx.array]) -> dict[str, Any]:
    """The inverse of `flatten_state`."""
    state: dict[str, Any] = {}
    for name, array in flat.items():
        weight, found, leaf = name.partition(_SEPARATOR)
        if found:
            state.setdefault(weight, {})[leaf] = array
        else:
            state[name] = array
    return state
