"""The planner: what it promises fits, what does not fit is refused with the least budget that does."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.engine import (
    ModelFacts,
    Plan,
    keep_training,
    known_backend,
    learn,
    make_plan,
    measured_backend,
    model_facts,
    planner,
    predict,
)
from mlx_gardener.engine.plan import SMALLER, Scales
from mlx_gardener.engine.planner import ROW_STEP, lighter_plan, longest_row
from mlx_gardener.engine.predict import least_budget_bytes, predicted
from mlx_gardener.engine.seen import keep_scales, kept_scales
from mlx_gardener.engine.speed import _OF_A_BASE, ALONE, TWO_CORES, Backend, machine_key, speed_alone
from mlx_gardener.errors import ConfigError, MemoryBudgetError, ModelError
from mlx_gardener.model import seedling_path

GIB = 1024**3


def test_facts_come_from_files_without_loading_them(tiny_model_dir: Path) -> None:
    facts = model_facts(tiny_model_dir)
    assert (facts.layers, facts.hidden, facts.intermediate, facts.heads, facts.vocab) == (3, 48, 96, 4, 640)
    per_layer = 48 * (48 + 24 + 24 + 48) + 3 * 48 * 96 + 2 * 48
    assert facts.parameters == 3 * per_layer + 640 * 48 + 48
    assert facts.stored_bytes == 4 * facts.parameters


def test_a_plan_fits_its_budget_and_more_budget_never_means_fewer_rows() -> None:
    facts = model_facts(seedling_path())
    config = load_config(environment={}, overrides={"optimizer.tokens_per_update": 8192})
    rows = []
    for budget in (0.95, 1.1, 1.3, 2.0, 4.0, 8.0):
        plan = make_plan(facts, config, int(budget * GIB))
        assert plan.predicted_parts.peak_bytes == plan.predicted_peak_bytes <= budget * GIB
        rows.append(tuple(plan.rows_of_width.values()))
    assert rows == sorted(rows) and rows[0] < rows[-1]


@pytest.mark.parametrize("budget", [0.6, 1.0, 4.0])
def test_nothing_is_passed_over_that_would_have_been_chosen(
    monkeypatch: pytest.MonkeyPatch, budget: float
) -> None:
    facts = model_facts(seedling_path())
    for more in ({}, {"optimizer.tokens_per_update": 8192}, {"data.sequence_lengths": [2048]}):
        config = load_config(environment={}, overrides=more)
        plan = make_plan(facts, config, int(budget * GIB))
        with monkeypatch.context() as patch:
            patch.setattr(planner, "_candidates", partial(planner._candidates, even_slower=True))
            assert make_plan(facts, config, int(budget * GIB)) == plan


def test_a_budget_that_cannot_be_kept_names_the_least_one_that_can() -> None:
    facts, config = model_facts(seedling_path()), load_config(environment={})
    with pytest.raises(MemoryBudgetError, match="does not train within 0\\.01 GB") as caught:
        make_plan(facts, config, int(0.01 * GIB))
    least = float(re.search(r"--budget ([\d.]+)", caught.value.next_step)[1])  # type: ignore[index]
    assert make_plan(facts, config, int(least * GIB)).rows_of_width
    with pytest.raises(MemoryBudgetError):
        make_plan(facts, config, int((least - 0.03) * GIB))


def test_rows_can_be_pinned_and_the_budget_still_holds() -> None:
    facts = model_facts(seedling_path())
    plan = make_plan(facts, load_config(environment={}, overrides={"engine.micro_batch_rows": 3}), 4 * GIB)
    assert set(plan.rows_of_width.values()) == {3} and "pinned" in plan.notes[0]
    with pytest.raises(MemoryBudgetError):
        make_plan(facts, load_config(environment={}, overrides={"engine.micro_batch_rows": 500}), 4 * GIB)


def test_rows_wider_than_the_model_reads_are_refused(tiny_model_dir: Path) -> None:
    config = load_config(environment={}, overrides={"data.sequence_lengths": [512, 4096]})
    with pytest.raises(ModelError, match="at most 2048 tokens"):
        make_plan(model_facts(tiny_model_dir), config, 4 * GIB)


def test_unplanned_widths_take_about_as_many_tokens() -> None:
    plan = make_plan(model_facts(seedling_path()), load_config(environment={}), 4 * GIB)
    assert plan.rows_for(256) == 2 * plan.rows_for(512)
    assert plan.rows_for(4096) == 1


@pytest.mark.parametrize(
    "pins",
    [
        {"engine.streamed_layers": 7, "engine.kept_layers": 7},
        {"engine.streamed_layers": 3, "lora.use_dora": True},
    ],
)
def test_pins_that_contradict_each_other_are_an_error_of_the_settings(pins: dict[str, object]) -> None:
    config = load_config(environment={}, overrides=pins)
    with pytest.raises(ConfigError, match="agrees with all pins"):
        make_plan(model_facts(seedling_path()), config, 4 * GIB)


def test_layers_are_read_from_disk_only_when_the_base_does_not_fit() -> None:
    facts = model_facts(seedling_path())
    assert make_plan(facts, load_config(environment={}), 4 * GIB).streamed_layers == 0
    pinned = load_config(environment={}, overrides={"engine.streamed_layers": 7})
    assert make_plan(facts, pinned, 4 * GIB).streamed_layers == 7


def test_the_planner_learns_from_what_trainings_took(tmp_path: Path) -> None:
    facts = model_facts(seedling_path())
    config = load_config(environment={})
    before = make_plan(facts, config, 4 * GIB, measured_backend(tmp_path))
    learn(tmp_path, work=1.5, speed=0.5)
    learned = measured_backend(tmp_path)
    assert learned.work_scale == pytest.approx(1.25)
    after = make_plan(facts, config, 4 * GIB, learned)
    assert after.predicted_tokens_per_second == pytest.approx(0.75 * before.predicted_tokens_per_second)
    assert after.rows_of_width == before.rows_of_width
    pins = load_config(environment={}, overrides={"engine.micro_batch_rows": 1, "engine.kept_layers": 0})
    first, second = (
        make_plan(facts, pins, 2 * GIB, one) for one in (TWO_CORES, replace(TWO_CORES, work_scale=1.25))
    )
    assert second.predicted_parts.work == pytest.approx(1.25 * first.predicted_parts.work, rel=1e-6)
    for _ in range(9):  # one strange run after the other does not lead away
        learn(tmp_path, work=100.0, speed=0.01)
    assert measured_backend(tmp_path).work_scale == 2.0 and measured_backend(tmp_path).speed_scale == 0.2


def test_a_damaged_memory_of_the_backend_is_measured_again(tmp_path: Path) -> None:
    (tmp_path / "backend.json").write_text("[1, 2")
    assert measured_backend(tmp_path).work_scale == 1.0
    assert "work_scale" in (tmp_path / "backend.json").read_text()


def test_speeds_measured_beside_others_are_measured_anew_once_these_have_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was busy at the first command looked slow for ever, and `--model auto` took too small a base."""
    measured_backend(tmp_path)
    file = tmp_path / "backend.json"
    kept = json.loads(file.read_text())
    # Busier than can be, so that whatever is measured now is better.
    slow = {
        **kept,
        "flops_per_second": 1.0,
        "busy": 2.0,
        "work_scale": 1.25,
        "speed_scale": 4.0,
        "measured_at": 1.0,
    }

    def asked(load: float, **changed: float) -> Backend:
        file.write_text(json.dumps({**slow, **changed}))
        monkeypatch.setattr("os.getloadavg", lambda: (load * (os.cpu_count() or 1), 0.0, 0.0))
        return measured_backend(tmp_path)

    assert asked(1.0).flops_per_second == 1.0, "they still work"
    assert asked(0.0, busy=0.0).flops_per_second == 1.0, "it was alone"
    assert asked(0.0, measured_at=time.time()).flops_per_second == 1.0, "it was just tried"
    anew = asked(0.0)
    assert anew.flops_per_second > 1e6 and anew.busy <= 1.0 and anew.measured_at > 1.0
    assert (anew.work_scale, anew.speed_scale) == (1.25, 1.0), (
        "how slow trainings were was said of the wrong speed"
    )
    assert measured_backend(tmp_path) == anew
    again = asked(0.0, busy=ALONE)  # others may work again by now: the better of the two stays
    assert again.busy <= ALONE and again.measured_at > 1.0


def test_what_was_seen_of_a_base_is_not_told_of_another_speed_of_the_machine(tmp_path: Path) -> None:
    facts, config = model_facts(seedling_path()), load_config(environment={})
    backend = measured_backend(tmp_path)
    plan = make_plan(facts, config, 4 * GIB, backend)
    keep_training(tmp_path, facts, plan, backend, tokens_per_second=1e3, forward_share=3.0, busy=0.0)
    keep_scales(tmp_path, facts, plan, config, backend, Scales(speed=0.5))
    assert known_backend(tmp_path, facts).knows_base
    assert kept_scales(tmp_path, facts, plan, config, backend) == Scales(speed=0.5)
    faster = replace(backend, flops_per_second=2 * backend.flops_per_second)
    assert kept_scales(tmp_path, facts, plan, config, faster) is None
    file = tmp_path / "backend.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "flops_per_second": faster.flops_per_second}))
    assert not known_backend(tmp_path, facts).knows_base


def test_a_speed_that_was_seen_beside_others_is_scaled_to_a_machine_without_them(tmp_path: Path) -> None:
    """One training beside others that took 90 % of two processors does not make all that follow look ten times as long."""
    facts, config = model_facts(seedling_path()), load_config(environment={})
    speeds = {name: value for name, value in asdict(TWO_CORES).items() if name not in _OF_A_BASE}
    (tmp_path / "backend.json").write_text(json.dumps({"key": machine_key(), **speeds}))
    plan = make_plan(facts, config, 4 * GIB, measured_backend(tmp_path))

    def foretold(speed: float, busy: float) -> tuple[float, str]:
        found = measured_backend(tmp_path)
        keep_training(tmp_path, facts, plan, found, tokens_per_second=speed, forward_share=3.0, busy=busy)
        again = make_plan(facts, config, 4 * GIB, known_backend(tmp_path, facts))
        return again.predicted_tokens_per_second, again.speed_from

    alone, said_alone = foretold(200.0, 0.0)
    beside, said = foretold(20.0, 0.9)
    assert alone == pytest.approx(200.0, rel=0.1) and beside == pytest.approx(alone, rel=0.01)
    assert "others" not in said_alone and "beside others that took 90%" in said and "scaled" in said
    crowded, _ = foretold(20.0, 1.0)
    assert crowded == pytest.approx(alone, rel=0.01), "beyond nine tenths a share says little"
    assert speed_alone(20.0, 0.9, "metal") == 20.0, "others' work on processors is none on the GPU"


def test_a_cache_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = measured_backend(cache)
    (
        cache / f".backend.json.{os.getpid()}.new"
    ).mkdir()  # as on a full disk or a read-only home, nothing is written there
    learn(cache, work=1.5, speed=0.5)
    assert measured_backend(cache) == before
    (tmp_path / "file").write_text("")
    assert measured_backend(tmp_path / "file" / "cache").flops_per_second > 0


def mac_plan(name: str, budget: float, width: int, **settings: object) -> Plan:
    """The plan of a recorded 4-bit base for a Mac."""
    facts, config, backend = recorded(name, budget, width, **settings)
    return make_plan(facts, config, config.memory_limit_bytes, backend)


def recorded(
    name: str, budget: float, width: int, **settings: object
) -> tuple[ModelFacts, TrainingConfig, Backend]:
    """A recorded 4-bit base, settings, and a Mac as the planner sees it."""
    import plan_table

    facts = plan_table.recorded_facts(plan_table.CONFIGS / f"{name}.json")
    overrides = {"memory_limit_gb": budget, "data.sequence_lengths": [width], **settings}
    return facts, load_config(environment={}, overrides=overrides), plan_table.MAC_MINI_M4


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_rows_that_do_not_fit_at_once_are_taken_in_tiles() -> None:
    """A 32B shape at 2,048 tokens was refused below 6.7 GB."""
    plan = mac_plan("qwen2.5-coder-32b-instruct", 4, 2048)
    assert plan.tile_tokens and plan.states_on_disk and plan.predicted_peak_bytes <= 4 * GIB
    assert any("positions at a time" in note for note in plan.notes)
    assert any("wait in a file" in note for note in plan.notes)
    facts, config, _ = recorded("qwen2.5-coder-32b-instruct", 4, 2048, **{"lora.rank": 8})
    assert make_plan(facts, config, 4 * GIB, TWO_CORES).tile_tokens


@pytest.mark.usefixtures("benchmarks")
def test_hidden_states_go_to_disk_only_where_rows_do_not_fit_otherwise() -> None:
    lean, roomy = (mac_plan("qwen2.5-coder-1.5b", budget, 16384) for budget in (2.5, 8))
    assert lean.states_on_disk and not roomy.states_on_disk
    assert lean.predicted_parts.saved < roomy.predicted_parts.saved / 4


@pytest.mark.usefixtures("benchmarks")
def test_what_a_trial_refuses_goes_on_with_hidden_states_on_disk_where_the_base_stays() -> None:
    pins = {"engine.streamed_layers": 0, "engine.vocabulary_on_disk": False}
    facts, config, backend = recorded("qwen2.5-coder-1.5b", 8, 16384, **pins)
    plan = make_plan(facts, config, 8 * GIB, backend)
    lighter = lighter_plan(plan, facts, config, 3 * GIB, backend)
    assert not plan.states_on_disk and lighter is not None and lighter.states_on_disk
    assert lighter.streamed_layers == 0
    assert lighter_plan(lighter, facts, config, 3 * GIB, backend) is None


@pytest.mark.usefixtures("benchmarks")
def test_tiles_are_as_large_as_the_budget_allows() -> None:
    tiles = [mac_plan("qwen2.5-coder-1.5b", budget, 8192).tile_tokens for budget in (3, 4, 16)]
    assert 0 < tiles[0] <= tiles[1] and tiles[2] == 0


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("name", ["qwen3-coder-30b-a3b-instruct", "granite-4.0-h-micro", "qwen3.5-4b"])
def test_experts_and_recurrent_layers_are_not_planned_in_tiles(name: str) -> None:
    plan = mac_plan(name, 4, 2048)
    assert not plan.tile_tokens and any("all positions at once" in note for note in plan.notes)


@pytest.mark.usefixtures("benchmarks")
def test_the_longest_row_trains_and_a_longer_one_does_not() -> None:
    facts, config, backend = recorded("qwen2.5-coder-1.5b", 2, 512)
    longest = longest_row(facts, config, 2 * GIB, backend)
    assert 512 < longest < facts.max_tokens and longest % ROW_STEP == 0
    mac_plan("qwen2.5-coder-1.5b", 2, longest)
    with pytest.raises(MemoryBudgetError):
        mac_plan("qwen2.5-coder-1.5b", 2, longest + ROW_STEP)
    assert longest_row(facts, config, GIB // 2, backend) == 0
    assert longest_row(facts, config, 64 * GIB, backend) == facts.max_tokens
    without_tiles = longest_row(replace(facts, is_plain=False), config, 2 * GIB, backend)
    assert longest > 2 * without_tiles


@pytest.mark.usefixtures("benchmarks")
def test_the_longest_row_is_found_where_a_shorter_one_takes_more() -> None:
    """Attention in blocks begins at 1,024 tokens: rows of 1,280 need 1 % more than rows of 1,792."""
    facts, config, backend = recorded("qwen2.5-coder-1.5b", 64, 512)

    def least(width: int) -> float:
        with pytest.raises(MemoryBudgetError) as refused:
            mac_plan("qwen2.5-coder-1.5b", 0.1, width)
        assert refused.value.least_bytes is not None
        return refused.value.least_bytes

    short, longer = least(1280), least(1792)
    assert longer < short
    assert longest_row(facts, config, int((short + longer) / 2), backend) == 1792
    assert longest_row(replace(facts, max_tokens=ROW_STEP - 1), config, 8 * GIB, backend) == 0


def test_freed_buffers_are_kept_where_there_is_room_and_are_the_first_to_go() -> None:
    facts, config = model_facts(seedling_path()), load_config(environment={})
    wide = make_plan(facts, config, 4 * GIB)
    assert wide.keeps_buffers and wide.cache_bytes == wide.predicted_parts.cache > 0
    assert (
        wide.step_bytes
        == wide.predicted_peak_bytes - wide.predicted_parts.runtime - wide.predicted_parts.check
    )
    smaller = wide.smaller()
    assert smaller is not None and not smaller.keeps_buffers
    assert (smaller.kept_layers, smaller.rows_of_width) == (wide.kept_layers, wide.rows_of_width)
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(facts, config, 2**20)
    assert refused.value.least_bytes is not None
    assert not make_plan(facts, config, int(refused.value.least_bytes) + 2**10).keeps_buffers


def test_no_more_of_a_base_goes_to_disk_to_make_room_for_freed_buffers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))

    def on_disk() -> list[int]:
        found = []
        for budget in (0.9, 1.1, 1.3, 1.5):
            facts, config, _ = recorded("qwen2.5-coder-0.5b", budget, 512)
            found.append(make_plan(facts, config, config.memory_limit_bytes, TWO_CORES).streamed_layers)
        return found

    with_buffers = on_disk()
    monkeypatch.setitem(predict.FRESH_MEMORY_COSTS, "cpu", 0.0)
    assert all(here <= there for here, there in zip(with_buffers, on_disk(), strict=True))
    assert 0 == with_buffers[-1] < with_buffers[0]


def test_a_plan_has_a_smaller_one_until_tiles_and_disk_are_used_too() -> None:
    plan = make_plan(model_facts(seedling_path()), load_config(environment={}), 4 * GIB)
    steps = [plan]
    while (smaller := steps[-1].smaller()) is not None:
        steps.append(smaller)
    last = steps[-1]
    assert last.states_on_disk and last.tile_tokens == 256 and last.kept_layers == 0
    assert set(last.rows_of_width.values()) == {1} and last.loss_slice_tokens == 16
    (first_on_disk,) = (step for step in steps if step.states_on_disk)
    assert first_on_disk is last, "slices of logits and tiles become smaller before the disk is written to"


def test_hidden_states_are_not_sent_to_a_disk_that_has_no_room_for_them() -> None:
    """A step died of a full disk, where smaller slices of logits would have done."""
    plan = make_plan(model_facts(seedling_path()), load_config(environment={}), 4 * GIB)
    step: Plan | None = plan
    while step is not None:
        last, step = step, step.smaller(free_bytes=1000)
    assert not last.states_on_disk and last.loss_slice_tokens == 16 and last.tile_tokens == 256
    on_disk = last.smaller(free_bytes=last.predicted_parts.saved + 1)
    assert on_disk is not None and on_disk.states_on_disk


def test_the_notes_of_a_smaller_plan_are_true_of_it() -> None:
    """They were the first plan's: "no layer is recomputed" was said of one that recomputed them all."""
    pins = {"engine.kept_layers": 5, "engine.cpu_streams": 2}
    facts, config = model_facts(seedling_path()), load_config(environment={}, overrides=pins)
    step: Plan | None = make_plan(facts, config, 4 * GIB)
    assert step is not None and any("pinned by engine.kept_layers" in note for note in step.notes)
    while step is not None:
        whole, notes = step, "; ".join(step.notes)
        assert ("hidden states wait in a file" in notes) == step.states_on_disk
        assert (f"take {step.tile_tokens} positions at a time" in notes) == bool(step.tile_tokens)
        recomputed = step.layers - step.kept_layers
        assert (
            f"all {step.layers} layers" if not step.kept_layers else f"{recomputed} of {step.layers} layers"
        ) in notes
        assert ("pinned by engine.kept_layers" in notes) == (step.kept_layers == 5)
        assert ("pinned by engine.cpu_streams" in notes) == (step.cpu_streams == 2)
        assert len(set(step.notes)) == len(step.notes)
        step = step.smaller()
    assert SMALLER in whole.notes
    kept = make_plan(facts, load_config(environment={}), 64 * GIB)
    without_buffers = kept.smaller()
    assert without_buffers is not None and "no layer is recomputed" in without_buffers.notes
    smaller = without_buffers.smaller()
    assert "no layer is recomputed" in kept.notes and smaller is not None
    assert "no layer is recomputed" not in smaller.notes


@pytest.mark.parametrize(
    ("budget", "widths"),
    [
        *((2, [2048]), (4, [512]), (8, [1024])),
        *(pytest.param(budget, [512, 1024, 2048], marks=pytest.mark.slow) for budget in (2, 4, 8)),
    ],
)
def test_no_plan_computes_again_what_the_budget_would_keep(
    budget: int, widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a tenth of the budget is unused only where a layer more of kept activations, or in memory, does not fit."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import plan_table

    for name in plan_table.MODELS:
        facts = plan_table.recorded_facts(plan_table.CONFIGS / f"{name}.json")
        for width in widths:
            config = load_config(
                environment={}, overrides={"memory_limit_gb": budget, "data.sequence_lengths": [width]}
            )
            try:
                plan = make_plan(facts, config, config.memory_limit_bytes, plan_table.MAC_MINI_M4)
            except MemoryBudgetError:
                continue
            if plan.predicted_peak_bytes >= 0.9 * plan.budget_bytes or plan.kept_layers == facts.layers:
                continue
            if (
                facts.is_plain
                and not plan.tile_tokens
                and plan.kept_layers + plan.kept_products < facts.layers
            ):
                more = replace(plan, kept_products=plan.kept_products + 1)
            elif plan.kept_layers + plan.streamed_layers < facts.layers:
                products = max(0, plan.kept_products - 1)
                more = replace(plan, kept_layers=plan.kept_layers + 1, kept_products=products)
            else:
                more = replace(plan, streamed_layers=max(0, plan.streamed_layers - 1))
            needed = least_budget_bytes(predicted(more, facts, config, plan_table.MAC_MINI_M4))
            assert needed > plan.budget_bytes, (name, width, plan)
