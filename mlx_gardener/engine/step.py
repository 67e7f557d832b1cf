"""One training step under a plan: the loss of a batch and the gradients of the adapters.

A model is a row of segments: embedding, runs of layers, LM head and loss (norm, head and loss). A step is, for each micro-batch,

1. *forward*, segment by segment, each computed and freed but for what later segments take from it;
2. *LM head and loss*, in slices, so that no full logits exist: loss and its gradient together (`engine.head_loss`);
3. *backward*, last segment first: computed again and differentiated (Chen et al. 2016, arXiv:1604.06174), its
   adapters' gradients kept, the rest handed on; it ends at the first layer that has an adapter.

This file takes a batch apart and adds its parts up; `engine.backprop` is what happens to one part. Everything is a sum
over loss-bearing tokens, so that micro-batches add up to the batch whatever their size, and dropout's masks belong to
rows: the plan changes memory and speed, never the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_gardener.engine.backprop import ForwardBackward
from mlx_gardener.engine.batch import BetweenSegments, Pulse, Weights
from mlx_gardener.engine.executor import Executor

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.dataset import Batch


@dataclass(frozen=True)
class StepResult:
    """Sums over a batch: loss in nats, loss-bearing tokens, and the gradients of the loss sum (float32)."""

    loss_sum: float
    tokens: int
    gradients: Weights


@dataclass(frozen=True)
class RowReading:
    """A row's loss in nats, summed over its loss-bearing tokens, and for each of them the likeliest token there.

    ``likeliest`` are ids, int32 (loss-bearing tokens,): where one is the token that stands there, greedy writing would give it.
    """

    loss: float
    likeliest: np.ndarray


class Engine(Executor):
    """A base model cut into segments, and the plan by which it computes losses and gradients; `Executor` says from what."""

    def loss_and_gradients(
        self,
        weights: Weights,
        batch: Batch,
        *,
        seed: int,
        first_row: int = 0,
        between_segments: BetweenSegments | None = None,
    ) -> StepResult:
        """Loss and gradients of ``batch``, added up over micro-batches.

        Args:
            weights: float32 masters by mlx-lm's names; the model's adapters have these values afterwards.
            batch: tokens and loss mask, both (rows, width).
            seed: decides the dropout of this step; rows and modules take theirs from it.
            first_row: the number of the batch's first row, where the batch is a part of a larger one.
        """
        import mlx.core as mx

        total, count = 0.0, 0
        gradients: Weights = {name: mx.zeros_like(value) for name, value in weights.items()}
        self.model.train()
        self.put_adapters(weights)
        parts = list(self.micro_batches(batch))
        pulse = self._pulse(between_segments, len(parts) * self.step_work)
        try:
            for part in parts:
                with self.computing(part, seed, first_row):
                    total += ForwardBackward(self, weights, part, pulse).loss_and_gradients(gradients)
                count += part.loss_tokens
        finally:
            self.model.eval()
            self.put_adapters(weights)
        return StepResult(total, count, gradients)

    def _pulse(self, tell: BetweenSegments | None, work: float) -> Pulse:
        """What is called between the segments of a step: it bounds freed buffers, too."""

        def between(share: float) -> None:
            self.plan.bound_cache()
            if tell is not None:
                tell(share)

        return Pulse(between, work)

    def row_losses(self, batch: Batch, *, between_segments: BetweenSegments | None = None) -> list[float]:
        """Loss of each row of ``batch`` in nats, summed over its loss-bearing tokens; no gradients."""
        return [row.loss for row in self.read_rows(batch, between_segments=between_segments)]

    def read_rows(self, batch: Batch, *, between_segments: BetweenSegments | None = None) -> list[RowReading]:
        """What the model makes of each row of ``batch``; no gradients."""
        self.model.eval()
        found: list[RowReading] = []
        parts = list(self.micro_batches(batch, forward_only=True))
        self.plan.set_limits()
        pulse = Pulse(between_segments, len(parts) * self.forward_work)
        for part in parts:
            with self.computing(part, 0, 0, forward_only=True):
                losses, likeliest = ForwardBackward(self, {}, part, pulse).losses_and_likeliest()
            ends = part.loss_mask[:, 1:].sum(axis=1).cumsum()
            for start, end in zip([0, *ends], ends, strict=False):
                found.append(RowReading(float(losses[start:end].sum()), likeliest[start:end]))
        return found

    def evaluate(
        self, batches: Iterable[Batch], *, between_segments: BetweenSegments | None = None
    ) -> tuple[float, int, int]:
        """(loss in nats summed over loss-bearing tokens, those tokens, the source bytes they spell); no gradients."""
        total, count, source_bytes = 0.0, 0, 0
        for batch in batches:
            total += sum(self.row_losses(batch, between_segments=between_segments))
            count += batch.loss_tokens
            source_bytes += batch.source_bytes
        return total, count, source_bytes
