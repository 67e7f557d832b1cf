"""A run's time: what is not training gets at most a quarter, and the evidence has its share whatever happens."""

from __future__ import annotations

import math

import pytest

from mlx_gardener.report.time_view import time_line
from mlx_gardener.training.time_plan import FINISH_SECONDS, Clock, Pace, TimePlan, plan_time


def planned(
    minutes: float, *, used: float = 60.0, update: float = 10.0, forward: float = 250.0, **more: int
) -> TimePlan:
    limit = minutes * 60 if minutes else math.inf
    facts = {
        "all_updates": 330, "steps_per_epoch": 110, "evaluate_every": 28, "validation_tokens": 20_000
    }  # fmt: skip
    return plan_time(Clock(limit, lambda: used), Pace(update, forward, "seen"), **{**facts, **more})


def test_a_limit_that_is_long_enough_cuts_nothing() -> None:
    plan = planned(240)
    assert not plan.is_short and plan.updates == plan.all_updates == 330
    assert plan.validation_tokens is None


def test_no_limit_means_all_updates_and_is_null_in_json() -> None:
    plan = planned(0)
    assert plan.updates == 330 and plan.to_json()["limit_seconds"] is None
    assert TimePlan.from_json(plan.to_json()) == TimePlan.from_json(
        TimePlan.from_json(plan.to_json()).to_json()
    )
    assert "no limit" in time_line(plan.to_json())


@pytest.mark.parametrize("minutes", [8.0, 30.0, 60.0])
@pytest.mark.parametrize("update", [2.0, 10.0, 60.0])
@pytest.mark.parametrize("used", [5.0, 60.0, 200.0])
def test_a_short_limit_is_shared_out(minutes: float, update: float, used: float) -> None:
    plan = planned(minutes, used=used, update=update, all_updates=3300)
    assert 1 <= plan.updates < plan.all_updates
    others = plan.used_seconds + plan.evidence_seconds + FINISH_SECONDS
    assert others <= max(0.25 * plan.limit_seconds, used + 0.05 * plan.limit_seconds + FINISH_SECONDS) + 1e-6
    assert others + plan.training_seconds <= plan.limit_seconds + 1e-6
    assert plan.validation_tokens is not None and plan.validations is not None
    validations = (1 + plan.validations) * plan.validation_tokens / plan.pace.forward_tokens_per_second
    if plan.updates > 1:
        assert plan.updates * update + validations <= plan.training_seconds
        assert (plan.updates + 1) * update + validations > plan.training_seconds


def test_an_overloaded_machine_gets_more_time_for_the_end() -> None:
    """Writing and registering took four times as long there, so that runs ended after their limit."""
    pace = Pace(2.0, 250.0, "seen")
    facts = {"all_updates": 3300, "steps_per_epoch": 110, "evaluate_every": 28, "validation_tokens": 20_000}

    def at(load: float, minutes: float = 60.0) -> float:
        plan = plan_time(Clock(minutes * 60, lambda: 60.0, load=lambda: load), pace, **facts)
        return plan.limit_seconds - 60.0 - plan.training_seconds - plan.evidence_seconds

    assert at(0.3) == at(1.0) == pytest.approx(FINISH_SECONDS)
    assert at(4.0) == pytest.approx(4 * FINISH_SECONDS) and at(math.inf) == pytest.approx(FINISH_SECONDS)
    assert at(500.0) == pytest.approx(0.15 * 3600), "what there is to train is not given up"
    assert at(500.0, minutes=1.5) == pytest.approx(FINISH_SECONDS)


def test_a_slow_base_is_validated_less_often_but_at_the_start_and_the_end() -> None:
    quick, slow = planned(60, update=20.0), planned(60, update=400.0, forward=10.0)
    assert quick.validations == 4 and slow.validations == 1 and slow.validation_tokens == 2048
    assert slow.updates == 5
    later = planned(
        60, used=1300.0, update=400.0, forward=10.0, done_updates=2, done_validations=1, other_seconds=60
    )
    assert later.validations == 1 and later.updates == 5


def test_updates_of_an_earlier_worker_count() -> None:
    assert planned(30, done_updates=50).updates == planned(30).updates + 50


@pytest.mark.parametrize(
    ("updates", "seconds", "told"),
    [
        (1, 170.0, "1 of 128 updates fit (0.4 % of an epoch) at 2 min 50 s an update"),
        (8, 7.5, "8 of 128 updates fit (3.0 % of an epoch) at 7.5 s an update"),
        (100, 0.21, "100 of 128 updates fit (0.37 of 0.47 epochs) at 0.21 s an update"),
        (128, 4000.0, "All 128 updates fit (0.47 epochs) at 1 h 06 min an update"),
    ],
)
def test_figures_for_people_are_no_powers_of_ten(updates: int, seconds: float, told: str) -> None:
    plan = planned(30).to_json() | {"updates": updates, "all_updates": 128, "steps_per_epoch": 270}
    assert told in time_line(plan | {"pace": {**plan["pace"], "update_seconds": seconds}})


def test_the_line_for_people_names_every_part() -> None:
    told = time_line(planned(30).to_json())
    for part in (
        "Time: of 30 min, ",
        " for reading and the dry run, ",
        " for training, ",
        " for measuring the adapter. ",
        " of 330 updates fit (",
        " epochs) at 10 s an update, seen",
    ):
        assert part in told


def test_a_base_so_slow_that_a_quarter_is_too_short_for_its_least_evidence_gets_more() -> None:
    facts = {"all_updates": 294, "steps_per_epoch": 98, "evaluate_every": 25, "validation_tokens": 20_000}
    pace = Pace(300.0, 13.5, "seen")

    def evidence(tokens: float, limit: float = 3600.0) -> TimePlan:
        return plan_time(Clock(limit, lambda: 140.0, evidence_tokens=tokens), pace, **facts)

    quarter, more, most = evidence(1_000), evidence(16_000), evidence(100_000)
    assert quarter.evidence_seconds == 0.25 * 3600 - 140 - FINISH_SECONDS
    assert more.evidence_seconds == 16_000 / 13.5
    assert most.evidence_seconds == 0.4 * 3600
    assert quarter.updates > more.updates > most.updates > 0
    for plan in (quarter, more, most):
        assert 140 + plan.training_seconds + plan.evidence_seconds + FINISH_SECONDS <= 3600 + 1e-6
    assert math.isinf(evidence(16_000, math.inf).evidence_seconds)


@pytest.mark.parametrize("minutes", [8.0, 30.0, 240.0, 0.0])
def test_no_time_is_kept_for_a_test_that_does_not_follow(minutes: float) -> None:
    facts = {"all_updates": 330, "steps_per_epoch": 110, "evaluate_every": 28, "validation_tokens": 20_000}
    limit = minutes * 60 if minutes else math.inf
    with_test, without = (
        plan_time(Clock(limit, lambda: 60.0, evidence_tokens=tokens), Pace(10.0, 250.0, "seen"), **facts)
        for tokens in (0.0, None)
    )
    assert without.evidence_seconds == 0 < with_test.evidence_seconds
    if with_test.updates < with_test.all_updates:
        assert without.updates > with_test.updates
        assert 60 + without.training_seconds + FINISH_SECONDS == limit
        assert ", none for measuring. " in time_line(without.to_json())
