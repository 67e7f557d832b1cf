"""A layer's projections and MLP on tiles of positions, one tile after the other, forward and backward.

What such a module computes for a position depends on that position alone. So its own code is called on a tile of a row at a
time, and its gradient is taken tile by tile, each computed again first (TiledMLP of ALST, arXiv:2506.13996). Of a tile's inner
arrays (gate, up and their gradients) one tile's are in memory, instead of a whole row's. Cost: smaller products, and
quantised weights that must become floats become so once per tile; no product that was not computed before, as those of
a layer that is computed again to be differentiated are taken only where something asks for them.

In: a layer, positions of a tile, the operations of the step. While `in_tiles` lasts, stand-ins in the layer do this for every
module that is made of linear ones alone and is called with one array; attention, experts, convolutions and recurrences, whose
positions see each other or are sorted, are called as they are. The check at load (`engine.verify`) sees whether that is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.call_graph import StandIn
from mlx_gardener.engine.operations import Operations
from mlx_gardener.model.lora import lora_places

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


@contextmanager
def in_tiles(layer: Any, positions: int, chosen: Operations) -> Iterator[None]:
    """While this lasts, projections and MLPs of ``layer`` compute ``positions`` of every row at a time; 0 changes nothing."""
    found = list(_by_position(layer)) if positions else []
    calls = [_tiled(module, positions, chosen) for _, _, module in found]
    try:
        for (parent, name, module), call in zip(found, calls, strict=True):
            parent[name] = StandIn(module, call)
        yield
    finally:
        for parent, name, module in found:
            parent[name] = module


def _tiled(module: nn.Module, positions: int, chosen: Operations) -> Any:
    """The module's call; that of one array (rows, width, features) by tiles of ``positions`` of its second axis."""
    places = [(owner, leaf) for _, owner, leaf in lora_places(module)]

    def call(*args: Any, **kwargs: Any) -> Any:
        import mlx.core as mx

        alone = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(alone, mx.array) and alone.ndim == 3 and alone.shape[1] > positions:
            return _by_tiles(module, places, alone, positions, chosen)
        return module(*args, **kwargs)

    return call


def _by_tiles(
    module: nn.Module, places: list[tuple[nn.Module, str]], x: mx.array, positions: int, chosen: Operations
) -> mx.array:
    """``module(x)``, (rows, width, outputs), of x (rows, width, inputs); its adapters' weights lie at ``places``."""
    import mlx.core as mx

    seeds = chosen.row_seeds
    stream = mx.default_stream(mx.default_device())  # the gradient is asked for later, outside of this one
    starts = range(0, x.shape[1], positions)

    def on_tile(start: int, part: mx.array, values: list[mx.array]) -> mx.array:
        for (owner, leaf), value in zip(places, values, strict=True):
            owner[leaf] = value
        with chosen.at_position(start, seeds):
            made: mx.array = module(part)
        return made

    @mx.custom_function  # type: ignore[untyped-decorator]
    def tiles(x: mx.array, values: list[mx.array]) -> mx.array:
        made: list[mx.array] = []
        for start in starts:
            part = x[:, start : start + positions]
            if made:  # one after the other, or all of them are in memory at once
                part = mx.depends([part], made[-1:])[0]
            made.append(on_tile(start, part, values))
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
                    return on_tile(start, part, list(values))

                _, (change, *found) = mx.vjp(of_part, [part, *values], [cotangent[:, here]])
                made.append(change)
                sums = [total + one for total, one in zip(sums, found, strict=True)]
            gradients = [total.astype(value.dtype) for total, value in zip(sums, values, strict=True)]
            return mx.concatenate(made, axis=1), gradients

    result: mx.array = tiles(x, [owner[leaf] for owner, leaf in places])  # type: ignore[assignment]
    return result


def _by_position(layer: Any) -> Iterator[tuple[Any, str, Any]]:
    """(parent, name in it, module) of every module below ``layer`` that is made of linear ones alone."""
    import mlx.nn as nn

    for name, module in layer.items():
        for child in module if isinstance(module, list) else [module]:
            if not isinstance(child, nn.Module):
                continue
            if child is module and _is_plain(child):
                yield layer, name, child
            if not _is_linear(child):
                yield from _by_position(child)


def _is_plain(module: nn.Module) -> bool:
    """Whether only linear modules in it hold arrays, at least one."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    linear = [path for path, found in module.named_modules() if _is_linear(found)]
    arrays = [path for path, value in tree_flatten(module) if isinstance(value, mx.array)]
    inside = tuple(f"{path}." if path else "" for path in linear)
    return bool(linear) and all(path.startswith(inside) for path in arrays)


def _is_linear(module: Any) -> bool:
    import mlx.nn as nn
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear

    return isinstance(module, (nn.Linear, nn.QuantizedLinear, LoRALinear, DoRALinear))
