"""A base is loaded as the trial lets it: less of it in memory rather than a refusal, and a refusal names what does train."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.engine import Plan, load_engine, make_plan, model_facts, vocabulary
from mlx_gardener.engine.predict import MARGIN
from mlx_gardener.engine.speed import TWO_CORES
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.platform.lean_imports import import_lean
from tests.support.models import write_tiny_model

GIB, MIB = 1024**3, 1024**2
SHAPE = (16, 64)  # rows and their width are pinned, so that all that can give way is the base


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """Six layers of 10 MB, whose work on one short row is small beside them."""
    return write_tiny_model(
        tmp_path_factory.mktemp("deep"), tiny_tokenizer_dir, hidden_size=512, intermediate_size=1024,
        num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip


def settings(budget_bytes: float, shape: tuple[int, int]) -> TrainingConfig:
    rows, width = shape
    pins = {"data.sequence_lengths": [width], "engine.micro_batch_rows": rows, "engine.kept_layers": 0}
    return load_config(environment={}, overrides={"memory_limit_gb": budget_bytes / GIB, **pins})


def outcome(
    model: Path,
    budget_bytes: float,
    work_scale: float,
    *,
    shape: tuple[int, int] = SHAPE,
    has_tables: bool = True,
) -> tuple[Plan, Plan, list[str]] | int:
    """(first plan, the engine's plan, what was told), or the least budget in bytes where it was refused.

    In a process of its own, whose footprint is nobody else's. ``work_scale`` below 1 makes the formula foretell too little.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(load, model, budget_bytes, work_scale, shape, has_tables).result()


def load(
    model: Path, budget_bytes: float, work_scale: float, shape: tuple[int, int], has_tables: bool
) -> tuple[Plan, Plan, list[str]] | int:
    import_lean()  # as a worker does
    if not has_tables:  # as in a model whose embedding and head are of kinds of its own
        vocabulary.vocabulary_tables = lambda model, vocab: iter(())
    config = settings(budget_bytes, shape)
    facts, backend, told = model_facts(model), replace(TWO_CORES, work_scale=work_scale), list[str]()
    try:
        plan = make_plan(facts, config, config.memory_limit_bytes, backend)
        _, engine = load_engine(
            str(model), plan, config, facts=facts, backend=backend, warn=told.append,
            tell=lambda share, message: told.append(message),
        )  # fmt: skip
    except MemoryBudgetError as error:
        return error.least_bytes
    return plan, engine.plan, told


def loads(told: list[str]) -> int:
    return len([message for message in told if message.startswith("Loading")])


def test_what_does_not_fit_in_memory_is_read_from_disk_instead_of_refused(deep_model: Path) -> None:
    roomy = outcome(deep_model, 4 * GIB, 1.0)
    assert isinstance(roomy, tuple) and roomy[1].streamed_layers == 0 and loads(roomy[2]) == 1
    needed = roomy[1].predicted_peak_bytes - roomy[1].predicted_parts.cache
    # As little as the formula, which foretells too little, deems enough for all layers in memory: in tiles too it is not.
    facts, backend, budget = model_facts(deep_model), replace(TWO_CORES, work_scale=0.3), needed / MARGIN
    while not make_plan(facts, settings(budget, SHAPE), int(budget - 4 * MIB), backend).streamed_layers:
        budget -= 4 * MIB
    found = outcome(deep_model, budget, 0.3)
    assert isinstance(found, tuple), found
    first, last, told = found
    assert first.streamed_layers < last.streamed_layers and loads(told) > 1
    assert last.predicted_peak_bytes <= budget


def test_the_least_budget_that_a_trial_names_does_train(deep_model: Path) -> None:
    foretold = outcome(deep_model, 0.2 * GIB, 0.3)  # refused before loading
    assert isinstance(foretold, int) and 0.2 * GIB < foretold < GIB
    least = outcome(deep_model, foretold + MIB, 0.3)  # refused by the trial, which knows better
    assert isinstance(least, int) and foretold < least < GIB
    again = outcome(deep_model, least + MIB, 0.3)
    assert isinstance(again, tuple), again
    assert again[1].streamed_layers > 0 and again[1].predicted_peak_bytes <= least + MIB


@pytest.mark.parametrize("has_tables", [True, False])
def test_rows_that_cannot_be_halved_are_tried_the_lightest_way_first(
    deep_model: Path, has_tables: bool
) -> None:
    facts, config = model_facts(deep_model), settings(4 * GIB, (1, 512))
    backend = replace(TWO_CORES, work_scale=1.5)
    resident = make_plan(facts, config, 4 * GIB, backend)
    budget = (resident.predicted_peak_bytes - resident.cache_bytes) / 0.9 + MIB
    while make_plan(facts, settings(budget, (1, 512)), int(budget), backend).keeps_buffers:
        budget -= MIB  # tight only where there is no room for them
    found = outcome(deep_model, budget, 1.5, shape=(1, 512), has_tables=has_tables)
    assert isinstance(found, tuple), found
    first, last, told = found
    assert first.streamed_layers == last.streamed_layers == 0 and loads(told) == 2
    assert last.predicted_peak_bytes <= budget


def test_what_is_told_of_loading_names_no_place(tiny_model_dir: Path) -> None:
    """A base that was read from a GGUF file lies in the cache, under a name that nobody gave it."""
    config = load_config(environment={}, overrides={"data.sequence_lengths": [64]})
    facts, told = model_facts(tiny_model_dir), list[str]()
    base, _ = load_engine(
        str(tiny_model_dir), make_plan(facts, config, 4 * GIB, TWO_CORES), config, facts=facts, backend=TWO_CORES,
        warn=told.append, dry_run=False, tell=lambda share, message: told.append(message),
    )  # fmt: skip
    assert f"Checking how {base.id} is cut into segments" in told
    assert not any(str(tiny_model_dir.parent) in line for line in told), told


def test_how_much_of_the_check_of_the_cut_is_done_is_told_and_nothing_where_it_was_checked_before(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = load_config(environment={}, overrides={"data.sequence_lengths": [64]})
    facts = model_facts(tiny_model_dir)
    plan = make_plan(facts, config, 4 * GIB, TWO_CORES)

    def shares() -> list[float]:
        told: list[tuple[float, str]] = []
        load_engine(
            str(tiny_model_dir), plan, config, facts=facts, backend=TWO_CORES, warn=print, dry_run=False,
            cache_dir=tmp_path, tell=lambda share, message: told.append((share, message)),
        )  # fmt: skip
        assert all("of it done" in message for share, message in told if share > 0.7), told
        return [share for share, message in told if message.startswith("Checking how")]

    found = shares()
    assert found[0] == 0.7 and found == sorted(found) and len(set(found)) > 4
    assert found[-1] == 0.7 + 0.3 * 0.5, "the whole graph comes last, and takes about as long"
    assert shares() == []
