"""Norm, head and loss, in slices: loss and its gradient together, so that no full logits exist.

Two ways. *Slices of positions* when the head is in memory as floats: the model's own code gives the logits of some
positions. *Slices of the vocabulary* when it is on disk or quantised: the logits of all positions for a shard of it, twice,
first for the normaliser (an online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867), then for the gradient. That is
three products instead of two, but the head is read, or made floats, twice per micro-batch and not twice per slice. What a
model does to logits (soft-caps, scales) must be token by token for that; the check at load finds where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.call_graph import CallGraph, head_logits
from mlx_gardener.model.exponentials import exp, softmax_parts

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.engine.vocabulary import VocabularyShards

#: Logits of a slice of the vocabulary: 4 Mi floats, 16 MiB, about four times over for the arrays around them.
SLICE_FLOATS = 4 * 1024**2
#: Rows of the head (one a token of the vocabulary) that a slice has at most, and at least.
MOST_ROWS, LEAST_ROWS = 8192, 256


def slice_rows(positions: int) -> int:
    """Rows of the head whose logits are in memory at once, for so many positions."""
    return max(LEAST_ROWS, min(MOST_ROWS, SLICE_FLOATS // max(1, positions)))


class HeadLoss:
    """What comes after the last layer, for one micro-batch.

    Args:
        targets: int32 (positions,).
        slice_tokens: positions whose logits are in memory at once, on each stream.
        streams: CPU streams to share the work among; empty for the default one.
        vocabulary: the head in shards; None to take it in slices of positions.
        between: called between slices; may raise.
    """

    def __init__(
        self,
        graph: CallGraph,
        targets: mx.array,
        *,
        slice_tokens: int,
        streams: list[mx.Stream],
        vocabulary: VocabularyShards | None,
        between: Callable[[], None],
    ) -> None:
        self._graph, self._targets, self._slice_tokens = graph, targets, slice_tokens
        self._streams: list[Any] = list(streams) or [None]
        self._vocabulary, self._between = vocabulary, between

    def _compute(self, arrays: list[mx.array]) -> None:
        """What is done with a slice's arrays where nobody else takes them (``on_slices``)."""
        import mlx.core as mx

        mx.eval(arrays)
        self._between()

    def losses_and_likeliest(self, hidden: mx.array) -> tuple[mx.array, mx.array]:
        """Losses in nats, and the ids of the likeliest tokens, both (positions,), of hidden states (positions, ...)."""
        if self._vocabulary is not None:
            return self._by_shards(hidden, with_gradient=False)
        return self._by_positions(hidden, with_gradient=False)

    def losses_and_gradient(
        self, hidden: mx.array, on_slices: Callable[[list[mx.array]], None] | None = None
    ) -> tuple[mx.array, mx.array]:
        """Losses (positions,), and the gradient of their sum at ``hidden``, of its shape.

        Args:
            on_slices: given the arrays of the slices that are to be computed side by side, one such list after the
                other, where nothing can be computed yet; None computes them.
        """
        if self._vocabulary is not None:
            return self._by_shards(hidden, with_gradient=True, on_slices=on_slices)
        return self._by_positions(hidden, with_gradient=True, on_slices=on_slices)

    def _by_positions(
        self,
        hidden: mx.array,
        *,
        with_gradient: bool,
        on_slices: Callable[[list[mx.array]], None] | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Slices of positions, one on each stream at a time: MLX allocates ahead of what it computes, all logits else.

        Returns:
            losses, and the gradient or else the likeliest tokens.
        """
        import mlx.core as mx

        losses, others = list[mx.array](), list[mx.array]()
        starts = list(range(0, len(hidden), self._slice_tokens))
        for first in range(0, len(starts), len(self._streams)):
            at_once = starts[first : first + len(self._streams)]
            for stream, start in zip(self._streams, at_once, strict=False):
                here = slice(start, start + self._slice_tokens)
                with _on(stream):
                    if with_gradient:
                        loss, other = _loss_and_gradient(self._graph, hidden[here], self._targets[here])
                    else:
                        logits = head_logits(self._graph, hidden[here])
                        loss, other = cross_entropy(logits, self._targets[here]), logits.argmax(axis=-1)
                losses.append(loss)
                others.append(other)
            (on_slices or self._compute)([*losses[-len(at_once) :], *others[-len(at_once) :]])
        return mx.concatenate(losses), mx.concatenate(others)

    def _by_shards(
        self,
        hidden: mx.array,
        *,
        with_gradient: bool,
        on_slices: Callable[[list[mx.array]], None] | None = None,
    ) -> tuple[mx.array, mx.array]:
        """One slice of the vocabulary after the other, each computed and freed; a slice is shared among the streams in shards.

        Returns:
            as `_by_positions`.
        """
        import mlx.core as mx

        compute = on_slices or self._compute

        vocabulary, graph, targets = self._vocabulary, self._graph, self._targets
        assert vocabulary is not None

        def before_head(hidden: mx.array) -> mx.array:
            return vocabulary.head_input(lambda: head_logits(graph, hidden))[0]

        def after_head(products: mx.array) -> mx.array:
            return vocabulary.with_products(products[None], lambda: head_logits(graph, hidden))

        size = slice_rows(len(hidden))
        states = before_head(hidden)  # (positions, hidden)
        parts: list[tuple[mx.array, ...]] = []
        for shards in vocabulary.slices(size, len(self._streams)):
            for stream, shard in zip(self._streams, shards, strict=False):
                with _on(stream):
                    logits = after_head(shard.products(states))  # (positions, shard)
                    highest = logits.max(axis=-1)
                    total = exp(logits - highest[:, None]).sum(axis=-1)
                    at = mx.clip(targets - shard.first, 0, logits.shape[-1] - 1)
                    own = mx.take_along_axis(logits, at[:, None], axis=-1)[:, 0]
                    likeliest = [] if with_gradient else [logits.argmax(axis=-1) + shard.first]
                    parts.append((highest, total, mx.where(shard.holds(targets), own, 0.0), *likeliest))
            compute([array for part in parts[-len(shards) :] for array in part])
        all_highest = mx.stack([part[0] for part in parts])  # (slices, positions)
        highest = all_highest.max(axis=0)
        sums = mx.stack([part[1] for part in parts]) * exp(all_highest - highest)
        normaliser = highest + mx.log(sums.sum(axis=0))
        losses = normaliser - mx.stack([part[2] for part in parts]).sum(axis=0)
        if not with_gradient:
            best = all_highest.argmax(axis=0)[None]
            return losses, mx.take_along_axis(mx.stack([part[3] for part in parts]), best, axis=0)[0]
        gradient = mx.zeros_like(states)
        for shards in vocabulary.slices(size, len(self._streams)):
            added = []
            for stream, shard in zip(self._streams, shards, strict=False):
                with _on(stream):
                    products = shard.products(states)
                    probabilities = exp(after_head(products) - normaliser[:, None])
                    change = probabilities - shard.one_hot(targets)  # d loss / d logits is softmax - one-hot
                    _, (inner,) = mx.vjp(after_head, [products], [change])
                    added.append(shard.back(inner))
            gradient = gradient + sum(added[1:], added[0])
            compute([gradient])
        _, (outer,) = mx.vjp(before_head, [hidden], [gradient])
        return losses, outer


def _on(stream: Any) -> Any:
    """A block whose operations run on a stream; None is the default one."""
    import mlx.core as mx

    return mx.stream(stream) if stream is not None else nullcontext()


def _loss_and_gradient(graph: CallGraph, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """(losses, d loss sum / d hidden) of some positions: d loss / d logits is softmax - one-hot, with one exp."""
    import mlx.core as mx

    def logits_of(hidden: mx.array) -> mx.array:
        return head_logits(graph, hidden)

    logits = logits_of(hidden)  # (positions, vocab)
    weights, divisor, log_sums = softmax_parts(logits)
    losses = (log_sums - mx.take_along_axis(logits, targets[:, None], axis=-1))[:, 0]
    change = (weights / divisor).at[mx.arange(len(targets)), targets].add(-1.0)
    # Most heads are linear: their gradient needs no logits, so that those of `mx.vjp` are never computed.
    _, (gradient,) = mx.vjp(logits_of, [hidden], [change])
    return losses, gradient


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Losses in nats, (positions,), of logits (positions, vocab)."""
    import mlx.core as mx

    _, _, log_sums = softmax_parts(logits)
    return (log_sums - mx.take_along_axis(logits, targets[:, None], axis=-1))[:, 0]
