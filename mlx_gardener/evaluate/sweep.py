"""How much of the trained adapter to keep: its scale is tried on the validation part, before the test part is touched.

Adapters trained for a few epochs are often a little too loud for unseen files, and turning them down costs nothing:
what is chosen is written into the adapter's own files. Cost: a forward pass over at most `_MOST_ROWS` rows per scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter import LoadedAdapter, attach_adapter
from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import RowSet
from mlx_gardener.engine import Engine
from mlx_gardener.evaluate.evidence import ScaleSweep
from mlx_gardener.evaluate.measure import part_of
from mlx_gardener.evaluate.metrics import bits_per_byte

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.model import BaseModel

_MOST_ROWS = 24


def sweep_scale(
    base: BaseModel,
    weights: dict[str, mx.array],
    settings: dict[str, Any],
    validation: RowSet,
    config: TrainingConfig,
    engine: Engine,
    *,
    tell: Callable[[float], None] = lambda share: None,
    interrupt: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], ScaleSweep | None]:
    """(settings with the best scale, what was tried); the settings as they are and None where there is nothing to try.

    Args:
        weights, settings: of the adapter as trained.
        tell: told the share done, 0 to 1.
        interrupt: asked between segments; may raise.
    """
    scales = sorted(config.evaluation.scales)
    if len(scales) < 2:
        return settings, None
    found = []
    for number, scale in enumerate(scales):
        adapter = LoadedAdapter(weights, scaled(settings, scale), {}, Path("sweep"))
        with attach_adapter(base, adapter):
            found.append(_bits(validation, config, engine, part_of(tell, number, len(scales)), interrupt))
    # Of equals the one nearest to what was trained.
    chosen = min(zip(found, scales, strict=True), key=lambda pair: (pair[0], abs(pair[1] - 1.0)))[1]
    return scaled(settings, chosen), ScaleSweep(tuple(scales), tuple(found), chosen)


def scaled(settings: dict[str, Any], share: float) -> dict[str, Any]:
    """An adapter's settings with ``share`` of its scale; of both forms, since PEFT's alpha is made from it."""
    lora = settings["lora_parameters"]
    return (
        settings
        if share == 1.0
        else {**settings, "lora_parameters": {**lora, "scale": lora["scale"] * share}}
    )


def _bits(
    rows: RowSet,
    config: TrainingConfig,
    engine: Engine,
    tell: Callable[[float], None],
    interrupt: Callable[[], None],
) -> float:
    """Bits per byte on the first rows, the same for every scale; rounded, so that order of sums decides nothing."""
    loss, source_bytes, done = 0.0, 0, 0
    most = min(_MOST_ROWS, len(rows))
    for batch in rows.batches(config.optimizer.tokens_per_update, seed=None):
        before, at_once = done, len(batch.paths)

        def between(share: float, before: int = before, at_once: int = at_once) -> None:
            interrupt()
            tell(min(1.0, (before + share * at_once) / most))

        loss += math.fsum(engine.row_losses(batch, between_segments=between))
        source_bytes += batch.source_bytes
        done += at_once
        tell(min(1.0, done / most))
        if done >= _MOST_ROWS:
            break
    return round(bits_per_byte(loss, source_bytes), 5)
