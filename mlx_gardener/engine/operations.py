"""Operations of MLX in forms that a training step can afford, put in the place of MLX's own while a step runs.

- *Attention*: MLX's is unfused under differentiation, and its scores take rows x heads x width^2 floats. Here queries
  are taken in blocks, each with the keys it may see, and scores are made again for the gradient, from the saved
  log-sum-exp (Dao et al. 2022, arXiv:2205.14135, section 3.1; Rabe and Staats 2021, arXiv:2112.05682). Memory is
  rows x heads x block x width; causal masks cost half, documents and windows less.
- *Products with quantised weights*: on a CPU MLX multiplies them at 2 GFLOP/s. Here they become floats, a block of
  outputs at a time, and BLAS multiplies.
- *Dropout*: every row has masks of its own, so that they do not change with how many rows, or positions, are computed at once.

All are exact to float tolerance. Models call ``mx.fast.scaled_dot_product_attention`` and ``mx.quantized_matmul`` in
their own code, so the attributes of ``mx`` (and ``nn.Dropout``'s call) are swapped, and always restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.products import dequantized_gather, dequantized_matmul
from mlx_gardener.model.exponentials import exp, softmax_parts

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

#: Positions of a row whose dropout is drawn at once; tiles of positions need not be multiples of it.
DROPOUT_BLOCK = 128
#: (how many arrays, what computes them) -> the arrays.
Remember = Callable[[int, Callable[[], "list[mx.array]"]], "list[mx.array]"]


@dataclass
class Operations:
    """Which forms to use.

    Attributes:
        attention_block: queries at a time; 0 leaves attention to MLX.
        attention_least: rows narrower than this many tokens are left to MLX.
        dequantize: whether quantised weights become floats before they multiply.
        product_streams: CPU streams that the blocks of such a product are shared among; empty for the one in use.
        forward_only: whether nothing is differentiated, so that attention saves nothing for a gradient.
        document_ids: (rows, width) of the rows that are computed now: tokens see only those with their own number.
        row_seeds: a seed for the dropout of every row that is computed now.
        dropouts: the number of each dropout module of the model, by its ``id``.
        first_position: of the rows' positions, the first that a module is called with now (`engine.tiles`).
        remember: computes so many arrays, or gives what was kept of them (`engine.products_kept`).
    """

    attention_block: int = 0
    attention_least: int = 0
    dequantize: bool = False
    product_streams: tuple[mx.Stream, ...] = ()
    forward_only: bool = False
    document_ids: np.ndarray | None = None
    row_seeds: tuple[int, ...] = ()
    dropouts: dict[int, int] = field(default_factory=dict)
    first_position: int = 0
    remember: Remember = field(default=lambda count, compute: compute())

    @contextmanager
    def at_position(self, first: int, row_seeds: tuple[int, ...]) -> Iterator[None]:
        """While this lasts, modules are called with positions from ``first`` on, of the rows with these seeds."""
        before = self.first_position, self.row_seeds
        self.first_position, self.row_seeds = first, row_seeds
        try:
            yield
        finally:
            self.first_position, self.row_seeds = before

    def take_rows(self, everything: Operations, here: slice) -> None:
        """Let these be the operations for some of the rows of ``everything``."""
        ids = everything.document_ids
        self.document_ids = None if ids is None else ids[here]
        self.row_seeds = everything.row_seeds[here]


@contextmanager
def operations(chosen: Operations) -> Iterator[None]:
    """While this lasts, models compute with the ``chosen`` forms."""
    import mlx.core as mx
    import mlx.nn as nn

    fast, module = mx.fast.scaled_dot_product_attention, mx.quantized_matmul
    gathered, dropout = mx.gather_qmm, nn.Dropout.__call__
    try:
        if chosen.attention_block or chosen.document_ids is not None:
            _put(mx.fast, "scaled_dot_product_attention", _attention_for(chosen, fast))
        if chosen.dequantize:
            packed, of_experts = (module, gathered) if chosen.forward_only else (None, None)
            product = partial(dequantized_matmul, streams=chosen.product_streams, packed=packed)
            _put(mx, "quantized_matmul", product)
            _put(mx, "gather_qmm", partial(dequantized_gather, packed=of_experts))
        if chosen.dropouts:
            _put(nn.Dropout, "__call__", _dropout_for(chosen, dropout))
        yield
    finally:
        _put(mx.fast, "scaled_dot_product_attention", fast)
        _put(mx, "quantized_matmul", module)
        _put(mx, "gather_qmm", gathered)
        _put(nn.Dropout, "__call__", dropout)


def _put(module: Any, name: str, value: Any) -> None:
    setattr(module, name, value)


def _dropout_for(chosen: Operations, plain: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def dropout(module: nn.Dropout, x: mx.array) -> mx.array:
        import mlx.core as mx

        number, keep = chosen.dropouts.get(id(module)), module._p_1
        if not module.training or keep == 1:
            return x
        if number is None or len(x) != len(chosen.row_seeds):
            return plain(
                module, x
            )  # tokens of experts are no rows: their masks follow from what is computed at once
        seeds = [seed * 1009 + number for seed in chosen.row_seeds]
        mask = mx.stack([_dropout_mask(seed, keep, x.shape[1:], chosen.first_position) for seed in seeds])
        return (mask * x) * (1 / keep)

    return dropout


def _dropout_mask(seed: int, keep: float, shape: tuple[int, ...], first: int) -> mx.array:
    """A row's mask for its positions from ``first`` on: drawn in blocks, so that it is the same however a row is taken."""
    import mlx.core as mx

    last, blocks = first + shape[0], []
    for block in range(first // DROPOUT_BLOCK, -(-last // DROPOUT_BLOCK)):
        key = mx.random.key((seed * 1_000_003 + block) % 2**63)
        blocks.append(mx.random.bernoulli(keep, (DROPOUT_BLOCK, *shape[1:]), key=key))
    start = first % DROPOUT_BLOCK
    return mx.concatenate(blocks)[start : start + shape[0]]


def _attention_for(chosen: Operations, plain: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def attention(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        *,
        scale: float,
        mask: mx.array | str | None = None,
        sinks: mx.array | None = None,
        **others: Any,
    ) -> mx.array:
        width = queries.shape[2]
        documents = chosen.document_ids
        same_width = keys.shape[2] == width
        blocked = (
            chosen.attention_block and width >= chosen.attention_least and width > chosen.attention_block
        )
        if sinks is not None or others or not same_width or not (blocked or documents is not None):
            return plain(queries, keys, values, scale=scale, mask=mask, sinks=sinks, **others)
        if documents is not None and documents.shape != (len(queries), width):
            documents = None  # not the batch's own rows: the LM head's placeholder
        return blockwise_attention(
            queries,
            keys,
            values,
            scale=scale,
            mask=mask,
            block=chosen.attention_block or width,
            document_ids=documents,
            forward_only=chosen.forward_only,
            remember=chosen.remember,
        )

    return attention


def blockwise_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None,
    block: int,
    document_ids: np.ndarray | None = None,
    forward_only: bool = False,
    remember: Remember = lambda count, compute: compute(),
) -> mx.array:
    """softmax(scale Q K^T + mask) V, a block of queries at a time, with a gradient that keeps no scores.

    Args:
        queries: (rows, heads, width, head_dim).
        keys: (rows, key_heads, width, head_dim); ``heads`` is a multiple of ``key_heads``.
        values: (rows, key_heads, width, value_dim).
        mask: None, "causal", or an array that broadcasts to (rows, heads, width, width): bool (True is seen) or added.
        block: queries at a time.
        document_ids: (rows, width) int: tokens of different numbers do not see each other.
        forward_only: nothing is saved for a gradient, which would be MLX's own then.
        remember: as in `Operations`; asked for the result and the sums that the gradient is made of.

    Returns:
        (rows, heads, width, value_dim), of the queries' type.
    """
    import mlx.core as mx

    rows, heads, width, _ = queries.shape
    groups = keys.shape[1]
    spans = _key_spans(mask, width, block, document_ids)
    ids = None if document_ids is None else mx.array(document_ids)

    def scores(query: mx.array, key: mx.array, start: int, stop: int, first: int, last: int) -> mx.array:
        # query (rows, groups, heads // groups, stop - start, dim), key (rows, groups, 1, last - first, dim)
        found = (query * scale) @ key.swapaxes(-1, -2)
        seen = _mask_block(mask, ids, (start, stop, first, last), groups)
        if seen is None:
            return found
        if seen.dtype == mx.bool_:
            return mx.where(seen, found, mx.finfo(found.dtype).min)
        return found + seen.astype(found.dtype)

    def split(array: mx.array) -> mx.array:
        return array.reshape(rows, groups, -1, *array.shape[2:])  # (rows, groups, heads / groups, width, dim)

    def forward(queries: mx.array, keys: mx.array, values: mx.array, *, keep_sums: bool) -> list[mx.array]:
        query, key, value = split(queries), split(keys), split(values)
        outputs: list[mx.array] = []
        sums: list[mx.array] = []
        for start, stop, first, last in spans:
            part = query[..., start:stop, :]
            if outputs:  # one block after the other, or all scores are in memory at once
                part = mx.depends([part], [outputs[-1], *sums[-1:]])[0]
            score = scores(part, key[..., first:last, :], start, stop, first, last)
            weights, divisor, log_sums = softmax_parts(score)
            outputs.append((weights @ value[..., first:last, :]) / divisor)
            if keep_sums:
                sums.append(log_sums)
        output = mx.concatenate(outputs, axis=-2).reshape(rows, heads, width, -1)
        return [output, mx.concatenate(sums, axis=-2)] if keep_sums else [output]

    if forward_only:
        return forward(queries, keys, values, keep_sums=False)[0]

    stream = mx.default_stream(mx.default_device())  # the gradient is asked for later, outside of this one

    def gradients(
        primals: tuple[mx.array, ...], cotangent: mx.array, outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array, mx.array]:
        queries, keys, values = primals
        query, key, value = split(queries), split(keys), split(values)
        wanted, made, total = split(cotangent), split(outputs[0]), outputs[1]
        inner = (wanted * made).sum(axis=-1, keepdims=True)  # (rows, groups, heads / groups, width, 1)
        query_parts: list[mx.array] = []
        key_gradient, value_gradient = mx.zeros_like(key), mx.zeros_like(value)
        for start, stop, first, last in spans:
            here = slice(start, stop)
            part, there = query[..., here, :], slice(first, last)
            if query_parts:
                part = mx.depends([part], [query_parts[-1], key_gradient, value_gradient])[0]
            score = scores(part, key[..., there, :], start, stop, first, last)
            weights = exp(score.astype(mx.float32) - total[..., here, :]).astype(score.dtype)
            change = weights * (
                wanted[..., here, :] @ value[..., there, :].swapaxes(-1, -2) - inner[..., here, :]
            )
            query_parts.append((change @ key[..., there, :]) * scale)
            key_part = (change.swapaxes(-1, -2) @ (part * scale)).sum(axis=2, keepdims=True)
            value_part = (weights.swapaxes(-1, -2) @ wanted[..., here, :]).sum(axis=2, keepdims=True)
            key_gradient = key_gradient.at[..., there, :].add(key_part)
            value_gradient = value_gradient.at[..., there, :].add(value_part)
        query_gradient = mx.concatenate(query_parts, axis=-2).reshape(queries.shape)
        return query_gradient, key_gradient.reshape(keys.shape), value_gradient.reshape(values.shape)

    @mx.custom_function  # type: ignore[untyped-decorator]
    def attend(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        output, sums = remember(2, lambda: forward(queries, keys, values, keep_sums=True))
        return output, sums

    @attend.vjp  # type: ignore[untyped-decorator]
    def backward(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array, mx.array]:
        with mx.stream(stream):
            return gradients(primals, cotangents[0], outputs)

    attended: tuple[mx.array, mx.array] = attend(queries, keys, values)  # type: ignore[assignment]
    return attended[0]


def _key_spans(
    mask: mx.array | str | None, width: int, block: int, document_ids: np.ndarray | None
) -> list[tuple[int, int, int, int]]:
    """(first query, last query, first key, last key), ends exclusive, of every block: keys that none sees are left out.

    A mask given as an array is taken as it is: only the document's begin is known beside it.
    """
    spans = []
    causal = isinstance(mask, str)
    for start in range(0, width, block):
        stop = min(start + block, width)
        first, last = 0, stop if causal else width
        if document_ids is not None:
            same = (document_ids[:, None, start:stop] == document_ids[:, :, None]).any(axis=2).any(axis=0)
            seen = same.nonzero()[0]
            first, last = int(seen[0]), min(last, int(seen[-1]) + 1)
        spans.append((start, stop, first, last))
    return spans


def _mask_block(
    mask: mx.array | str | None, ids: mx.array | None, span: tuple[int, int, int, int], groups: int
) -> mx.array | None:
    """What of the mask concerns a block, as it broadcasts to (rows, groups, heads / groups, queries, keys)."""
    import mlx.core as mx

    start, stop, first, last = span
    seen: mx.array | None = None
    if isinstance(mask, str):
        if mask != "causal":
            raise ValueError(f"unknown attention mask {mask!r}")
        if last > start + 1:  # some key lies after some query
            seen = mx.arange(start, stop)[:, None] >= mx.arange(first, last)[None]
    elif mask is not None:
        seen = mask[..., start:stop, first:last] if mask.shape[-2] > 1 else mask[..., first:last]
        if seen.ndim == 4:  # (rows, heads or 1, queries, keys)
            per_head = seen.shape[1] > 1
            seen = seen.reshape(seen.shape[0], groups if per_head else 1, -1, *seen.shape[2:])
    if ids is not None:
        same = (ids[:, start:stop, None] == ids[:, None, first:last])[:, None, None]
        if seen is None:
            return same
        if seen.dtype == mx.bool_:
            return seen & same
        return mx.where(same, seen, mx.finfo(seen.dtype).min)
    return seen
