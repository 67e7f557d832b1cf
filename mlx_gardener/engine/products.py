"""Products with quantised weights by way of floats, for a CPU, where MLX multiplies them at 2 GFLOP/s.

In: arrays as for `mx.quantized_matmul` and `mx.gather_qmm`. Out: the same, to float tolerance. Weights become floats a block of
outputs at a time, for a gradient a block of inputs where these are more, and BLAS multiplies. Cost: some blocks of floats beside
the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

#: Floats of one block of a dequantised weight: 4 MiB. MLX allocates some dozens of operations ahead of those that compute,
#: so what counts is blocks times dozens; measured, blocks of 16 MiB are no faster and take 100 MiB more on two CPU streams.
DEQUANTIZED_BLOCK = 1024**2
#: A block of outputs is a multiple of so many: BLAS takes 205 ms for 512 x 8,960 x 1,536 in blocks of 112, 240 in blocks of 117.
_ALIGNED = 16
#: So many rows are multiplied by the packed weights as they are: measured on two cores with Qwen2.5-Coder-1.5B of 4 bits, a
#: token takes 1.5 CPU seconds a row so, and by way of floats 6.8 for one row and 7.8 for three.
_FEW_ROWS = 4


def dequantized_matmul(
    x: mx.array,
    w: mx.array,
    /,
    scales: mx.array,
    biases: mx.array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    streams: tuple[mx.Stream, ...] = (),
    packed: Callable[..., mx.array] | None = None,
    **others: Any,
) -> mx.array:
    """`mx.quantized_matmul` by way of floats: a block of outputs becomes floats and is multiplied, one after the other.

    The gradient of ``x`` makes the floats again instead of keeping them. Where inputs are more than outputs, as in an MLP's last
    product, it takes a block of inputs at a time: blocks of outputs would each give an array as large as the gradient, to be
    added up. That is 0.7 of the time for 8,960 inputs and 1,536 outputs. Shapes as in MLX: x (..., inputs),
    w (outputs, inputs * bits / 32) with ``transpose``, or (inputs, outputs * bits / 32) without. The blocks take turns on
    ``streams``, which pays where rows are few and the floats are most of the work: the tokens of an answer. A handful of
    rows goes to ``packed``, MLX's own product, where it is given: for them that is faster.
    """
    import mlx.core as mx

    few = packed is not None and transpose and x.size <= _FEW_ROWS * x.shape[-1]

    def multiplied(x: mx.array, at: slice, *after: mx.array) -> mx.array:
        if not few or packed is None:
            return x @ floats(at, x, *after).T
        return packed(
            x,
            w[at],
            scales[at],
            None if biases is None else biases[at],
            transpose=True,
            group_size=group_size,
            bits=bits,
            mode=mode,
        )

    def floats(at: Any, like: mx.array, *after: mx.array, codes_at: Any = None) -> mx.array:
        # Nothing but `after` keeps MLX from making the floats of all blocks first.
        codes = w[at if codes_at is None else codes_at]
        return mx.dequantize(
            mx.depends([codes], list(after))[0] if after else codes,
            scales[at],
            None if biases is None else biases[at],
            group_size=group_size,
            bits=bits,
            mode=mode,
        ).astype(like.dtype)

    if not transpose:
        return x @ floats(slice(None), x)
    if few and not streams:
        return multiplied(x, slice(None))
    width = x.shape[-1]
    size = max(1, DEQUANTIZED_BLOCK // width)
    size -= size % _ALIGNED if size > _ALIGNED else 0
    blocks = [slice(start, min(start + size, len(w))) for start in range(0, len(w), size)]

    stream = mx.default_stream(mx.default_device())  # the gradient is asked for later, outside of this one

    @mx.custom_function  # type: ignore[untyped-decorator]
    def product(x: mx.array) -> mx.array:
        parts: list[mx.array] = []
        for number, at in enumerate(blocks):
            before = number - max(1, len(streams))
            with mx.stream(streams[number % len(streams)]) if streams else nullcontext():
                parts.append(multiplied(x, at, *(parts[before : before + 1] if before >= 0 else ())))
        return mx.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]

    @product.vjp  # type: ignore[untyped-decorator]
    def backward(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        with mx.stream(stream):
            if width > len(w):
                return by_inputs(x, cotangent)
            total = cotangent[..., blocks[0]] @ floats(blocks[0], x)
            for at in blocks[1:]:
                total = total + cotangent[..., at] @ floats(at, x, total)
            return total

    def by_inputs(x: mx.array, cotangent: mx.array) -> mx.array:
        groups = scales.shape[-1]  # inputs that share a scale; a block is made of whole ones
        words = w.shape[-1] // groups
        size = max(1, DEQUANTIZED_BLOCK // (len(w) * (width // groups)))
        parts: list[mx.array] = []
        for start in range(0, groups, size):
            stop = min(start + size, groups)
            codes_at = (slice(None), slice(start * words, stop * words))
            at = (slice(None), slice(start, stop))
            parts.append(cotangent @ floats(at, x, *parts[-1:], codes_at=codes_at))
        return mx.concatenate(parts, axis=-1)

    made: mx.array = product(x)  # type: ignore[assignment]
    return made


def dequantized_gather(
    x: mx.array,
    w: mx.array,
    /,
    scales: mx.array,
    biases: mx.array | None = None,
    lhs_indices: mx.array | None = None,
    rhs_indices: mx.array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    sorted_indices: bool = False,
    packed: Callable[..., mx.array] | None = None,
    global_scale: mx.array | None = None,
    **others: Any,
) -> mx.array:
    """`mx.gather_qmm` by way of floats: all experts of a layer at once.

    Where a handful of rows or fewer come to an expert, they go to ``packed``, MLX's own product, where it is given. That reads only
    experts that ``rhs_indices`` name: a token that passes 8 of 64 takes a sixtieth of the time.

    Raises:
        ValueError: there is a ``global_scale``, which MLX has on GPUs only.
    """
    import mlx.core as mx

    if global_scale is not None:
        raise ValueError("Weights with a global scale can be multiplied with on a GPU only.")

    if packed is not None and rhs_indices is not None:
        rows = max(rhs_indices.size, math.prod(x.shape[:-2])) * x.shape[-2]
        if rows <= _FEW_ROWS * len(w):
            return packed(
                x,
                w,
                scales,
                biases,
                lhs_indices=lhs_indices,
                rhs_indices=rhs_indices,
                transpose=transpose,
                group_size=group_size,
                bits=bits,
                mode=mode,
                sorted_indices=sorted_indices,
            )
    floats = mx.dequantize(w, scales, biases, group_size=group_size, bits=bits, mode=mode).astype(x.dtype)
    if transpose:
        floats = floats.swapaxes(-1, -2)
    return mx.gather_mm(
        x, floats, lhs_indices=lhs_indices, rhs_indices=rhs_indices, sorted_indices=sorted_indices
    )
