"""Evidence: fair, paired, and inconclusive where nothing differs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_gardener.adapter import LoadedAdapter
from mlx_gardener.adapter.base import trained_config
from mlx_gardener.config import TrainingConfig
from mlx_gardener.errors import ModelError
from mlx_gardener.evaluate import Evidence, bits_per_byte, complete
from mlx_gardener.evaluate.compare import _five_digits
from mlx_gardener.evaluate.complete import build_prompt
from mlx_gardener.evaluate.evidence import Comparison, answers_state
from mlx_gardener.evaluate.metrics import edit_similarity
from mlx_gardener.model import BaseModel, load_base

BETTER, UNCLEAR, WORSE = (0.02, 0.1), (-0.1, 0.1), (-0.2, -0.05)


def evidence(low: float, high: float, **answers: tuple[float, float]) -> Evidence:
    """Evidence with such intervals of bits per byte, and of answers by metric."""
    metrics = {
        "bits_per_byte_change": (low + high) / 2,
        "bits_per_byte_change_low": low,
        "bits_per_byte_change_high": high,
    }
    comparisons = tuple(
        Comparison("adapter", "base", metric, sum(ends) / 2, *ends, 3, 155, "points")
        for metric, ends in answers.items()
    )
    return Evidence(metrics, (), ({"path": "a"},), 0, comparisons=comparisons)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.2, -0.1, "promote"), (-0.1, 0.1, "inconclusive"), (0.1, 0.2, "reject")]
)
def test_the_verdict_needs_the_whole_interval_on_one_side(low: float, high: float, verdict: str) -> None:
    assert evidence(low, high).verdict == verdict
    assert "On 1 file that it never saw" in evidence(low, high).reason


@pytest.mark.parametrize(
    ("bits", "answers", "verdict"),
    [
        ((-0.2, -0.1), BETTER, "promote"), ((-0.2, -0.1), UNCLEAR, "promote"), ((-0.2, -0.1), WORSE, "inconclusive"),
        ((-0.1, 0.1), BETTER, "inconclusive"), ((-0.1, 0.1), UNCLEAR, "inconclusive"), ((-0.1, 0.1), WORSE, "reject"),
        ((0.1, 0.2), BETTER, "reject"),
    ],
)  # fmt: skip
def test_an_adapter_whose_answers_are_worse_is_never_promoted(
    bits: tuple[float, float], answers: tuple[float, float], verdict: str
) -> None:
    assert evidence(*bits, answers_exact=answers, answers_similarity=UNCLEAR).verdict == verdict


def test_answers_are_better_or_worse_by_whole_intervals_and_unclear_where_they_contradict_each_other() -> (
    None
):
    def state(**answers: tuple[float, float]) -> str:
        found = evidence(-0.2, -0.1, **answers)
        assert found.to_json()["answers"] == found.answers
        return found.answers

    assert state() == "unmeasured"
    assert state(answers_exact=UNCLEAR, answers_f1=BETTER) == "better"
    assert state(answers_exact=UNCLEAR, answers_f1=WORSE) == "worse"
    assert state(answers_exact=BETTER, answers_f1=WORSE) == "unclear"
    assert state(answers_exact=UNCLEAR, next_line_exact=WORSE) == "unclear", "all answers together count"
    assert answers_state([("next_line_exact", *WORSE)]) == "worse", "as evidence of older versions has it"


def test_files_of_later_commits_are_called_so() -> None:
    found = replace(evidence(-0.2, -0.1), held_out_since="1a2b3c")
    assert "On 1 file of later commits that it never saw" in found.reason
    assert found.to_json()["held_out_since"] == "1a2b3c"


def test_an_adapter_from_before_the_split_by_time_is_evaluated_with_the_split_it_was_made_with() -> None:
    recorded = TrainingConfig().model_dump(mode="json")
    new = LoadedAdapter({}, {}, {"config": recorded}, Path("x"))
    assert trained_config(new).data.split == "auto"
    old = {**recorded, "data": {name: value for name, value in recorded["data"].items() if name != "split"}}
    made = trained_config(LoadedAdapter({}, {}, {"config": old}, Path("x")), model="seedling")
    assert made.data.split == "files"


def test_the_reason_tells_the_answers_apart_from_the_bits() -> None:
    told = evidence(-0.2, -0.1, answers_exact=UNCLEAR, answers_f1=UNCLEAR).reason
    assert (
        "Its answers to 155 tasks are not measurably better: exactly right +0.0 points (-10.0 to +10.0), "
        in told
    )
    assert "the repository's names" in told
    assert "are worse" in evidence(-0.2, -0.1, answers_exact=WORSE).reason
    read = "What it would write of 155 lines that it read is better: lines read"
    assert read in evidence(-0.2, -0.1, read_line_exact=BETTER).reason, "nothing was asked"
    both = evidence(-0.2, -0.1, answers_exact=UNCLEAR, read_line_exact=BETTER).reason
    assert "Its answers to 155 tasks and 155 lines that it read are better" in both
    assert "answers" not in evidence(-0.2, -0.1).reason


def test_an_interval_that_touches_zero_from_below_is_not_shown_as_an_improvement() -> None:
    found = evidence(-0.05, _five_digits(-1e-9))
    assert found.verdict == "inconclusive" and "-5.0% to +0.0%" in found.reason


def test_an_adapter_that_is_the_base_is_said_to_be_so() -> None:
    found = evidence(0.0, 0.0)
    assert found.verdict == "inconclusive" and "exactly as many bits per byte as the base." in found.reason


def test_an_adapter_that_is_the_base_may_differ_in_files_that_were_not_seen() -> None:
    same = ({"path": "a", "base_bits_per_byte": 1.5, "adapter_bits_per_byte": 1.5},)
    found = replace(evidence(-0.13, 0.13, answers_exact=(-0.13, 0.13)), files=same)
    assert found.verdict == "inconclusive" and "fewer than 13% differ, with 95 % confidence" in found.reason
    assert "chance" not in found.reason and "answers" not in found.reason
    other = ({"path": "a", "base_bits_per_byte": 1.5, "adapter_bits_per_byte": 1.4},)
    assert "exactly as many" not in replace(found, files=other).reason


def test_bits_per_byte_is_the_loss_over_the_bytes() -> None:
    assert bits_per_byte(8 * math.log(2) * 10, 10) == pytest.approx(8.0)


def test_similarity_is_one_for_the_same_and_zero_for_nothing_in_common() -> None:
    assert edit_similarity("abc", "abc") == 1.0 and edit_similarity("abc", "xyz") == 0.0


@pytest.fixture
def base(tiny_model_dir: Path) -> BaseModel:
    return load_base(str(tiny_model_dir))


def test_a_prompt_looks_as_in_training(base: BaseModel) -> None:
    tokenizer = base.tokenizer
    plain = build_prompt(tokenizer, "def f", None, "a.py")
    assert plain == [tokenizer.file_id, *tokenizer.encode("a.py\n"), *tokenizer.encode("def f")]
    span = build_prompt(tokenizer, "def f", "(x)", "")
    assert span == [1, *tokenizer.encode("def f"), 3, *tokenizer.encode("(x)"), 2]


def test_a_completion_is_bounded_and_the_same_every_time(base: BaseModel) -> None:
    first = complete(base, "def collect(", path="a.py", max_new_tokens=6)
    assert first == complete(base, "def collect(", path="a.py", max_new_tokens=6)
    assert len(base.tokenizer.encode(first)) <= 12
    assert complete(base, "def collect(", ")", max_new_tokens=3) is not None


def test_a_span_needs_a_model_that_knows_spans(base: BaseModel) -> None:
    blind = replace(base, tokenizer=replace(base.tokenizer, markers=None))
    with pytest.raises(ModelError, match="no fill-in-the-middle markers"):
        complete(blind, "a", "b", max_new_tokens=2)
