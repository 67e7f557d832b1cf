"""An adapter on another form of its base: the same weights as MLX folder and as GGUF file, told by their values.

In: an adapter, the base that it was trained on, and another. Out: the adapter as of the other, and how far the weights are
apart; refused with the figure where that is more than rounding. Cost: both models are read once, tensor by tensor; memory is
the largest tensor's, four times.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.adapter.agreement import give_up
from mlx_gardener.errors import AdapterError, ModelError

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.adapter.manifest import LoadedAdapter
    from mlx_gardener.model import BaseModel

#: L2 of all differences over L2 of all weights. Rounding to float16 or bfloat16 makes at most 0.2 %, to 8 bits 0.5 %; of two
#: kinds of 4 bits each makes 7 to 10 %, which is more than most adapters change.
MOST_DIFFERENCE = 0.01
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class Moved:
    """An adapter as of another base, and a sentence that says how far that is from its own."""

    adapter: LoadedAdapter
    sentence: str


def moved_to(adapter: LoadedAdapter, own: str, other: str) -> Moved | None:
    """``adapter`` as of the base ``other``; None where that is the base that it was trained on.

    Args:
        own: where the base lies that it was trained on, or its id.

    Raises:
        AdapterError: the weights or tokens are others, with the figure; or its own base is not here to compare.
        ModelError: ``other`` cannot be found or loaded.
    """
    from mlx_gardener.model import load_lazy_base

    second = load_lazy_base(other)
    told = adapter.manifest["base"]
    if second.weights_sha256 == told.get("weights_sha256"):
        return None
    try:
        first = load_lazy_base(own)
        if first.weights_sha256 != told.get("weights_sha256"):
            raise _refused(adapter, second, "the one it was trained on is not what it was")
    except ModelError as error:
        raise _refused(
            adapter, second, f"that one is not here to compare it with ({error.message})"
        ) from error
    difference = weights_difference(adapter, first, second)
    if difference > MOST_DIFFERENCE:
        raise _refused(
            adapter, second,
            f"their weights differ by {difference:.2%} (L2, dequantised), and at most {MOST_DIFFERENCE:.0%} is let pass",
        )  # fmt: skip
    if first.tokenizer.encode(_text()) != second.tokenizer.encode(_text()):
        raise _refused(adapter, second, "it makes other tokens of the same text")
    base = {**told, "id": second.id, "revision": second.revision, "weights_sha256": second.weights_sha256}
    sentence = f"Trained on {first.id}; the weights of {second.id} differ from its by {difference:.3%} (L2, dequantised)."
    return Moved(dataclasses.replace(adapter, manifest={**adapter.manifest, "base": base}), sentence)


def weights_difference(adapter: LoadedAdapter, first: BaseModel, second: BaseModel) -> float:
    """L2 of all differences of two bases' weights over L2 of all weights, as they are when they are dequantised.

    Raises:
        AdapterError: they have other tensors, or of other shapes; names one.
    """
    import mlx.core as mx
    import numpy as np

    mine, others = _weights(first), _weights(second)
    apart = total = 0.0
    for name in sorted(set(mine) | set(others)):
        one, two = (_of(found, name) for found in (mine, others))
        if one is None or two is None or one.shape != two.shape:
            raise _refused(adapter, second, f"its tensor {name!r} has no counterpart of the same shape")
        one, two = one.astype(mx.float32), two.astype(mx.float32)
        sums = mx.stack([((one - two) ** 2).sum(), (one**2).sum()])
        mx.eval(sums)
        difference, own = np.array(sums, dtype=np.float64)
        apart, total = apart + float(difference), total + float(own)
        del one, two, sums
        mx.clear_cache()
    return float((apart / total) ** 0.5) if total else 0.0


def _weights(base: BaseModel) -> dict[str, mx.array]:
    """A base's weights by name, still on disk; the model has them no more."""
    from mlx.utils import tree_flatten

    weights: dict[str, mx.array] = dict(tree_flatten(base.model.parameters()))
    give_up(base.model)
    return weights


def _of(weights: dict[str, mx.array], name: str) -> mx.array | None:
    """A tensor, which is gone then; for a head that is the embedding where there is none of its own."""
    if name == _HEAD and name not in weights:
        return weights.get(_EMBEDDING)
    return weights.get(name) if name == _EMBEDDING else weights.pop(name, None)


def _text() -> str:
    return Path(__file__).read_text(encoding="utf-8")


def _refused(adapter: LoadedAdapter, other: BaseModel, why: str) -> AdapterError:
    return AdapterError(
        f"{other.id} is not the model that the adapter {adapter.directory.name!r} was trained on: {why}.",
        next_step="Say where that model is with `mlx-gardener registry base DIRECTORY`, or train again on this one.",
    )
