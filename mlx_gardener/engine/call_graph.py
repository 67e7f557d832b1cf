"""Cutting any mlx-lm model at its layers, with the model's own code.

mlx-lm has over a hundred architectures and no common way to run a part of one. But every model calls its layers one
after the other, out of a list. So the entries of that list are swapped for stand-ins while the model is called: they
see what each layer is given, and decide what it gives. One look at a few tokens tells how the calls hang together
(`CallGraph`): which arrays of a call come from which call before. From then on

- *forward*: stand-ins run the real layer and keep what a later part needs;
- *backward*: a run of calls is replayed with other values in the places of those arrays (`CallGraph.replay`);
- *LM head*: stand-ins pass through, and the last gives our hidden states: norm, head, soft-caps and scales are the
  model's own code. That works since everything after the last layer is per position.

A model that does something between two layers (an array that a layer takes and no layer made) cannot be cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

#: An array that one call makes and another takes: (number of the call, which of the arrays it gives).
Key = tuple[int, int]


class CannotSplit(Exception):
    """The model cannot be cut; the text says why."""


@dataclass(frozen=True)
class FromCall:
    """Stands in a recorded call for an array that another call makes."""

    key: Key


@dataclass(frozen=True)
class CallGraph:
    """How the calls of a model's layers hang together.

    Attributes:
        layers: the list that the model takes its layers from; its entries are swapped while stand-ins are at work.
        prefixes: the name of each layer in the model (``model.layers.3``).
        layer_of_call: which layer each call calls; a model that loops over its layers has more calls than layers.
        sources: for each call, the key of every array in its arguments that another call makes, by its place in
            them (``0.0``, ``1.mask``); other arrays, such as masks, may come and go with the rows' width.
        results: for each call, the tree it gives, with array places marked by True.
    """

    model: nn.Module
    layers: list[Any]
    prefixes: tuple[str, ...]
    layer_of_call: tuple[int, ...]
    sources: tuple[dict[str, Key], ...]
    results: tuple[Any, ...]

    @property
    def calls(self) -> int:
        """Calls of layers in one forward pass."""
        return len(self.layer_of_call)

    def taken(self, first: int, last: int) -> list[Key]:
        """What the calls ``first`` to ``last`` (exclusive) take from calls before them."""
        keys = {key for call in range(first, last) for key in self.sources[call].values() if key[0] < first}
        return sorted(keys)

    def given(self, first: int, last: int) -> list[Key]:
        """What the calls ``first`` to ``last`` (exclusive) make that is needed after them."""
        keys = {
            key
            for call in range(last, self.calls)
            for key in self.sources[call].values()
            if first <= key[0] < last
        }
        return sorted(keys | ({(self.calls - 1, 0)} if last == self.calls else set()))


def arrays_of(tree: Any) -> list[mx.array]:
    """The arrays of a tree of tuples, lists and dictionaries, in a fixed order."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    return [leaf for _, leaf in tree_flatten(tree) if isinstance(leaf, mx.array)]


def map_arrays(function: Callable[[mx.array], Any], tree: Any) -> Any:
    """The tree with every array replaced, in the order of `arrays_of`."""
    import mlx.core as mx
    from mlx.utils import tree_map

    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, mx.array) else leaf, tree)


class StandIn:
    """Takes a layer's place in its list, or a module's in its layer; everything but the call is its own."""

    def __init__(self, layer: Any, call: Callable[..., Any]) -> None:
        self._layer, self._call = layer, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __getitem__(self, name: str) -> Any:
        return self._layer[name]


#: (layer, number of the call, args, kwargs) -> what the layer gives.
OnCall = Callable[[Any, int, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def standing_in(layers: list[Any], on_call: OnCall) -> Iterator[None]:
    """While this lasts, every call of one of the ``layers`` is answered by ``on_call``."""
    originals, number = list(layers), iter(range(1_000_000))

    def stand_in(layer: Any) -> StandIn:
        return StandIn(layer, lambda *args, **kwargs: on_call(layer, next(number), args, kwargs))

    layers[:] = [stand_in(layer) for layer in originals]
    try:
        yield
    finally:
        layers[:] = originals


def learn_call_graph(model: nn.Module, tokens: mx.array) -> CallGraph:
    """Call the model once, lazily, and see how its layers are called; nothing is computed.

    Args:
        tokens: int32, (rows, width); what they are does not matter.

    Raises:
        CannotSplit: the layers are not in a list of the model, or code between layers changes what they hand on.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten

    layers, prefixes = layer_list(model)
    position = {id(layer): number for number, layer in enumerate(layers)}
    made: dict[int, tuple[Key, mx.array]] = {}  # the array is kept, so that its id stays its own
    layer_of_call: list[int] = []
    sources: list[dict[str, Key]] = []
    results: list[Any] = []

    def record(layer: Any, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = {place: made[id(leaf)][0] for place, leaf in tree_flatten((args, kwargs)) if id(leaf) in made}
        if call > 0 and not known:
            raise CannotSplit("code between layers changes the hidden states")
        result = layer(*args, **kwargs)
        for number, array in enumerate(arrays_of(result)):
            if mx.issubdtype(array.dtype, mx.floating) and id(array) not in made:
                made[id(array)] = ((call, number), array)
        layer_of_call.append(position[id(layer)])
        sources.append(known)
        results.append(map_arrays(lambda _: True, result))
        return result

    with standing_in(layers, record):
        try:
            model(tokens)
        except (AttributeError, TypeError, KeyError) as error:
            raise CannotSplit(f"its code does not take stand-ins for layers ({error})") from error
    if not layer_of_call:
        raise CannotSplit("it does not call the layers in its list")
    return CallGraph(model, layers, prefixes, tuple(layer_of_call), tuple(sources), tuple(results))


def layer_list(model: nn.Module) -> tuple[list[Any], tuple[str, ...]]:
    """The list of the model that holds ``model.layers``, and the layers' names.

    Raises:
        CannotSplit: there is none.
    """
    wanted = list(getattr(model, "layers", ()))
    if not wanted:
        raise CannotSplit("it has no layers")
    for module in model.modules():
        for value in module.values():
            if isinstance(value, list) and len(value) >= len(wanted):
                held = {id(entry) for entry in value}
                if all(id(layer) in held for layer in wanted):
                    names = {id(found): path for path, found in model.named_modules()}
                    return value, tuple(names[id(layer)] for layer in value)
    raise CannotSplit("its layers are not in one list")


def head_logits(graph: CallGraph, hidden: mx.array) -> mx.array:
    """What the model makes of the last layer's hidden states: logits in float32.

    Args:
        hidden: (positions, ...): what the last layer gave at any positions of any rows.

    Returns:
        (positions, vocab).
    """
    import mlx.core as mx

    def answer(layer: Any, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        passed = hidden[None] if call == graph.calls - 1 else arrays_of((args, kwargs))[0]
        places = iter([passed])
        return _fill(graph.results[call], places, mx.zeros((1,)))

    with standing_in(graph.layers, answer):
        logits = graph.model(mx.zeros((1, len(hidden)), dtype=mx.int32))  # (1, positions, vocab)
    return logits[0].astype(mx.float32)


def _fill(tree: Any, first: Iterator[mx.array], rest: mx.array) -> Any:
    """The tree with its first array from ``first`` and a placeholder for all others, which nobody looks at."""
    from mlx.utils import tree_map

    return tree_map(lambda leaf: next(first, rest) if leaf is True else leaf, tree)


def marked(graph: CallGraph, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call's arguments, with `FromCall` in the place of every array that another call makes."""
    from mlx.utils import tree_map_with_path

    keys = graph.sources[call]
    return tree_map_with_path(
        lambda place, leaf: FromCall(keys[place]) if place in keys else leaf, (args, kwargs)
    )


def filled(arguments: Any, values: dict[Key, mx.array]) -> Any:
    """Marked arguments with ``values`` in their places."""
    from mlx.utils import tree_map

    return tree_map(lambda leaf: values[leaf.key] if isinstance(leaf, FromCall) else leaf, arguments)


def segments_of(calls: int, *, kept: int) -> tuple[list[tuple[int, int]], int]:
    """(first, last) of each segment that is recomputed, ``last`` exclusive, and the first call of those that keep their activations.

    A segment is one call of a layer. Two would halve the hidden states that are kept and add 0.36 of a layer's work,
    which is 25 hidden states or more: measured, 1 % of the peak for 4 % of the speed; it would pay above 50 layers.
    """
    end = max(0, calls - kept)
    return [(call, call + 1) for call in range(end)], end
