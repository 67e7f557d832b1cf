"""Where numbers stop being numbers: the first layer that makes NaN or infinity of a batch.

In: an engine and batches whose loss was not finite. Out: the error that names layer and weight. Cost: forward passes until
it is found, the last one layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.call_graph import CannotSplit, arrays_of, layer_list, standing_in
from mlx_gardener.engine.step import Engine
from mlx_gardener.errors import ModelError

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.dataset import Batch


def not_finite_error(engine: Engine, batches: Iterable[Batch], name: str) -> ModelError:
    """The error that says where the model called ``name`` makes no numbers of ``batches``."""
    wrong = next((batch for batch in batches if not math.isfinite(sum(engine.row_losses(batch)))), None)
    place, weights = ("", []) if wrong is None else _place(engine, wrong)
    message = f"The model {name!r} gives NaN or infinity before anything is trained"
    if weights:
        return ModelError(
            f"{message}: its {weights[0]} holds such values.",
            next_step="Fetch the model again, or choose another one.",
        )
    return ModelError(
        f"{message}{f', first in {place}' if place else ''}.",
        next_step="Set engine.compute_dtype to 'float32', which holds larger numbers, or choose another model.",
    )


def _place(engine: Engine, batch: Batch) -> tuple[str, list[str]]:
    """What first gives other than numbers for ``batch``, and the names of its weights that hold such."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    try:
        layers, names = layer_list(engine.model)
    except CannotSplit:
        layers, names = [], ()
    numbers = {id(layer): number for number, layer in enumerate(layers)}
    streamed, vocabulary = engine.streamed, engine.vocabulary
    found: list[tuple[str, list[str]]] = []

    def wrong_weights(module: Any, prefix: str = "") -> list[str]:
        weights = [(f"{prefix}{leaf}", value) for leaf, value in tree_flatten(module.parameters())]
        return sorted(name.replace(".linear.", ".") for name, value in weights if not _is_finite(value))

    def on_call(layer: Any, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call == 0 and not all(map(_is_finite, arrays_of(args))):
            found.append(("its embedding", []))
        number = numbers[id(layer)]
        with nullcontext() if streamed is None else streamed.in_memory({number}, ()):
            result = layer(*args, **kwargs)
            mx.eval(arrays_of(result))
            if not found and not all(map(_is_finite, arrays_of(result))):
                found.append((names[number], wrong_weights(layer, f"{names[number]}.")))
        return result

    for part in engine.micro_batches(batch):
        inputs = mx.array(part.tokens[:, :-1])
        with engine.computing(part, 0, 0), standing_in(layers, on_call):
            if vocabulary is None:
                engine.model(inputs)
            else:
                vocabulary.without_head(lambda inputs=inputs: engine.model(inputs))  # type: ignore[misc]
        if found and found[0][0] in names:
            return found[0]
    outside = [] if vocabulary is not None or streamed is not None else wrong_weights(engine.model)
    return found[0][0] if found else "what follows its layers", outside


def _is_finite(value: mx.array) -> bool:
    import mlx.core as mx

    return not mx.issubdtype(value.dtype, mx.floating) or bool(mx.isfinite(value).all().item())
