"""Losses of a base, or of a base with an adapter, kept between runs: they depend on weights and rows alone.

Cost: a hash of every row; rows that were not seen before are computed (`Engine.row_losses`) and kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_gardener.engine.batch import BetweenSegments
from mlx_gardener.engine.step import Engine
from mlx_gardener.platform.kept import KeptValues

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.dataset import Batch
    from mlx_gardener.model import BaseModel


def base_topic(base: BaseModel, kind: str, *, adapter: str = "") -> str:
    """Under which name values of ``kind`` are kept for a base: its weights and what it computes with decide.

    Args:
        adapter: the hash of what is attached to it; "" for nothing.
    """
    told = f"{base.weights_sha256}\0{base.dtype}\0{base.quantized}\0{kind}\0{adapter}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def kept_row_losses(
    engine: Engine,
    base: BaseModel,
    batch: Batch,
    store: KeptValues,
    *,
    adapter: str = "",
    between_segments: BetweenSegments | None = None,
) -> list[float]:
    """`Engine.row_losses`, known rows from ``store``.

    Args:
        adapter: as for `base_topic`; "" also for one that changes nothing yet.
    """
    topic = base_topic(base, "losses by document" if engine.per_document else "losses", adapter=adapter)
    keys = [_row_key(batch, row, by_document=engine.per_document) for row in range(len(batch.tokens))]
    kept = store.read(topic)
    known = {key: float(kept[key]) for key in keys if isinstance(kept.get(key), float)}
    new = [row for row, key in enumerate(keys) if key not in known]
    if new:
        losses = engine.row_losses(_rows_of(batch, new), between_segments=between_segments)
        found = {keys[row]: loss for row, loss in zip(new, losses, strict=True)}
        store.add(topic, found)
        known |= found
    return [known[key] for key in keys]


def _row_key(batch: Batch, row: int, *, by_document: bool) -> str:
    arrays: list[np.ndarray] = [batch.tokens[row], batch.loss_mask[row]]
    if by_document:
        arrays.append(batch.document_ids[row])
    return hashlib.sha256(b"\0".join(array.tobytes() for array in arrays)).hexdigest()[:32]


def _rows_of(batch: Batch, rows: list[int]) -> Batch:
    mask, row_bytes = batch.loss_mask[rows], batch.row_bytes[rows]
    return replace(
        batch,
        tokens=batch.tokens[rows],
        loss_mask=mask,
        document_ids=batch.document_ids[rows],
        loss_tokens=int(mask.sum()),
        source_bytes=int(row_bytes.sum()),
        row_bytes=row_bytes,
        paths=tuple(batch.paths[row] for row in rows),
    )
