"""A layer's linear modules, whatever its architecture calls them, and stand-ins in their places while it is called.

In: a layer. Out: where its linear modules are, and those that are made of linear ones alone (projections, MLPs). A stand-in takes a
module's place in its parent and decides how it is called and differentiated: tile by tile (`engine.tiles`), or with its product kept
(`engine.products_kept`). The module, its weights and its adapters stay what they are. Cost: a walk over a layer's modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.call_graph import StandIn
from mlx_gardener.engine.operations import Operations
from mlx_gardener.model.lora import lora_places

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

#: A module and where it hangs: (its parent, its name there, the module).
Place = tuple[Any, str, Any]


class Adapted:
    """A module as a function of its adapters' values, so that it can be called again, and differentiated, with values of the caller's.

    Args:
        chosen: the step's operations, which draw the same dropout for a row and position in every call.
    """

    def __init__(self, module: nn.Module, chosen: Operations) -> None:
        self._module, self._chosen = module, chosen
        self._places = [(owner, leaf) for _, owner, leaf in lora_places(module)]

    def values(self) -> list[mx.array]:
        """What its adapters hold now."""
        return [owner[leaf] for owner, leaf in self._places]

    def __call__(
        self, x: mx.array, values: Sequence[mx.array], *, seeds: tuple[int, ...], first: int = 0
    ) -> mx.array:
        """Call the module with adapters of these ``values``.

        Args:
            x: (rows, positions, inputs), the rows' positions from ``first`` on.
            seeds: of the rows.
        """
        for (owner, leaf), value in zip(self._places, values, strict=True):
            owner[leaf] = value
        with self._chosen.at_position(first, seeds):
            made: mx.array = self._module(x)
        return made


@contextmanager
def standing_in_for(places: list[Place], make_call: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """While this lasts, ``make_call(module)`` answers for the modules at ``places``."""
    calls = [make_call(module) for _, _, module in places]
    try:
        for (parent, name, module), call in zip(places, calls, strict=True):
            parent[name] = StandIn(module, call)
        yield
    finally:
        for parent, name, module in places:
            parent[name] = module


def linear_places(layer: Any) -> list[Place]:
    """Every linear module below ``layer``, with or without an adapter."""
    return [place for place in _below(layer) if is_linear(place[2])]


def plain_places(layer: Any) -> list[Place]:
    """Every module below ``layer`` that is made of linear ones alone, and those."""
    return [place for place in _below(layer) if _is_plain(place[2])]


def other_places(layer: Any) -> list[Place]:
    """Every module below ``layer`` that has no linear one in it: norms, rotations."""
    return [place for place in _below(layer) if not any(is_linear(found) for found in place[2].modules())]


def _below(module: Any) -> Iterator[Place]:
    """Modules below ``module``. Linear ones are not entered; those in a list are, but are no places, having no name."""
    import mlx.nn as nn

    for name, value in module.items():
        if isinstance(value, nn.Module):
            yield module, name, value
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nn.Module) and not is_linear(child):
                yield from _below(child)


def _is_plain(module: nn.Module) -> bool:
    """Whether only linear modules in it hold arrays, at least one."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    linear = [path for path, found in module.named_modules() if is_linear(found)]
    arrays = [path for path, value in tree_flatten(module) if isinstance(value, mx.array)]
    inside = tuple(f"{path}." if path else "" for path in linear)
    return bool(linear) and all(path.startswith(inside) for path in arrays)


def is_linear(module: Any) -> bool:
    """Whether it is one product with a matrix, and what an adapter adds to it."""
    import mlx.nn as nn
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear

    return isinstance(module, (nn.Linear, nn.QuantizedLinear, LoRALinear, DoRALinear))
