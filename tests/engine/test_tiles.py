"""Projections and MLPs in tiles of positions: the same gradients, in less memory, and what is not cut into tiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import llama, qwen3_moe

from mlx_gardener.config import LoraConfig, load_config
from mlx_gardener.engine import make_plan, model_facts, prepare_engine
from mlx_gardener.engine.operations import Operations
from mlx_gardener.engine.products_kept import KeptProducts
from mlx_gardener.engine.speed import TWO_CORES
from mlx_gardener.engine.tiles import in_tiles
from mlx_gardener.model import load_base
from mlx_gardener.model.lora import attach_lora, lora_parameters
from tests.engine.zoo import (
    CANNOT,
    EQUAL,
    MODEL_TYPES,
    SOME,
    batch,
    engine,
    relative,
    tiny_model,
    with_adapters,
)
from tests.support.engines import batch as rows_of_text
from tests.support.engines import engine as engine_of
from tests.support.engines import plan


def difference(model_type: str, **settings: Any) -> float:
    """How far gradients in tiles are from those without; infinite where the losses differ."""
    model = tiny_model(model_type)
    weights = with_adapters(model)
    expected = engine(model).loss_and_gradients(weights, batch(), seed=0)
    found = engine(model, **settings).loss_and_gradients(weights, batch(), seed=0)
    if abs(found.loss_sum - expected.loss_sum) > 1e-6 * abs(expected.loss_sum):
        return float("inf")
    return relative(found.gradients, expected.gradients)


#: Their routers are linear ones alone too, but give several arrays.
WITH_ROUTERS = ("granitemoe", "bailing_moe")


@pytest.mark.parametrize("model_type", [*SOME, *WITH_ROUTERS])
def test_gradients_in_tiles_are_those_without(model_type: str) -> None:
    bound = 1e-6 if model_type in ("llama", "qwen2", "starcoder2") else EQUAL
    assert difference(model_type, tile_tokens=10) <= bound


@pytest.mark.parametrize(
    "settings",
    [
        {"tile_tokens": 10, "cpu_streams": 2},
        {"tile_tokens": 1, "rows": 1},
        {"tile_tokens": 7, "kept_layers": 2},
        {"tile_tokens": 10, "attention_block": 5, "attention_least": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "gemma4_text"])
def test_every_plan_with_tiles_gives_the_same_gradients(model_type: str, settings: dict[str, Any]) -> None:
    assert difference(model_type, **settings) <= EQUAL


@pytest.mark.slow
def test_all_architectures_that_are_cut_give_the_same_gradients_in_tiles() -> None:
    tried = 0
    for model_type in MODEL_TYPES:
        if model_type in CANNOT:
            continue
        try:
            model = tiny_model(model_type)
            weights = with_adapters(model)
            expected = engine(model).loss_and_gradients(weights, batch(), seed=0)
        except Exception:  # what mlx-lm's own code cannot do here, docs/architectures.md lists
            continue
        if engine(model).graph is None:
            continue
        found = engine(model, tile_tokens=10).loss_and_gradients(weights, batch(), seed=0)
        assert relative(found.gradients, expected.gradients) <= EQUAL, model_type
        tried += 1
    assert tried >= 60


@pytest.mark.parametrize("settings", [{"tile_tokens": 18}, {"tile_tokens": 9, "cpu_streams": 2}], ids=str)
def test_dropout_belongs_to_positions_and_not_to_tiles(
    tiny_model_dir: Path, settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_gardener.engine.operations.DROPOUT_BLOCK", 4)
    base = load_base(str(tiny_model_dir))
    attach_lora(base.model, LoraConfig(rank=3, dropout=0.5), seed=5)
    mx.random.seed(1)
    weights = {
        name: value + 0.05 * mx.random.normal(value.shape)
        for name, value in lora_parameters(base.model).items()
    }
    given = rows_of_text()
    expected = engine_of(base, plan(6)).loss_and_gradients(weights, given, seed=3)
    found = engine_of(base, replace(plan(6), **settings)).loss_and_gradients(weights, given, seed=3)
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
    assert relative(found.gradients, expected.gradients) <= EQUAL


def test_a_layer_whose_activations_are_kept_takes_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = llama.MLP.__call__

    def noted(module: llama.MLP, x: mx.array) -> mx.array:
        seen.append(x.shape[1])
        return original(module, x)

    monkeypatch.setattr(llama.MLP, "__call__", noted)
    model = tiny_model("llama")
    weights = with_adapters(model)
    cut = engine(model, tile_tokens=10)  # two rows of 22 positions
    seen.clear()  # of learning how layers are called
    cut.loss_and_gradients(weights, batch(), seed=0)
    assert max(seen) == 5
    cut = engine(model, tile_tokens=10, kept_layers=4)
    seen.clear()
    cut.loss_and_gradients(weights, batch(), seed=0)
    assert set(seen) == {22}


def test_experts_take_all_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = qwen3_moe.SwitchGLU.__call__

    def noted(module: Any, x: mx.array, indices: mx.array) -> mx.array:
        seen.append(indices.shape[1])
        made: mx.array = original(module, x, indices)
        return made

    monkeypatch.setattr(qwen3_moe.SwitchGLU, "__call__", noted)
    model = tiny_model("qwen3_moe")
    weights = with_adapters(model)
    cut = engine(model, tile_tokens=10)
    seen.clear()
    cut.loss_and_gradients(weights, batch(), seed=0)
    assert seen and set(seen) == {22}


def test_a_layer_in_tiles_takes_less_memory() -> None:
    """An MLP of eight times its width: gate, up and their gradients are most of what a layer takes."""
    mx.random.seed(0)
    up, down = nn.Linear(32, 256), nn.Linear(256, 32)
    layer = nn.Sequential(nn.Sequential(up, nn.GELU(), nn.GELU(), down))
    block = nn.Module()
    block.mlp = layer
    x, outer = mx.random.normal((1, 512, 32)), mx.random.normal((1, 512, 32))
    mx.eval(x, outer, block.parameters())

    def peak(positions: int) -> tuple[int, mx.array]:
        with in_tiles(block, positions, Operations()):
            mx.clear_cache()
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            _, (found,) = mx.vjp(lambda x: block.mlp(x), [x], [outer])
            mx.eval(found)
            return mx.get_peak_memory() - before, found

    whole, expected = peak(0)
    tiled, found = peak(64)
    assert tiled < whole / 3
    assert mx.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_modules_are_put_back_whatever_happens() -> None:
    layer = tiny_model("llama").layers[0]
    before = dict(layer.items()), dict(layer.self_attn.items())
    with pytest.raises(KeyboardInterrupt), in_tiles(layer, 4, Operations()):
        assert layer.mlp is not before[0]["mlp"] and layer.self_attn.q_proj is not before[1]["q_proj"]
        raise KeyboardInterrupt
    assert all(layer[name] is value for name, value in before[0].items())
    assert all(layer.self_attn[name] is value for name, value in before[1].items())


@pytest.mark.parametrize("of_plan", [{"tile_tokens": 12}, {"kept_products": 3}], ids=str)
def test_the_check_at_load_finds_an_mlp_whose_positions_see_each_other(
    of_plan: dict[str, int], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the plan of this time has no tiles, as the check is remembered for those that have."""
    original = llama.MLP.__call__

    def shifted(module: llama.MLP, x: mx.array) -> mx.array:
        return original(module, x + mx.pad(x, [(0, 0), (1, 0), (0, 0)])[:, :-1])

    monkeypatch.setattr(llama.MLP, "__call__", shifted)
    config = load_config(environment={}, overrides={"data.sequence_lengths": [64], "engine.dry_run": False})
    facts = model_facts(tiny_model_dir)
    base = load_base(str(tiny_model_dir))
    said: list[str] = []
    wanted = replace(make_plan(facts, config, 4 * 2**30), kept_layers=0, **of_plan)
    found = prepare_engine(base, wanted, config, facts=facts, backend=TWO_CORES, warn=said.append)
    assert found.graph is not None and not found.takes_tiles
    assert found.plan.tile_tokens == found.plan.kept_products == 0
    assert any("all positions at once" in note for note in found.plan.notes)
    assert len(said) == 1 and "without tiles" in said[0]
    attach_lora(base.model, LoraConfig(rank=2), seed=1)
    weights, given = lora_parameters(base.model), rows_of_text()
    tiled = engine_of(base, replace(plan(6), tile_tokens=12))
    tiled.takes_tiles = False
    expected = engine_of(base, plan(6)).loss_and_gradients(weights, given, seed=0)
    assert tiled.loss_and_gradients(weights, given, seed=0).loss_sum == expected.loss_sum


def test_the_check_at_load_finds_products_that_are_not_given_again_as_they_were(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = KeptProducts._remember

    def spoiled(kept: KeptProducts, count: int, compute: Any) -> list[mx.array]:
        return [2 * array if kept._again is not None else array for array in original(kept, count, compute)]

    monkeypatch.setattr(KeptProducts, "_remember", spoiled)
    config = load_config(environment={}, overrides={"data.sequence_lengths": [64], "engine.dry_run": False})
    facts, base, said = model_facts(tiny_model_dir), load_base(str(tiny_model_dir)), list[str]()
    wanted = make_plan(facts, config, 4 * 2**30)
    found = prepare_engine(base, wanted, config, facts=facts, backend=TWO_CORES, warn=said.append)
    assert found.graph is not None and not found.takes_tiles and len(said) == 1
