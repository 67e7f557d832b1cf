"""Logits of an export's base, layer by layer: what one layer weighs is all that is in memory of them."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_gardener.adapter.agreement import layers_given_up
from mlx_gardener.errors import AdapterError
from tests.model.gguf.files import CONFIGS, tiny_model


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_layer_gives_its_weights_up_once_it_is_computed(architecture: str) -> None:
    """mlx-lm's qwen2 gives a copy of its list as `layers`: what is changed there changes nothing."""
    model, _ = tiny_model(architecture)
    layers, wanted = list(model.layers), model(mx.array([[5, 6, 7]]))
    mx.eval(wanted)
    with layers_given_up(model):
        found = model(mx.array([[5, 6, 7]]))
        mx.eval(found)
        left = [value.size for layer in layers for _, value in tree_flatten(layer.parameters())]
        with pytest.raises(AdapterError, match="uses a layer twice"):
            model(mx.array([[5, 6, 7]]))
    assert set(left) == {1}
    assert mx.array_equal(found, wanted)
    assert all(one is other for one, other in zip(model.layers, layers, strict=True))
