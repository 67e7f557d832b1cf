"""Many answers at once: those of the prompts alone, within the budget, with progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gardener.engine import Engine, Plan, PredictedParts, products
from mlx_gardener.errors import ModelError, TrainingCancelledError
from mlx_gardener.evaluate import generate
from mlx_gardener.evaluate.generate import generate_many
from mlx_gardener.model import BaseModel, load_base
from tests.engine.zoo import VOCAB, tiny_model
from tests.support.engines import write_again
from tests.support.models import write_tiny_model

LENGTHS = (1, 2, 30, 7, 600, 55, 30)


def prompts(*lengths: int, vocab: int = 500) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(10, vocab, length).tolist() for length in lengths]


def engine(base: BaseModel, **settings: Any) -> Engine:
    plan = Plan({16: 2}, 2**32, 0, PredictedParts(), (), attention_block=16, cache_bytes=0)
    return Engine(base.model, replace(plan, **settings), dtype=base.dtype)


@pytest.fixture
def dense(tiny_model_dir: Path) -> BaseModel:
    return load_base(str(tiny_model_dir))


@pytest.fixture
def stored(tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    """The tiny model at 4 bits, kept so, whose products take several blocks each."""
    monkeypatch.setattr(products, "DEQUANTIZED_BLOCK", 64 * 24)
    source = write_tiny_model(tmp_path / "source", tiny_tokenizer_dir, hidden_size=64)
    base = load_base(str(write_again(source, tmp_path / "packed", shards=1, bits=4)), base_weights="stored")
    assert base.quantized
    return base


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("kind", ["dense", "stored"])
def test_the_answers_of_a_batch_are_those_of_the_prompts_alone(
    kind: str, streams: int, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(kind)
    asked = prompts(*LENGTHS)
    chosen = engine(base, cpu_streams=streams, dequantize=kind == "stored")

    def is_enough(text: str) -> bool:
        return len(text) > 20  # some are done long before others, and are taken out of the batch

    settings: dict[str, Any] = {"max_new_tokens": 12, "is_enough": is_enough}
    together = generate_many(base, asked, engine=chosen, **settings)
    assert together == [generate_many(base, [one], engine=chosen, **settings)[0] for one in asked]
    assert together == generate_many(base, asked, **settings), "the engine's operations are those of MLX"
    assert len({len(answer.ids) for answer in together}) > 1
    assert len({answer.ids for answer in together}) == len(asked)


@pytest.mark.parametrize("model_type", ["mamba", "gemma3_text", "gpt_oss", "lfm2"])
def test_other_caches_than_keys_and_values_are_joined_too(model_type: str, dense: BaseModel) -> None:
    base = replace(dense, model=tiny_model(model_type), config={"hidden_size": 64})
    base.model.eval()
    asked = prompts(9, 30, 3, 14, vocab=VOCAB - 1)
    chosen = engine(base, cpu_streams=2)
    together = generate_many(base, asked, engine=chosen, max_new_tokens=6)
    assert together == [generate_many(base, [one], engine=chosen, max_new_tokens=6)[0] for one in asked]


def test_caches_that_cannot_be_joined_are_written_one_by_one(
    dense: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models.cache import KVCache

    asked = prompts(5, 9, 3)
    expected = generate_many(dense, asked, max_new_tokens=6)
    monkeypatch.delattr(KVCache, "merge")
    assert generate_many(dense, asked, engine=engine(dense, cpu_streams=2), max_new_tokens=6) == expected


def test_progress_is_told_within_a_batch_and_never_falls(dense: BaseModel) -> None:
    shares: list[float] = []
    generate_many(dense, prompts(3, 40, 8), max_new_tokens=10, engine=engine(dense), tell=shares.append)
    assert len(shares) >= 10 and shares == sorted(shares) and shares[-1] == pytest.approx(1.0)


def test_an_answer_can_be_interrupted_between_tokens(dense: BaseModel) -> None:
    def after(calls: int) -> Callable[[], None]:
        left = iter(range(calls))

        def interrupt() -> None:
            if next(left, None) is None:
                raise TrainingCancelledError("stop")

        return interrupt

    with pytest.raises(TrainingCancelledError):
        generate_many(dense, prompts(3, 4), max_new_tokens=10, interrupt=after(5))
    before = mx.fast.scaled_dot_product_attention
    with pytest.raises(TrainingCancelledError):
        generate_many(dense, prompts(3, 4), max_new_tokens=10, engine=engine(dense), interrupt=after(5))
    assert mx.fast.scaled_dot_product_attention is before


def test_a_batch_is_as_large_as_the_budget_has_room_for(
    dense: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib = 2**30
    monkeypatch.setattr(generate, "process_footprint_bytes", lambda: gib)
    base = SimpleNamespace(
        config={
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "hidden_size": 512,
            "num_hidden_layers": 24,
            "vocab_size": 50_000,
        },
        dtype=mx.float32,
        model=dense.model,
    )
    row = 2 * 24 * 2 * 64 * 4 * 560  # keys and values of one prompt with its answer
    found = [
        generate._rows_at_once(base, engine(dense, budget_bytes=size * gib), 512, 48)  # type: ignore[arg-type]
        for size in (1, 2, 4)
    ]
    assert found[0] == 1, "one at least"
    assert 1 < found[1] < found[2]
    for size, rows in zip((2, 4), found[1:], strict=True):
        assert gib + rows * row < 0.9 * size * gib


def test_an_empty_prompt_is_refused(dense: BaseModel) -> None:
    with pytest.raises(ModelError, match="nothing to complete from"):
        generate_many(dense, [[3], []], max_new_tokens=2)
    assert generate_many(dense, [], max_new_tokens=2) == []
