"""One training step: the loss of a batch and the gradients of the adapters, in micro-batches that fit the plan.

Everything is a sum over loss-bearing tokens, so that micro-batches add up to the whole batch whatever their size:
the mean is taken once, by the caller, over all tokens of the update. Padding rows and positions without loss weigh
nothing. Cost: one forward and one backward pass per micro-batch; memory of one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_gardener.model.lora import nested

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

    from mlx_gardener.dataset import Batch
    from mlx_gardener.engine.planner import Plan

Weights = dict[str, "mx.array"]


@dataclass(frozen=True)
class StepResult:
    """Sums over a batch: loss in nats, loss-bearing tokens, and the gradients of the loss sum (float32)."""

    loss_sum: float
    tokens: int
    gradients: Weights


def loss_and_gradients(
    model: nn.Module,
    weights: Weights,
    batch: Batch,
    plan: Plan,
    *,
    dtype: mx.Dtype,
    seed: int,
    interrupt: Callable[[], None] | None = None,
) -> StepResult:
    """Loss and gradients of ``batch``, added up over micro-batches of ``plan.rows_of_width`` rows.

    Args:
        model: a base with adapters attached; its adapter weights are those of ``weights`` afterwards.
        weights: float32 masters by mlx-lm's names.
        batch: tokens and loss mask, both (rows, width).
        dtype: what the adapters are cast to on their way into the model.
        seed: decides the dropout of this step; each micro-batch takes its own from it.
        interrupt: called before every micro-batch; may raise.
    """
    import mlx.core as mx

    def loss_sum(masters: Weights, tokens: mx.array, mask: mx.array) -> mx.array:
        model.update(nested({name: value.astype(dtype) for name, value in masters.items()}))
        return _token_losses(model, tokens, mask).sum()

    differentiate = mx.value_and_grad(loss_sum)
    total, count, gradients = 0.0, 0, None
    model.train()
    try:
        for number, (tokens, mask, loss_tokens) in enumerate(_micro_batches(batch, plan)):
            if interrupt is not None:
                interrupt()
            mx.random.seed((seed * 1_000_003 + number) % 2**63)
            loss, gradient = differentiate(weights, mx.array(tokens), mx.array(mask))
            if gradients is not None:
                gradient = {name: value + gradients[name] for name, value in gradient.items()}
            mx.eval(loss, gradient)
            total += float(loss.item())  # type: ignore[arg-type]  # a float32 scalar, not complex
            count, gradients = count + loss_tokens, gradient
    finally:
        model.eval()
        model.update(nested({name: value.astype(dtype) for name, value in weights.items()}))
    if gradients is None:
        gradients = {name: mx.zeros_like(value) for name, value in weights.items()}
    return StepResult(total, count, gradients)


def row_losses(
    model: nn.Module, batch: Batch, plan: Plan, *, interrupt: Callable[[], None] | None = None
) -> list[float]:
    """Loss of each row of ``batch`` in nats, summed over its loss-bearing tokens; no gradients."""
    import mlx.core as mx

    model.eval()
    size = plan.rows_for(batch.tokens.shape[1])
    losses: list[float] = []
    for start in range(0, len(batch.tokens), size):
        if interrupt is not None:
            interrupt()
        tokens, mask = (mx.array(part[start : start + size]) for part in (batch.tokens, batch.loss_mask))
        losses += _token_losses(model, tokens, mask).sum(axis=1).tolist()  # type: ignore[arg-type]
    return losses


def evaluate_batches(
    model: nn.Module, batches: Iterable[Batch], plan: Plan, *, interrupt: Callable[[], None] | None = None
) -> tuple[float, int, int]:
    """(loss in nats summed over loss-bearing tokens, those tokens, the source bytes they spell); no gradients."""
    total, count, source_bytes = 0.0, 0, 0
    for batch in batches:
        total += sum(row_losses(model, batch, plan, interrupt=interrupt))
        count += batch.loss_tokens
        source_bytes += batch.source_bytes
    return total, count, source_bytes


def _token_losses(model: nn.Module, tokens: mx.array, mask: mx.array) -> mx.array:
    """Cross-entropy in nats where ``mask`` says that a token is a target, 0 elsewhere: (rows, width - 1), float32."""
    import mlx.core as mx
    import mlx.nn as nn

    logits = model(tokens[:, :-1]).astype(mx.float32)  # (rows, width - 1, vocab)
    losses = nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="none")  # (rows, width - 1)
    return mx.where(mask[:, 1:], losses, 0.0)


def _micro_batches(batch: Batch, plan: Plan) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    rows, width = batch.tokens.shape
    size = plan.rows_for(width)
    for start in range(0, rows, size):
        mask = batch.loss_mask[start : start + size]
        if mask.any():
            yield batch.tokens[start : start + size], mask, int(mask[:, 1:].sum())
