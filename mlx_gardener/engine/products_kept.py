"""Between all activations kept and all recomputed: the outputs of a layer's matrix products and of its attention are kept.

They are what is dear to compute again; norms, activation functions and rotations, which are cheap, are. In the forward pass a
layer's linear modules, and attention in blocks, leave here what they made. When the layer is computed again to be differentiated, they
give that, and differentiate as they do. The last product of most layers is only added to the hidden state, so that no gradient reads
it: it is kept where a norm is given it. Memory: the outputs, for a gated MLP 2 intermediate, 3 hidden and 2 key widths a
position, 0.4 of what a layer keeps whose activations are all kept. No product with the base's weights is computed twice; those of
an adapter's rank are. Gradients are the same to float tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.linear import Adapted, linear_places, other_places, standing_in_for
from mlx_gardener.engine.operations import Operations

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


class KeptProducts:
    """What one call of a layer made, in the order in which it did: kept at its first call, given again at the next."""

    def __init__(self) -> None:
        #: None in the place of what no gradient reads.
        self.made: list[mx.array | None] = []
        self._again: Iterator[mx.array | None] | None = None
        self._last: mx.array | None = None  # what a linear module gave, until something else takes it

    @property
    def arrays(self) -> list[mx.array]:
        """What is kept."""
        return [array for array in self.made if array is not None]

    @contextmanager
    def of(self, layer: Any, chosen: Operations) -> Iterator[Callable[..., Any]]:
        """While this lasts, what is given is to be called in the place of ``layer``, which keeps its products or is given them."""
        self._again = iter(self.made) if self.made else None
        before, chosen.remember = chosen.remember, self._remember

        def call(*args: Any, **kwargs: Any) -> Any:
            self._last = None
            result = layer(*args, **kwargs)
            if self._again is None and self._last is not None:
                self.made[-1] = None
            return result

        try:
            with (
                standing_in_for(linear_places(layer), lambda module: self._kept(module, chosen)),
                standing_in_for(other_places(layer), self._seen),
            ):
                yield call
        finally:
            chosen.remember, self._last = before, None

    def _remember(self, count: int, compute: Callable[[], list[mx.array]]) -> list[mx.array]:
        """The ``count`` arrays that ``compute`` gives, or gave."""
        if self._again is None:
            self._last, made = None, compute()
            self.made += made
            return made
        kept = [array for array in (next(self._again) for _ in range(count)) if array is not None]
        return kept if len(kept) == count else compute()  # computed only if something asks for it after all

    def _seen(self, module: nn.Module) -> Callable[..., Any]:
        """The module's call, which notes that it is given what the last linear module gave."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if any(given is self._last for given in args):
                self._last = None
            return module(*args, **kwargs)

        return call

    def _kept(self, module: nn.Module, chosen: Operations) -> Callable[[mx.array], Any]:
        """The module's call, with its own gradient and a product that may be given."""
        import mlx.core as mx

        adapted = Adapted(module, chosen)

        def call(x: mx.array) -> Any:
            seeds, stream = chosen.row_seeds, mx.default_stream(mx.default_device())

            @mx.custom_function  # type: ignore[untyped-decorator]
            def product(x: mx.array, values: list[mx.array]) -> mx.array:
                return self._remember(1, lambda: [adapted(x, values, seeds=seeds)])[0]

            @product.vjp  # type: ignore[untyped-decorator]
            def backward(
                primals: tuple[mx.array, list[mx.array]], cotangent: mx.array, _: mx.array
            ) -> tuple[mx.array, list[mx.array]]:
                x, values = primals

                def again(x: mx.array, *values: mx.array) -> mx.array:
                    return adapted(x, values, seeds=seeds)

                with mx.stream(stream):  # nobody asks for the product itself
                    change, *found = mx.vjp(again, [x, *values], [cotangent])[1]
                return change, found

            made: mx.array = product(x, adapted.values())  # type: ignore[assignment]
            self._last = made
            return made

        return call
