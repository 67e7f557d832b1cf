"""Between all and nothing: layers that keep the outputs of their products, and recompute only the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_gardener.config import LoraConfig
from mlx_gardener.engine import facts_of, operations
from mlx_gardener.engine.backprop import ForwardBackward
from mlx_gardener.engine.facts import Stored
from mlx_gardener.engine.predict import _product_floats
from mlx_gardener.engine.products_kept import KeptProducts
from mlx_gardener.model import load_base
from mlx_gardener.model.lora import attach_lora, lora_parameters
from tests.engine import zoo
from tests.engine.zoo import EQUAL, batch, engine, relative, tiny_config, tiny_model, with_adapters
from tests.support.engines import batch as rows_of_text
from tests.support.engines import engine as engine_of
from tests.support.engines import plan


@pytest.mark.parametrize(
    "settings",
    [
        {"kept_products": 4},
        {"kept_products": 2, "kept_layers": 1},
        {"kept_products": 3, "cpu_streams": 2},
        {"kept_products": 3, "attention_block": 5, "attention_least": 0, "states_on_disk": True},
        {"kept_products": 2, "tile_tokens": 10},
    ],
    ids=str,
)
@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "starcoder2", "gemma4_text"])
def test_gradients_are_those_of_layers_that_are_recomputed(model_type: str, settings: dict[str, Any]) -> None:
    model = tiny_model(model_type)
    weights = with_adapters(model)
    expected = engine(model).loss_and_gradients(weights, batch(), seed=0)
    found = engine(model, **settings).loss_and_gradients(weights, batch(), seed=0)
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
    assert relative(found.gradients, expected.gradients) <= EQUAL


def test_what_is_kept_is_what_is_used_and_only_as_long_as_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kept arrays that are spoiled spoil the gradients of their layers, and of those below alone."""
    model = tiny_model("llama")
    weights = with_adapters(model)
    original = ForwardBackward._finish
    sizes: list[int] = []
    tapes: list[Any] = []

    def spoiled(passage: ForwardBackward, graph: Any, tape: Any, *others: Any) -> Any:
        tapes.append(tape)
        for kept in tape.products.values():
            sizes.append(len(kept.arrays))
        tape.products[2].made[:] = [
            None if array is None else array + float("nan") for array in tape.products[2].made
        ]
        return original(passage, graph, tape, *others)

    monkeypatch.setattr(ForwardBackward, "_finish", spoiled)
    found = engine(model, kept_products=2, attention_block=5).loss_and_gradients(weights, batch(), seed=0)
    spoiled_layers = {
        name.split(".")[2] for name, value in found.gradients.items() if mx.isnan(value).any().item()
    }
    assert spoiled_layers == {"0", "1", "2"}
    assert sizes == [8, 8]  # q, k, v, attention with its sums, o, gate, up; not down, which is only added
    assert not tapes[0].products


@pytest.mark.parametrize("cpu_streams", [1, 2])
@pytest.mark.parametrize(
    ("model_type", "is_read"), [("llama", False), ("starcoder2", False), ("gemma2", True)]
)
def test_the_last_product_is_kept_only_where_a_gradient_reads_it(
    monkeypatch: pytest.MonkeyPatch, model_type: str, is_read: bool, cpu_streams: int
) -> None:
    """Where it is not kept, another one in its place changes no gradient: it is not computed again either."""
    model = tiny_model(model_type)
    weights = with_adapters(model)
    expected = engine(model).loss_and_gradients(weights, batch(), seed=0)
    original, left_out = KeptProducts._remember, []

    def spoiled(kept: KeptProducts, count: int, compute: Any) -> list[mx.array]:
        missing = kept._again is not None and any(array is None for array in kept.made)
        made = original(kept, count, compute)
        if missing and all(array is not one for array in kept.arrays for one in made):
            left_out.append(made)
            return [array + float("nan") for array in made]
        return made

    monkeypatch.setattr(KeptProducts, "_remember", spoiled)
    found = engine(model, kept_products=2, cpu_streams=cpu_streams).loss_and_gradients(
        weights, batch(), seed=0
    )
    assert len(left_out) == (0 if is_read else 2 * cpu_streams)
    assert relative(found.gradients, expected.gradients) <= EQUAL


@pytest.mark.parametrize("attention_block", [0, 5])
@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("qwen2", {}),
        ("qwen3", {"head_dim": 48}),  # heads that are wider together than the hidden state
        ("starcoder2", {"intermediate_size": 256}),  # no gate
        ("gemma3_text", {}),  # a norm after the MLP
        ("phi3", {}),  # one matrix for queries, keys and values, one for gate and up
    ],
)
def test_what_is_kept_is_foretold(
    monkeypatch: pytest.MonkeyPatch, model_type: str, sizes: dict[str, Any], attention_block: int
) -> None:
    config = tiny_config(model_type) | sizes
    with monkeypatch.context() as patch:
        patch.setattr(zoo, "tiny_config", lambda _: config)
        model = tiny_model(model_type)
    stored = (
        Stored(name, value.size, value.nbytes, 0, value.shape)
        for name, value in tree_flatten(model.parameters())
    )
    facts = facts_of(model_type, config, stored)
    weights = with_adapters(model)
    original, kept_bytes = ForwardBackward._finish, []

    def counted(passage: ForwardBackward, graph: Any, tape: Any, *others: Any) -> Any:
        kept_bytes.extend(sum(array.nbytes for array in kept.arrays) for kept in tape.products.values())
        return original(passage, graph, tape, *others)

    monkeypatch.setattr(ForwardBackward, "_finish", counted)
    cut = engine(model, kept_products=2, attention_block=attention_block)
    cut.loss_and_gradients(weights, batch(), seed=0)
    assert kept_bytes == 2 * [2 * 22 * 4 * _product_floats(cut.plan, facts, 22)]


def test_attention_in_blocks_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: list[str] = []
    original = operations._mask_block

    def noted(*given: Any) -> Any:
        scores.append("")
        return original(*given)

    monkeypatch.setattr(operations, "_mask_block", noted)
    model = tiny_model("llama")
    weights = with_adapters(model)

    def blocks_made(**settings: int) -> int:
        cut = engine(model, attention_block=5, **settings)
        scores.clear()
        cut.loss_and_gradients(weights, batch(), seed=0)
        return len(scores)

    assert blocks_made() == 4 * 5 * 3  # layers, blocks; forward, again, backward
    assert blocks_made(kept_products=4) == 4 * 5 * 2


def test_dropout_is_that_of_the_forward_pass(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    attach_lora(base.model, LoraConfig(rank=3, dropout=0.5), seed=5)
    mx.random.seed(1)
    weights = {
        name: value + 0.05 * mx.random.normal(value.shape)
        for name, value in lora_parameters(base.model).items()
    }
    given = rows_of_text()
    expected = engine_of(base, plan(6)).loss_and_gradients(weights, given, seed=3)
    for settings in ({"kept_products": 3}, {"kept_products": 3, "cpu_streams": 2}):
        chosen = replace(plan(6), **settings)
        found = engine_of(base, chosen).loss_and_gradients(weights, given, seed=3)
        assert relative(found.gradients, expected.gradients) <= EQUAL


def test_a_layer_that_fails_leaves_its_modules_in_place() -> None:
    layer = tiny_model("llama").layers[0]
    before = layer.mlp.gate_proj
    chosen = operations.Operations()
    with pytest.raises(KeyboardInterrupt), KeptProducts().of(layer, chosen):
        assert layer.mlp.gate_proj is not before
        raise KeyboardInterrupt
    assert layer.mlp.gate_proj is before and chosen.remember(1, lambda: [mx.ones(1)])[0].item() == 1
