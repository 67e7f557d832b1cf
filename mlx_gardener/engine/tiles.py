"""A layer's projections and MLP on tiles of positions, one tile after the other, forward and backward.

What such a module computes for a position depends on that position alone. So its own code is called on a tile of a row at a
time, and its gradient is taken tile by tile, each computed again first (TiledMLP of ALST, arXiv:2506.13996). Of a tile's inner
arrays (gate, up and their gradients) one tile's are in memory, instead of a whole row's. Cost: smaller products, and
quantised weights that must become floats become so once per tile; no product that was not computed before, as those of
a layer that is computed again to be differentiated are taken only where something asks for them.

In: a layer, positions of a tile, the operations of the step. While `in_tiles` lasts, stand-ins in the layer do this for every
module that is made of linear ones alone, is called with one array and gives one. Attention, experts, convolutions and recurrences,
whose positions see each other or are sorted, are called as they are, and routers, which give several arrays.
The check at load (`engine.verify`) sees whether that is right.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.linear import Adapted, is_linear, plain_places, standing_in_for
from mlx_gardener.engine.operations import Operations

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


def in_tiles(layer: Any, positions: int, chosen: Operations) -> AbstractContextManager[None]:
    """While this lasts, projections and MLPs of ``layer`` compute ``positions`` of every row at a time; 0 changes nothing."""
    if not positions:
        return nullcontext()
    return standing_in_for(plain_places(layer), lambda module: _tiled(module, positions, chosen))


def _tiled(module: nn.Module, positions: int, chosen: Operations) -> Callable[..., Any]:
    """The module's call; that of one array (rows, width, features) by tiles of ``positions`` of its second axis."""
    import mlx.core as mx

    adapted = Adapted(module, chosen)

    def call(*args: Any, **kwargs: Any) -> Any:
        alone = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(alone, mx.array) or alone.ndim != 3 or alone.shape[1] <= positions:
            return module(*args, **kwargs)
        if not is_linear(module) and not _gives_positions(module, alone):
            return module(alone)
        return _by_tiles(adapted, alone, positions, chosen.row_seeds)

    return call


def _gives_positions(module: nn.Module, x: mx.array) -> bool:
    """Whether it makes one array of x's positions, seen of one of them, which is not computed; routers make several."""
    import mlx.core as mx

    made = module(x[:, :1])
    return isinstance(made, mx.array) and made.shape[:-1] == (len(x), 1)


def _by_tiles(module: Adapted, x: mx.array, positions: int, seeds: tuple[int, ...]) -> Any:
    """``module`` of x (rows, width, inputs): (rows, width, outputs)."""
    import mlx.core as mx

    stream = mx.default_stream(mx.default_device())  # the gradient is asked for later, outside of this one
    starts = range(0, x.shape[1], positions)

    @mx.custom_function  # type: ignore[untyped-decorator]
    def tiles(x: mx.array, values: list[mx.array]) -> mx.array:
        made: list[mx.array] = []
        for start in starts:
            part = x[:, start : start + positions]
            if made:  # one after the other, or all of them are in memory at once
                part = mx.depends([part], made[-1:])[0]
            made.append(module(part, values, seeds=seeds, first=start))
        return mx.concatenate(made, axis=1)

    @tiles.vjp  # type: ignore[untyped-decorator]
    def backward(
        primals: tuple[mx.array, list[mx.array]], cotangent: mx.array, _: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        x, values = primals
        made: list[mx.array] = []
        sums = [mx.zeros(value.shape) for value in values]  # float32, as many tiles are added up
        with mx.stream(stream):
            for start in starts:
                here = slice(start, start + positions)
                part = x[:, here]
                if made:
                    part = mx.depends([part], [made[-1], *sums])[0]

                def of_part(part: mx.array, *values: mx.array, start: int = start) -> mx.array:
                    return module(part, values, seeds=seeds, first=start)

                change, *found = mx.vjp(of_part, [part, *values], [cotangent[:, here]])[1]
                made.append(change)
                sums = [total + one for total, one in zip(sums, found, strict=True)]
            gradients = [total.astype(value.dtype) for total, value in zip(sums, values, strict=True)]
            return mx.concatenate(made, axis=1), gradients

    return tiles(x, module.values())
