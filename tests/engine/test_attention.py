"""Attention is taken the way that was measured to be better here, per shape, and what was measured is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_gardener.config import load_config
from mlx_gardener.engine import Engine, Plan, PredictedParts, make_plan, model_facts, prepare_model
from mlx_gardener.engine import seen as seen_room
from mlx_gardener.engine.attention import (
    ATTENTION_LEAST,
    BLOCK,
    NEVER,
    SMALL_BLOCK,
    Attention,
    Way,
    attention_ways,
    measure_attention,
)
from mlx_gardener.engine.operations import blockwise_attention
from mlx_gardener.engine.predict import predicted
from mlx_gardener.engine.seen import known_backend, with_attention
from mlx_gardener.engine.speed import TWO_CORES
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.model import seedling_path
from tests.engine.zoo import tiny_model

GIB = 1024**3
#: What a CPU was seen to take with 14 heads of 64: scores in memory, blocks as fast at 512 tokens and faster above.
CPU = Attention(
    own=Way((193.0, 3.18), (0.0, 3.2e-8)),
    blocks={BLOCK: Way((700.0, 0.28), (4e-6, 2.4e-8)), SMALL_BLOCK: Way((467.0, 0.08), (1e-6, 2.9e-8))},
    own_forward=Way((65.0, 1.04), (0.0, 1e-8)),
    blocks_forward=Way((300.0, 0.2), (0.0, 6e-9)),
    head_dim=64,
)
#: A backend with a fused gradient: no scores in memory, twice as fast.
FUSED = replace(
    CPU,
    own=Way((70.0, 0.0), (0.0, 1.2e-8)),
    own_forward=Way((10.0, 0.0), (0.0, 4e-9)),
)


def plan_with(attention: Attention | None, widths: list[int], budget: float = 4.0) -> Plan:
    config = load_config(environment={}, overrides={"data.sequence_lengths": widths})
    backend = replace(TWO_CORES, attention=attention)
    return make_plan(model_facts(seedling_path()), config, int(budget * GIB), backend)


def test_what_was_measured_decides_which_way_attention_takes() -> None:
    on_cpu, fused, unknown = (plan_with(seen, [512, 2048], 64) for seen in (CPU, FUSED, None))
    assert (on_cpu.attention_block, on_cpu.attention_least) == (BLOCK, 2048), "as fast in blocks at 512"
    assert fused.attention_least == NEVER and fused.forward_least == NEVER
    assert (unknown.attention_least, unknown.forward_least) == (ATTENTION_LEAST, None)
    assert not any("in blocks" in note for note in fused.notes) and any(
        "blocks" in note for note in on_cpu.notes
    )
    slow = replace(CPU, blocks={**CPU.blocks, BLOCK: Way((700.0, 0.28), (4e-6, 9e-8))})
    assert plan_with(slow, [2048], 64).attention_least == NEVER
    with pytest.raises(MemoryBudgetError) as refused:
        plan_with(slow, [2048], 0.1)
    assert refused.value.least_bytes is not None
    least = plan_with(slow, [2048], 1.001 * refused.value.least_bytes / GIB)
    assert least.attention_least == 2048, "slower, but it is what fits"


def test_a_backend_without_scores_in_memory_is_foretold_less() -> None:
    facts = model_facts(seedling_path())
    config = load_config(environment={}, overrides={"data.sequence_lengths": [1024], "engine.kept_layers": 0})
    plan = make_plan(facts, config, 64 * GIB, TWO_CORES)
    own = replace(plan, attention_least=NEVER)
    work = {
        name: predicted(own, facts, config, replace(TWO_CORES, attention=seen)).predicted_parts.work
        for name, seen in {"unknown": None, "CPU": CPU, "fused": FUSED}.items()
    }
    assert work["CPU"] == pytest.approx(work["unknown"], rel=0.01)
    assert work["fused"] < 0.8 * work["CPU"]


def test_this_backend_is_measured_as_it_is() -> None:
    """MLX's own way keeps the scores of a CPU in memory, which grow with the width; blocks do not."""
    found = measure_attention(8, 4, 32, kind="cpu")
    assert found.scores == pytest.approx(1.0, abs=0.35) and found.own.floats[1] > 2
    assert found.takes_less(BLOCK, 1024) and found.takes_less(BLOCK, 8192)
    assert 0.5 < found.block_share(BLOCK) < 2
    assert found.own.seconds_at(1024) > 0 and found.own.seconds_at(2048) > found.own.seconds_at(512)
    assert Attention.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_way_of_mlx_that_keeps_no_scores_is_noticed_and_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if MLX had a fused gradient one day: nothing but the measurement can tell."""

    def fused(queries: mx.array, keys: mx.array, values: mx.array, **facts: Any) -> mx.array:
        return blockwise_attention(queries, keys, values, block=16, **facts)

    before = measure_attention(4, 4, 16, kind="cpu")
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", fused)
    after = measure_attention(4, 4, 16, kind="cpu")
    assert before.scores > 0.6 and after.scores < 0.2
    assert before.takes_less(BLOCK, 4096) and not after.takes_less(BLOCK, 4096)
    *_, leanest = attention_ways(before, [4096])
    assert leanest[BLOCK][0] == 4096
    assert all(
        ways[BLOCK][0] == NEVER
        for ways in attention_ways(replace(after, blocks={**after.blocks, BLOCK: after.own}), [4096])
    )


def test_what_was_measured_is_kept_per_shape_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, config = model_facts(seedling_path()), load_config(environment={}, overrides={"model": "seedling"})
    first = prepare_model(config, tmp_path).backend.attention
    assert first is not None and known_backend(tmp_path, facts).attention == first
    asked: list[int] = []

    def measured(heads: int, *others: Any, **facts: Any) -> Attention:
        asked.append(heads)
        return CPU

    monkeypatch.setattr(seen_room, "measure_attention", measured)
    assert prepare_model(config, tmp_path).backend.attention == first and not asked
    other = replace(facts, heads=2 * facts.heads)
    assert known_backend(tmp_path, other).attention is None, "of other heads nothing is known"
    assert with_attention(TWO_CORES, None, other).attention == CPU and asked == [2 * facts.heads]
    monkeypatch.setattr(seen_room, "machine_key", lambda: "another version of MLX")
    assert prepare_model(config, tmp_path).backend.attention == CPU, "measured anew"


def test_damage_to_what_was_kept_is_measured_again(tmp_path: Path) -> None:
    facts = model_facts(seedling_path())
    with_attention(known_backend(tmp_path, facts), tmp_path, facts)
    file = tmp_path / "dry_runs.json"
    told = json.loads(file.read_text())
    (name,) = (key for key in told["shapes"] if key.startswith("attention"))
    told["shapes"][name]["own"] = {"floats": "many"}
    file.write_text(json.dumps(told))
    backend = known_backend(tmp_path, facts)
    assert backend.attention is None
    assert with_attention(backend, tmp_path, facts).attention is not None
    assert known_backend(tmp_path, facts).attention is not None


def test_rows_that_only_go_forward_take_the_way_that_is_better_for_them() -> None:
    assert CPU.forward_least(1024, BLOCK) == 2 * BLOCK, "blocks leave out half of the exponentials"
    assert FUSED.forward_least(NEVER, BLOCK) == NEVER
    heavy = replace(
        CPU, own_forward=Way((65.0, 1.04), (0.0, 1e-9))
    )  # fast, but its scores take what blocks save
    assert heavy.forward_least(NEVER, BLOCK) == NEVER and heavy.forward_least(512, BLOCK) == 512
    plan = Plan(
        {64: 2}, GIB, 0, PredictedParts(), (), attention_block=BLOCK, attention_least=1024, forward_least=512
    )
    engine = Engine(tiny_model("llama"), plan, dtype=mx.float32)
    assert engine._plain_operations(forward_only=True).attention_least == 511
    assert engine._plain_operations(forward_only=False).attention_least == 1023
