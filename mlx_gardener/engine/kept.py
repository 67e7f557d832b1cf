"""What a base, or a base with an adapter, makes of rows, kept between runs: it depends on weights and rows alone.

Cost: a hash of every row; rows that were not seen before are computed (`Engine.read_rows`) and kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_gardener.engine.batch import BetweenSegments
from mlx_gardener.engine.step import Engine, RowReading
from mlx_gardener.platform.kept import KeptValues

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.dataset import Batch
    from mlx_gardener.model import BaseModel

_Found = TypeVar("_Found")


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

    def known(value: Any, row: int) -> float | None:
        return value if isinstance(value, float) and math.isfinite(value) else None

    compute = partial(engine.row_losses, between_segments=between_segments)
    return _kept("losses", engine, base, batch, store, adapter, compute, known, lambda loss: loss)


def kept_row_readings(
    engine: Engine,
    base: BaseModel,
    batch: Batch,
    store: KeptValues,
    *,
    adapter: str = "",
    between_segments: BetweenSegments | None = None,
) -> list[RowReading]:
    """`Engine.read_rows`, likewise. Cost: some bytes are kept for every loss-bearing token."""
    import numpy as np

    def known(value: Any, row: int) -> RowReading | None:
        match value:
            case [float(loss), [*ids]] if (
                math.isfinite(loss)
                and len(ids) == int(batch.loss_mask[row, 1:].sum())
                and all(type(index) is int and 0 <= index < 2**31 for index in ids)
            ):
                return RowReading(loss, np.array(ids, dtype=np.int32))
        return None

    compute = partial(engine.read_rows, between_segments=between_segments)
    return _kept(
        "readings", engine, base, batch, store, adapter, compute, known,
        lambda row: [row.loss, row.likeliest.tolist()],
    )  # fmt: skip


def _kept(
    kind: str,
    engine: Engine,
    base: BaseModel,
    batch: Batch,
    store: KeptValues,
    adapter: str,
    compute: Callable[[Batch], list[_Found]],
    known: Callable[[Any, int], _Found | None],
    told: Callable[[_Found], Any],
) -> list[_Found]:
    """What is found of every row: by ``known`` from what is kept, else by ``compute``, and then kept as ``told``."""
    topic = base_topic(base, f"{kind} by document" if engine.per_document else kind, adapter=adapter)
    keys = [_row_key(batch, row, by_document=engine.per_document) for row in range(len(batch.tokens))]
    kept = store.read(topic, keys)
    found = {key: value for row, key in enumerate(keys) if (value := known(kept.get(key), row)) is not None}
    new = [row for row, key in enumerate(keys) if key not in found]
    if new:
        computed = {keys[row]: value for row, value in zip(new, compute(_rows_of(batch, new)), strict=True)}
        store.add(topic, {key: told(value) for key, value in computed.items()})
        found |= computed
    return [found[key] for key in keys]


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
        labels=tuple(batch.labels[row] for row in rows) if batch.labels else (),
    )
