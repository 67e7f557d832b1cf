"""What is measured after a training, and what is remembered of it for the next one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_gardener import evaluate
from mlx_gardener.config import load_config
from mlx_gardener.engine import Plan, PredictedParts, known_backend, model_facts
from mlx_gardener.runs.forecast import learn_from
from mlx_gardener.runs.measuring import clock_with_evidence, measure
from mlx_gardener.training.checkpoint import TrainState
from mlx_gardener.training.outcome import TrainOutcome
from mlx_gardener.training.time_plan import Clock, Pace, plan_time

PLAN = Plan(
    {64: 2}, 2**32, 0, PredictedParts(), (),
    predicted_tokens_per_second=100.0, predicted_forward_tokens_per_second=300.0,
)  # fmt: skip


def outcome(**more: Any) -> TrainOutcome:
    """Of a training of 60 updates of 100 tokens in two minutes, for which there was time enough."""
    time_plan = plan_time(
        Clock(1800.0, lambda: 0.0), Pace(1.0, 300.0, "foretold"),
        all_updates=60, steps_per_epoch=20, evaluate_every=10, validation_tokens=1000,
    )  # fmt: skip
    assert not time_plan.is_short
    state = TrainState(fingerprint="", step=60, seconds=120.0, positions=6000, tokens_seen=6000)
    return TrainOutcome({}, None, state, 60, "all updates done", time_plan, **more)  # type: ignore[arg-type]


def test_evidence_has_the_time_that_is_left_also_where_all_updates_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its work was planned as if there was no limit, which then cut it: retrieval was not measured, or nothing at all."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(evaluate, "compare", lambda *_, **named: asked.update(named))
    config = load_config(environment={}, overrides={"evaluation.arms": ["base", "adapter"]})
    run = SimpleNamespace(
        config=config,
        registry=SimpleNamespace(home=tmp_path),
        interrupt=lambda: None,
        tell=lambda *_, **__: None,
    )
    for limit, left in ((1800.0, 1800.0 - 1000.0 - 15.0), (1010.0, 0.0), (float("inf"), float("inf"))):
        run.clock = Clock(limit, lambda: 1000.0)
        staged: Any = SimpleNamespace(load=lambda: None)
        measure(run, None, staged, None, None, outcome(forward_seen=50.0))  # type: ignore[arg-type]
        assert (asked["seconds"], asked["forward_tokens_per_second"]) == (left, 50.0)
    measure(run, None, staged, None, None, outcome(forward_seen=50.0, ranks=2))  # type: ignore[arg-type]
    assert asked["forward_tokens_per_second"] == 25.0, "one of them measures"


def test_a_training_without_arms_keeps_no_time_for_a_test() -> None:
    config = load_config(environment={}, overrides={"evaluation.arms": []})
    run: Any = SimpleNamespace(config=config, clock=Clock(1800.0, lambda: 0.0))
    assert clock_with_evidence(run, None, None).evidence_tokens is None  # type: ignore[arg-type]


def test_what_a_training_took_is_remembered_but_nothing_of_a_resumed_one(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    run: Any = SimpleNamespace(registry=SimpleNamespace(home=tmp_path), ranks=SimpleNamespace(size=1))
    base: Any = SimpleNamespace(path=tiny_model_dir)
    engine: Any = SimpleNamespace(plan=PLAN)
    facts, cache = model_facts(tiny_model_dir), tmp_path / "cache"

    def learned(**more: Any) -> tuple[float, float] | None:
        learn_from(run, base, engine, replace(outcome(), **more), 1000, others_share=0.0)
        backend = known_backend(cache, facts)
        return (backend.speed_scale, backend.forward_share) if backend.knows_base else None

    assert learned(is_resumed=True) is None
    first = learned()
    assert first is not None and first[1] == pytest.approx(3.0)  # as foretold: no validation was measured
    again = learned(forward_seen=100.0)
    assert again is not None and again[1] == pytest.approx(2.0)  # 100 forward, 50 in training
