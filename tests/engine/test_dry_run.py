"""The dry run: a plan is tried, corrected by what that took, and replaced where it does not fit."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.engine import Engine, Plan, dry_run, make_plan, model_facts
from mlx_gardener.engine.dry_run import after_dry_run
from mlx_gardener.engine.plan import Scales
from mlx_gardener.engine.predict import MARGIN, predicted
from mlx_gardener.engine.speed import TWO_CORES
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.model import BaseModel, load_base, seedling_path
from mlx_gardener.model.lora import lora_parameters
from mlx_gardener.platform.footprint import process_footprint_bytes, process_peak_footprint_bytes


class Stopped(Exception):
    """Ends a dry run."""


GIB = 1024**3
FACTS = model_facts(seedling_path())


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("seedling")


def settings(budget_bytes: int, rows: int | None = None) -> TrainingConfig:
    return load_config(
        environment={},
        overrides={
            "memory_limit_gb": budget_bytes / GIB,
            "data.sequence_lengths": [128],
            "engine.micro_batch_rows": rows,
        },
    )


def rows_of(rows: int, config: TrainingConfig) -> Plan:
    """A plan of so many rows of 128 tokens, all layers computed at once."""
    planned = make_plan(FACTS, config, 64 * GIB, TWO_CORES)
    assert planned.kept_layers == FACTS.layers
    return predicted(replace(planned, rows_of_width={128: rows}), FACTS, config, TWO_CORES)


def test_a_plan_that_fits_stays_and_its_prediction_is_what_the_footprint_says(base: BaseModel) -> None:
    config = settings(32 * GIB, rows=4)
    plan = rows_of(4, config)
    engine = Engine(base.model, plan, dtype=base.dtype)
    before = process_footprint_bytes()
    found = after_dry_run(engine, base, config, facts=FACTS, backend=TWO_CORES)
    assert found.rows_of_width == {128: 4} and found.kept_layers == plan.kept_layers
    parts = found.predicted_parts
    assert parts.peak_bytes == found.predicted_peak_bytes >= process_peak_footprint_bytes()
    kept = parts.weights + parts.runtime - before  # the first try leaves buffers of BLAS and threads
    assert -0.1 * before < kept < 64 * 1024**2
    assert 0.4 < found.scales.live < 2.5 and found.scales.live != 1
    assert not lora_parameters(base.model)


@pytest.mark.parametrize(
    ("busy", "beside"), [(0.1, ""), (0.4, ", beside others that took 40% of the processors")]
)
def test_a_speed_that_a_dry_run_saw_says_beside_what_and_when(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: float, beside: str
) -> None:
    monkeypatch.setattr(dry_run, "OthersWork", lambda: SimpleNamespace(share=busy))
    config = settings(32 * GIB, rows=1)
    engine = Engine(base.model, rows_of(1, config), dtype=base.dtype)
    told = [
        after_dry_run(
            engine, base, config, facts=FACTS, backend=TWO_CORES, cache_dir=tmp_path / "cache"
        ).speed_from
        for _ in range(2)
    ]
    assert told == [f"seen in its dry run{beside}", "seen in an earlier dry run"]


def test_a_plan_that_does_not_fit_gives_way_to_a_smaller_one() -> None:
    # In processes of their own: the most that earlier tests took counts too, and no plan can change that.
    before, asked = in_a_process(32 * GIB)
    limit_bytes = before + 0.75 * (asked.predicted_peak_bytes - before)
    _, found = in_a_process(int(limit_bytes / MARGIN))
    assert found.predicted_peak_bytes <= limit_bytes / MARGIN
    assert limit_bytes < asked.predicted_peak_bytes
    assert asked.rows_of_width == {128: 16}
    assert found.rows_of_width[128] < 16 or found.kept_layers < asked.kept_layers


def in_a_process(budget_bytes: int) -> tuple[int, Plan]:
    """The footprint before a dry run of 16 rows under this budget, in bytes, and the plan that it leads to."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(dry_run_of_16_rows, budget_bytes).result()


def dry_run_of_16_rows(budget_bytes: int) -> tuple[int, Plan]:
    base = load_base("seedling")
    config = settings(budget_bytes)
    engine = Engine(base.model, rows_of(16, config), dtype=base.dtype)
    before = process_footprint_bytes()
    found = after_dry_run(engine, base, config, facts=FACTS, backend=TWO_CORES)
    assert engine.plan.rows_of_width == {128: 16}  # whoever asked decides
    return before, found


def test_a_base_that_leaves_no_room_is_refused_with_the_least_budget(base: BaseModel) -> None:
    config = settings(process_footprint_bytes() // 2)
    engine = Engine(base.model, rows_of(1, config), dtype=base.dtype)
    with pytest.raises(MemoryBudgetError, match="does not train within") as caught:
        after_dry_run(engine, base, config, facts=FACTS, backend=TWO_CORES)
    assert "--budget" in caught.value.next_step and not lora_parameters(base.model)


@pytest.mark.parametrize("takes_all", [False, True])
def test_a_plan_that_fitted_is_kept_when_one_tried_for_its_speed_does_not(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, takes_all: bool
) -> None:
    """Trials differ: what one of them asks for is no reason to refuse what another has shown to fit, unless it took the memory."""
    config, tried = settings(process_peak_footprint_bytes() + GIB), list[dict[int, int]]()
    engine, kept = Engine(base.model, rows_of(1, config), dtype=base.dtype), list[bytes]()

    def seen(_: Engine, plan: Plan, *__: object) -> Scales:
        tried.append(plan.rows_of_width)
        if takes_all and len(tried) == 2:
            kept.append(b"x" * config.memory_limit_bytes)
        scale = 1.0 if len(tried) == 1 else 1000.0
        return Scales(scale, scale, scale, 1.0)

    monkeypatch.setattr(dry_run, "_measure", seen)
    if takes_all:
        with pytest.raises(MemoryBudgetError):
            after_dry_run(engine, base, config, facts=FACTS, backend=TWO_CORES)
    else:
        found = after_dry_run(engine, base, config, facts=FACTS, backend=TWO_CORES)
        assert found.rows_of_width == {128: 1} and found.scales.layer == 1.0
        assert found.predicted_peak_bytes <= config.memory_limit_bytes
    assert len(tried) == 2 and tried[1][128] > 1 and not lora_parameters(base.model)


def test_of_plans_that_take_turns_one_that_fits_is_taken(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of many rows takes three times what is foretold, one of few as much: each trial leads to the other kind."""
    config = settings(process_footprint_bytes() + GIB // 3)
    engine, tried = Engine(base.model, rows_of(1, config), dtype=base.dtype), list[int]()

    def seen(_: Engine, __: Plan, ___: object, plan: Plan, *____: object) -> Scales:
        tried.append(plan.rows_of_width[128])
        scale = 3.0 if len(tried) in (2, 4) else 1.0
        return Scales(scale, scale, scale, 1.0)

    monkeypatch.setattr(dry_run, "_measure", seen)
    before = process_peak_footprint_bytes()  # of other tests
    found = after_dry_run(engine, base, config, facts=FACTS, backend=TWO_CORES, peak_before=before)
    assert tried[0] < tried[2] < tried[1] == tried[3] and len(tried) == dry_run.MOST_TRIALS
    assert found.rows_of_width[128] == tried[2] and found.scales.layer == 1.0


def test_a_dry_run_can_be_interrupted_and_leaves_nothing_behind(base: BaseModel) -> None:
    config = settings(32 * GIB)
    plan = rows_of(2, config)
    engine = Engine(base.model, plan, dtype=base.dtype)

    def stop(_: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        after_dry_run(engine, base, config, facts=FACTS, backend=TWO_CORES, between=stop)
    assert engine.plan is plan and not lora_parameters(base.model)
