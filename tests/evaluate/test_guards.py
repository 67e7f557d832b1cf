"""Guards: limits, reasons, and the sample of other code."""

from __future__ import annotations

from mlx_gardener.evaluate import guards
from mlx_gardener.evaluate.evidence import Comparison, Evidence, Guard
from mlx_gardener.evaluate.generate import Answer
from mlx_gardener.evaluate.metrics import identifier_f1, parses
from mlx_gardener.evaluate.statistics import Change


def judge(**shares: float) -> Guard:
    all_shares = {"adapter_train": 0.0, "adapter_held_out": 0.0, "base_held_out": 0.0} | shares
    return guards.memorisation(
        shares=all_shares,
        places=24,
        trained_on_test=[],
        test_gain=0.05,
        validation_gain=0.05,
    )


def evidence(*, high: float, guard: Guard | None = None, retrieval: float | None = None) -> Evidence:
    metrics = {
        "bits_per_byte_change": high - 0.05,
        "bits_per_byte_change_low": high - 0.1,
        "bits_per_byte_change_high": high,
    }
    found = ()
    if retrieval is not None:
        found = (
            Comparison(
                "base_bm25",
                "adapter",
                "bits_per_byte",
                retrieval,
                retrieval - 0.01,
                retrieval + 0.01,
                9,
                9,
                "relative",
            ),
        )
    return Evidence(metrics, (), ({"path": "a"},), 0, comparisons=found, guards=(guard,) if guard else ())


def test_a_failing_guard_blocks_a_promotion_and_gives_the_reason() -> None:
    failing = Guard("forgetting", False, 0.5, 0.1, "on other projects' code it needs +50.0% bits per byte")
    assert evidence(high=-0.1).verdict == "promote"
    blocked = evidence(high=-0.1, guard=failing)
    assert blocked.verdict == "reject" and "+50.0%" in blocked.reason and blocked.reason.count(". ") == 0


def test_the_reason_says_where_retrieval_wins() -> None:
    assert "retrieved code" in evidence(high=-0.1, retrieval=-0.2).reason
    assert "retrieved code" not in evidence(high=-0.1, retrieval=0.2).reason


def test_training_files_by_heart_are_flagged() -> None:
    assert judge(adapter_train=0.6, adapter_held_out=0.1).passed is False
    assert judge(adapter_train=0.3, adapter_held_out=0.1).passed is True


def test_held_out_files_by_heart_are_flagged_as_trained_on() -> None:
    found = judge(adapter_train=0.7, adapter_held_out=0.7, base_held_out=0.1)
    assert not found.passed and "as if they had been trained on" in found.reason
    assert judge(adapter_train=0.7, adapter_held_out=0.7, base_held_out=0.6).passed, "the base knew them"


def test_a_gain_on_the_test_alone_is_not_believed() -> None:
    found = guards.memorisation(shares={}, places=0, trained_on_test=[], test_gain=0.4, validation_gain=0.05)
    assert not found.passed and "validation" in found.reason


def test_verbatim_means_every_token() -> None:
    rest = list(range(16))
    answers = [Answer("", False, tuple(rest)), Answer("", False, tuple(rest[:-1])), Answer("", True, ())]
    assert guards.verbatim_share(answers, [rest, rest, rest]) == 1 / 3


def test_fewer_answers_that_parse_fail_only_beyond_limit_and_chance() -> None:
    assert not guards.parse_ok(Change(-0.3, -0.4, -0.2, 9, 0.05)).passed
    assert guards.parse_ok(Change(-0.3, -0.7, 0.1, 9, 0.2)).passed
    assert guards.parse_ok(Change(-0.03, -0.04, -0.02, 9, 0.005)).passed
    assert guards.parse_ok(None).measured is None
    same = guards.parse_ok(Change(0.0, -1.0, 1.0, 2, 0.5))
    assert same.passed and "did not change (95 % interval -100.0 to +100.0)" in same.reason
    assert "changed by -30.0 points" in guards.parse_ok(Change(-0.3, -0.7, 0.1, 9, 0.2)).reason


def test_the_sample_of_other_code_is_small_and_of_several_languages_that_parse() -> None:
    sample = guards.other_code()
    assert {item.language for item in sample} == {"python", "javascript", "go", "rust", "c", "java"}
    assert sum(len(item.text) for item in sample) < 60_000
    assert all(parses(item.text, item.language) for item in sample)


def test_names_of_the_repository_are_what_counts() -> None:
    defined = frozenset({"make_context", "Command"})
    assert identifier_f1("x = make_context(1)", "y = make_context(2)", defined) == 1.0
    assert identifier_f1("x = other(1)", "y = make_context(Command)", defined) == 0.0
    assert identifier_f1("x", "y = z", defined) is None
