"""Between all activations kept and all recomputed: the outputs of a layer's matrix products and of its attention are kept.

They are what is dear to compute again; norms, activation functions and rotations, which are cheap, are. In the forward pass a
layer's linear modules, and attention in blocks, leave here what they made. When the layer is computed again to be differentiated, they
give that, and differentiate as they do. Memory: the outputs, for a gated MLP 2 intermediate, 4 hidden and 2 key widths a
position, 0.4 of what a layer keeps whose activations are all kept. No product with the base's weights is computed twice; those of
an adapter's rank are. Gradients are the same to float tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.linear import Adapted, linear_places, standing_in_for
from mlx_gardener.engine.operations import Operations

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


class KeptProducts:
    """What one call of a layer made, in the order in which it did: kept at its first call, given again at the next."""

    def __init__(self) -> None:
        self.arrays: list[mx.array] = []
        self._again: Iterator[mx.array] | None = None

    @contextmanager
    def of(self, layer: Any, chosen: Operations) -> Iterator[None]:
        """While this lasts, ``layer`` keeps its products here, or is given them."""
        self._again = iter(self.arrays) if self.arrays else None
        before, chosen.remember = chosen.remember, self._remember
        try:
            with standing_in_for(linear_places(layer), lambda module: self._kept(module, chosen)):
                yield
        finally:
            chosen.remember = before

    def _remember(self, count: int, compute: Callable[[], list[mx.array]]) -> list[mx.array]:
        """The ``count`` arrays that ``compute`` gives, or gave."""
        if self._again is not None:
            return [next(self._again) for _ in range(count)]
        made = compute()
        self.arrays += made
        return made

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

            return product(x, adapted.values())

        return call
