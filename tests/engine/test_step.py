"""The step against a reference written by hand: padding, masks, micro-batches, and mlx-lm's defects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gardener.config import LoraConfig
from mlx_gardener.dataset import Batch
from mlx_gardener.engine import Plan, PredictedParts, StepResult, operations
from mlx_gardener.engine.backprop import ForwardBackward
from mlx_gardener.engine.head_loss import HeadLoss
from mlx_gardener.engine.verify import largest_difference
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.model.lora import attach_lora, detach_lora, lora_parameters, nested
from tests.support.engines import batch, engine, plan


@pytest.fixture
def base(tiny_model_dir: Path) -> BaseModel:
    return load_base(str(tiny_model_dir))


def gradients_of(
    base: BaseModel, weights: dict[str, mx.array], given: Batch, chosen: Plan, **settings: Any
) -> StepResult:
    return engine(base, chosen).loss_and_gradients(weights, given, **settings)


def with_random_adapter(base: BaseModel, **settings: object) -> dict[str, mx.array]:
    attach_lora(base.model, LoraConfig(rank=3, **settings), seed=5)
    mx.random.seed(1)
    weights = {
        name: value + 0.05 * mx.random.normal(value.shape)
        for name, value in lora_parameters(base.model).items()
    }
    mx.eval(weights)
    return weights


def reference_loss(base: BaseModel, tokens: np.ndarray, mask: np.ndarray) -> float:
    """Token by token in float64: -log softmax at every target, nothing else."""
    logits = np.array(base.model(mx.array(tokens))).astype(np.float64)
    total = 0.0
    for row in range(len(tokens)):
        for at in range(1, tokens.shape[1]):
            if mask[row, at]:
                scores = logits[row, at - 1]
                top = scores.max()
                total += top + np.log(np.exp(scores - top).sum()) - scores[tokens[row, at]]
    return total


def test_the_loss_is_that_of_the_hand_written_reference(base: BaseModel) -> None:
    weights = with_random_adapter(base)
    given = batch()
    result = gradients_of(base, weights, given, plan(6), seed=0)
    expected = reference_loss(base, given.tokens, given.loss_mask)
    assert result.tokens == given.loss_tokens
    assert result.loss_sum == pytest.approx(expected, rel=1e-5)
    assert sum(engine(base, plan(2)).row_losses(given)) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_those_of_finite_differences(base: BaseModel) -> None:
    weights = with_random_adapter(base)
    given = batch(rows=3)
    result = gradients_of(base, weights, given, plan(3), seed=0)
    mx.random.seed(9)
    direction = {name: mx.random.normal(value.shape) for name, value in weights.items()}
    slope = sum((result.gradients[name] * direction[name]).sum().item() for name in weights)
    step = 2e-3

    def moved(sign: int) -> float:
        base.model.update(nested({name: weights[name] + sign * step * direction[name] for name in weights}))
        return reference_loss(base, given.tokens, given.loss_mask)

    assert slope == pytest.approx((moved(1) - moved(-1)) / (2 * step), rel=2e-2)


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_how_a_batch_is_split_changes_nothing(base: BaseModel, rows: int) -> None:
    weights = with_random_adapter(base)
    given = batch()
    whole = gradients_of(base, weights, given, plan(6), seed=0)
    split = gradients_of(base, weights, given, plan(rows), seed=0)
    assert split.tokens == whole.tokens
    assert split.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
    for name in weights:
        difference = mx.abs(split.gradients[name] - whole.gradients[name]).max().item()
        assert difference <= 1e-5 * max(1e-3, mx.abs(whole.gradients[name]).max().item()), name


def test_accumulation_weighs_tokens_and_not_micro_batches(base: BaseModel) -> None:
    """mlx-lm averages the means of micro-batches: one with few targets counts as much as a full one."""
    weights = with_random_adapter(base)
    given = batch(rows=4)
    given.loss_mask[0:2] = False
    given.loss_mask[0, 3] = True  # the first micro-batch has one target, the second many
    result = gradients_of(base, weights, given, plan(2), seed=0)
    assert result.tokens == int(given.loss_mask.sum())
    mean = result.loss_sum / result.tokens
    assert mean == pytest.approx(
        reference_loss(base, given.tokens, given.loss_mask) / given.loss_mask.sum(), rel=1e-5
    )


def test_padding_is_never_learned(base: BaseModel) -> None:
    """mlx-lm trains on one pad token a row; here what stands in the padding is of no consequence."""
    weights = with_random_adapter(base)
    given = batch()
    first = gradients_of(base, weights, given, plan(6), seed=0)
    given.tokens[given.document_ids == 0] = 77
    second = gradients_of(base, weights, given, plan(6), seed=0)
    assert first.loss_sum == second.loss_sum
    assert all(mx.array_equal(first.gradients[name], second.gradients[name]) for name in weights)


def test_a_batch_without_targets_gives_zero_and_no_nan(base: BaseModel) -> None:
    """mlx-lm divides by the number of targets and gets NaN."""
    weights = with_random_adapter(base)
    given = batch(loss_share=0.0)
    result = gradients_of(base, weights, given, plan(2), seed=0)
    assert (result.loss_sum, result.tokens) == (0.0, 0)
    assert all(mx.abs(value).max().item() == 0 for value in result.gradients.values())
    assert engine(base, plan(2)).evaluate([given]) == (0.0, 0, 0)


def test_dropout_follows_the_seed_and_is_off_afterwards(base: BaseModel) -> None:
    weights = with_random_adapter(base, dropout=0.5)
    given = batch()

    def loss(seed: int) -> float:
        return gradients_of(base, weights, given, plan(3), seed=seed).loss_sum

    assert loss(1) == loss(1) != loss(2)
    assert not base.model.training
    before = engine(base, plan(6)).row_losses(given)
    assert before == engine(base, plan(6)).row_losses(given)


def test_an_interruption_leaves_the_weights_as_they_were(base: BaseModel) -> None:
    weights = with_random_adapter(base)
    calls = []

    def stop(_: float) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradients_of(base, weights, batch(), plan(2), seed=0, between_segments=stop)
    assert all(mx.array_equal(value, weights[name]) for name, value in lora_parameters(base.model).items())


def test_no_class_is_patched(base: BaseModel) -> None:
    """mlx-lm's gradient checkpointing changes the first layer's class for ever."""
    layer_class = type(base.model.layers[0])
    before = dict(vars(layer_class))
    weights = with_random_adapter(base)
    gradients_of(base, weights, batch(), plan(2), seed=0)
    detach_lora(base.model)
    assert dict(vars(layer_class)) == before


@pytest.mark.parametrize("settings", [{"cpu_streams": 2}, {"kept_layers": 4}], ids=str)
def test_dropout_belongs_to_rows_and_not_to_how_they_are_computed(
    base: BaseModel, settings: dict[str, int]
) -> None:
    weights = with_random_adapter(base, dropout=0.5)
    given = batch()
    expected = gradients_of(base, weights, given, plan(6), seed=3)
    chosen = Plan({16: 2}, 2**32, 0, PredictedParts(), (), **settings)
    found = gradients_of(base, weights, given, chosen, seed=3)
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)
    assert largest_difference(found.gradients, expected.gradients) <= 1e-5
    whole = engine(base, plan(3))
    whole.take_whole("to compare")
    assert whole.loss_and_gradients(weights, given, seed=3).loss_sum == pytest.approx(
        expected.loss_sum, rel=1e-5
    )


def test_rows_are_measured_two_for_each_that_is_trained_and_give_the_same(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = batch()
    seen: list[int] = []
    original = ForwardBackward.losses_and_likeliest

    def noted(passage: ForwardBackward) -> Any:
        seen.append(passage.rows)
        return original(passage)

    monkeypatch.setattr(ForwardBackward, "losses_and_likeliest", noted)
    found = engine(base, plan(2)).row_losses(given)
    assert seen == [4, 2]
    assert found == pytest.approx(engine(base, plan(6)).row_losses(given), rel=1e-6)
    seen.clear()
    whole = engine(base, plan(2))
    whole.take_whole("to see that logits of all rows are not doubled")
    whole.row_losses(given)
    assert seen == [2, 2, 2]


def test_the_likeliest_tokens_of_every_row_are_told_at_its_targets(base: BaseModel) -> None:
    given = batch()
    logits = base.model(mx.array(given.tokens[:, :-1])).astype(mx.float32)
    best = np.array(logits.argmax(axis=-1))
    wanted = [best[row][given.loss_mask[row, 1:]].tolist() for row in range(len(best))]
    whole = engine(base, plan(2))
    whole.take_whole("to compare")
    for reader in (
        engine(base, plan(2)),
        engine(base, replace(plan(2), cpu_streams=2, loss_slice_tokens=3)),
        whole,
    ):
        rows = reader.read_rows(given)
        assert [row.likeliest.tolist() for row in rows] == wanted
        assert [row.loss for row in rows] == pytest.approx(engine(base, plan(6)).row_losses(given), rel=1e-6)
    assert [] in wanted and max(map(len, wanted)) > 3


@pytest.mark.parametrize("least", [16, 17])
def test_attention_of_rows_of_a_planned_width_is_in_blocks(
    base: BaseModel, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 16 is read without its last token, which makes 15: it counts as 16, as in the plan."""
    called: list[int] = []
    original = operations.blockwise_attention

    def noted(queries: mx.array, *args: Any, **settings: Any) -> mx.array:
        called.append(queries.shape[2])
        return original(queries, *args, **settings)

    monkeypatch.setattr(operations, "blockwise_attention", noted)
    weights = with_random_adapter(base)
    chosen = replace(plan(2), attention_block=4, attention_least=least)
    gradients_of(base, weights, batch(), chosen, seed=0)
    assert bool(called) == (least == 16)


@pytest.fixture
def cache_limit() -> Iterator[None]:
    """Freed buffers as a training keeps them between steps; MLX's limits belong to the process."""
    before = mx.set_cache_limit(2**16)
    mx.clear_cache()
    yield
    mx.set_cache_limit(before)
    mx.clear_cache()


def bounded(at_most: int) -> Plan:
    return replace(plan(2), keeps_buffers=True, predicted_peak_bytes=at_most)


@pytest.mark.usefixtures("cache_limit")
def test_a_step_that_keeps_freed_buffers_uses_them_again_and_gives_the_same(base: BaseModel) -> None:
    weights, given = with_random_adapter(base), batch()
    plain = gradients_of(base, weights, given, plan(2), seed=0)
    plain_cache = mx.get_cache_memory()
    for _ in range(2):
        kept = gradients_of(base, weights, given, bounded(2**32), seed=0)
        assert kept.loss_sum == plain.loss_sum
        assert all(mx.array_equal(value, plain.gradients[name]) for name, value in kept.gradients.items())
        assert mx.get_cache_memory() > 2 * plain_cache, "they wait for the next step"
    engine(base, plan(2)).evaluate([given])
    assert mx.set_cache_limit(2**16) == plan(2).cache_bytes, "a validation keeps as many as other work"


@pytest.mark.usefixtures("cache_limit")
def test_freed_buffers_and_arrays_together_stay_below_the_peak_that_is_foretold(base: BaseModel) -> None:
    weights, given = with_random_adapter(base), batch()
    mx.reset_peak_memory()
    gradients_of(base, weights, given, plan(2), seed=0)
    peak, seen = mx.get_peak_memory(), list[int]()

    def look(_: float) -> None:
        seen.append(mx.get_active_memory() + mx.get_cache_memory())

    for _ in range(2):
        gradients_of(base, weights, given, bounded(peak), seed=0, between_segments=look)
    assert max(seen) <= peak
    gradients_of(base, weights, given, bounded(0), seed=0, between_segments=look)
    assert mx.get_cache_memory() == 0, "no room, so they went back"


@pytest.mark.usefixtures("cache_limit")
def test_freed_buffers_of_layers_do_not_lie_beside_the_heads_nor_its_own_beside_theirs(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, given = with_random_adapter(base), batch()
    real, before, after, then = HeadLoss.losses_and_gradient, list[int](), list[int](), list[int]()

    def noted(head: HeadLoss, *arguments: Any) -> Any:
        before.append(mx.get_cache_memory())
        result = real(head, *arguments)
        mx.eval(result)
        after.append(mx.get_cache_memory())
        return result

    def look(_: float) -> None:
        if len(then) < len(after):  # the first segment after a head begins
            then.append(mx.get_cache_memory())

    monkeypatch.setattr(HeadLoss, "losses_and_gradient", noted)
    gradients_of(base, weights, given, bounded(2**32), seed=0, between_segments=look)
    assert before == [0, 0, 0] and len(then) == 3
    assert all(left < 0.5 * kept for left, kept in zip(then, after, strict=True))
