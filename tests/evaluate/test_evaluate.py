"""Evidence: fair, paired, and inconclusive where nothing differs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mlx_gardener.errors import ModelError
from mlx_gardener.evaluate import Evidence, bits_per_byte, complete
from mlx_gardener.evaluate.compare import _five_digits
from mlx_gardener.evaluate.complete import build_prompt, next_line
from mlx_gardener.evaluate.metrics import edit_similarity
from mlx_gardener.model import BaseModel, load_base


def evidence(low: float, high: float) -> Evidence:
    metrics = {
        "bits_per_byte_change": (low + high) / 2,
        "bits_per_byte_change_low": low,
        "bits_per_byte_change_high": high,
    }
    return Evidence(metrics, (), ({"path": "a"},), 0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.2, -0.1, "promote"), (-0.1, 0.1, "inconclusive"), (0.1, 0.2, "reject")]
)
def test_the_verdict_needs_the_whole_interval_on_one_side(low: float, high: float, verdict: str) -> None:
    assert evidence(low, high).verdict == verdict
    assert "On 1 file that it never saw" in evidence(low, high).reason


def test_an_interval_that_touches_zero_from_below_is_not_shown_as_an_improvement() -> None:
    found = evidence(-0.05, _five_digits(-1e-9))
    assert found.verdict == "inconclusive" and "-5.0% to +0.0%" in found.reason


def test_an_adapter_that_is_the_base_is_said_to_be_so() -> None:
    found = evidence(0.0, 0.0)
    assert found.verdict == "inconclusive" and "exactly as many bits per byte as the base." in found.reason


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
    assert "\n" not in next_line(base, "import os\n\n", path="a.py", max_new_tokens=12)


def test_a_span_needs_a_model_that_knows_spans(base: BaseModel) -> None:
    from dataclasses import replace

    blind = replace(base, tokenizer=replace(base.tokenizer, markers=None))
    with pytest.raises(ModelError, match="no fill-in-the-middle markers"):
        complete(blind, "a", "b", max_new_tokens=2)
