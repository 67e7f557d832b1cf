"""One training step under a plan: the loss of a batch and the gradients of the adapters.

A model is a row of segments: embedding, runs of layers, tail (norm, head and loss). A step is, for each micro-batch,

1. *forward*, segment by segment, each computed and freed but for what later segments take from it;
2. *tail*, in slices of the positions that bear loss: loss and its gradient together, so that no full logits exist;
3. *backward*, last segment first: computed again and differentiated (Chen et al. 2016, arXiv:1604.06174), its
   adapters' gradients kept, the rest handed on; it ends at the first layer that has an adapter.

The last layers of a plan stay *live*: they are computed once, together with the tail. With all of them live a step is
one graph, as in a plain training step. Everything is a sum over loss-bearing tokens, so that micro-batches add up to
the batch whatever their size: the plan changes memory and speed, never the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.operations import Operations, operations
from mlx_gardener.engine.split import (
    CannotSplit,
    Key,
    Wiring,
    arrays_of,
    filled,
    learn_wiring,
    map_arrays,
    marked,
    segments_of,
    standing_in,
    tail_logits,
)
from mlx_gardener.model.lora import nested
from mlx_gardener.platform.blas import blas_threads

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

    from mlx_gardener.dataset import Batch
    from mlx_gardener.engine.planner import Plan
    from mlx_gardener.engine.stream import StreamedWeights

Weights = dict[str, "mx.array"]


@dataclass(frozen=True)
class StepResult:
    """Sums over a batch: loss in nats, loss-bearing tokens, and the gradients of the loss sum (float32)."""

    loss_sum: float
    tokens: int
    gradients: Weights


@dataclass
class _Tape:
    """What a forward pass leaves for the backward pass: arguments of every call, and what segments hand on."""

    arguments: list[Any]
    values: dict[Key, mx.array] = field(default_factory=dict)


class Engine:
    """A base model cut into segments, and the plan by which it computes losses and gradients.

    Args:
        model: a frozen base, with or without adapters; adapters may come and go.
        plan: may be replaced between steps (``engine.plan = smaller``).
        dtype: what adapters are cast to on their way into the model.
        streamed: reads the weights of layers that are not kept in memory; None when all are.
        per_document: whether documents packed into a row see only themselves.

    Attributes:
        whole_because: why the model is taken whole, as one segment; None when it is cut.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        dtype: mx.Dtype,
        streamed: StreamedWeights | None = None,
        per_document: bool = False,
    ) -> None:
        import mlx.core as mx

        self.model, self.plan, self.dtype = model, plan, dtype
        self.streamed, self.per_document = streamed, per_document
        self.wiring: Wiring | None = None
        self.whole_because: str | None = None
        self._streams = [mx.new_stream(mx.cpu) for _ in range(plan.lanes)] if plan.lanes > 1 else []
        try:
            self.wiring = learn_wiring(model, mx.zeros((2, 7), dtype=mx.int32))
        except CannotSplit as error:
            self.take_whole(str(error))

    def take_whole(self, because: str) -> None:
        """Compute the model as one segment from now on."""
        self.wiring, self.whole_because = None, because

    def loss_and_gradients(
        self, weights: Weights, batch: Batch, *, seed: int, interrupt: Callable[[], None] | None = None
    ) -> StepResult:
        """Loss and gradients of ``batch``, added up over micro-batches.

        Args:
            weights: float32 masters by mlx-lm's names; the model's adapters have these values afterwards.
            batch: tokens and loss mask, both (rows, width).
            seed: decides the dropout of this step; micro-batches and layers take theirs from it.
            interrupt: called before every segment; may raise.
        """
        import mlx.core as mx

        total, count = 0.0, 0
        gradients: Weights = {name: mx.zeros_like(value) for name, value in weights.items()}
        self.model.train()
        self._put_adapters(weights)
        try:
            for number, part in enumerate(self._micro_batches(batch)):
                with self._computing(part):
                    step = _Step(self, weights, part, _mix(seed, number), interrupt or _never)
                    total += step.run(gradients)
                count += part.loss_tokens
        finally:
            self.model.eval()
            self._put_adapters(weights)
        return StepResult(total, count, gradients)

    def row_losses(self, batch: Batch, *, interrupt: Callable[[], None] | None = None) -> list[float]:
        """Loss of each row of ``batch`` in nats, summed over its loss-bearing tokens; no gradients."""
        self.model.eval()
        losses: list[float] = []
        for part in self._micro_batches(batch):
            with self._computing(part):
                step = _Step(self, {}, part, 0, interrupt or _never)
                losses += step.row_losses()
        return losses

    def evaluate(
        self, batches: Iterable[Batch], *, interrupt: Callable[[], None] | None = None
    ) -> tuple[float, int, int]:
        """(loss in nats summed over loss-bearing tokens, those tokens, the source bytes they spell); no gradients."""
        total, count, source_bytes = 0.0, 0, 0
        for batch in batches:
            total += sum(self.row_losses(batch, interrupt=interrupt))
            count += batch.loss_tokens
            source_bytes += batch.source_bytes
        return total, count, source_bytes

    def _put_adapters(self, weights: Weights) -> None:
        self.model.update(nested({name: value.astype(self.dtype) for name, value in weights.items()}))

    def _micro_batches(self, batch: Batch) -> Iterator[_MicroBatch]:
        rows, width = batch.tokens.shape
        size = self.plan.rows_for(width)
        for start in range(0, rows, size):
            here = slice(start, start + size)
            yield _MicroBatch(batch.tokens[here], batch.loss_mask[here], batch.document_ids[here])

    @contextmanager
    def _computing(self, part: _MicroBatch) -> Iterator[None]:
        """The plan's operations and threads, for one micro-batch."""
        plan = self.plan
        chosen = Operations(
            plan.attention_block,
            plan.attention_least,
            plan.dequantize,
            part.document_ids[:, :-1] if self.per_document else None,
        )
        lanes = self.lanes(len(part.tokens))
        with ExitStack() as stack:
            stack.enter_context(operations(chosen))
            if lanes > 1:
                stack.enter_context(blas_threads(max(1, (os.cpu_count() or 1) // lanes)))
            self._operations = chosen
            yield

    def lanes(self, rows: int) -> int:
        """Streams that ``rows`` are shared among."""
        return max(1, min(len(self._streams), rows))

    def run_layer(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> Any:
        """A layer's own code on all rows, shared among the lanes: MLX's CPU backend has one thread per stream."""
        import mlx.core as mx

        lanes = self.lanes(rows)
        if lanes == 1:
            return layer(*args, **kwargs)
        results, documents = [], self._operations.document_ids
        cuts = [rows * lane // lanes for lane in range(lanes + 1)]
        for stream, start, stop in zip(self._streams, cuts[:-1], cuts[1:], strict=False):
            here = slice(start, stop)

            def own_rows(array: mx.array, here: slice = here) -> mx.array:
                return array[here] if _has_rows(array, rows) else array

            with mx.stream(stream):
                own_args, own_kwargs = map_arrays(own_rows, (args, kwargs))
                if documents is not None:
                    self._operations.document_ids = documents[here]
                results.append(layer(*own_args, **own_kwargs))
        self._operations.document_ids = documents
        parts = [iter(arrays_of(result)) for result in results]
        return map_arrays(lambda _: mx.concatenate([next(part) for part in parts]), results[0])


@dataclass(frozen=True)
class _MicroBatch:
    """Rows that are computed at once; all (rows, width)."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    document_ids: np.ndarray

    @property
    def loss_tokens(self) -> int:
        return int(self.loss_mask[:, 1:].sum())


class _Step:
    """One micro-batch on its way through the segments."""

    def __init__(
        self, engine: Engine, weights: Weights, part: _MicroBatch, seed: int, interrupt: Callable[[], None]
    ) -> None:
        import mlx.core as mx

        self.engine, self.weights, self.seed, self.interrupt = engine, weights, seed, interrupt
        self.rows = len(part.tokens)
        self.inputs = mx.array(part.tokens[:, :-1])  # (rows, width - 1)
        wanted = part.loss_mask[:, 1:].reshape(-1).nonzero()[0]
        self.positions = wanted  # of the flattened (rows, width - 1), those that bear loss
        self.targets = mx.array(part.tokens[:, 1:].reshape(-1)[wanted])  # (positions,)

    def run(self, gradients: Weights) -> float:
        """The loss sum in nats; the adapters' gradients are added to ``gradients``."""
        if not len(self.positions):
            return 0.0
        if self.engine.wiring is None:
            return self._whole(gradients)
        wiring, plan = self.engine.wiring, self.engine.plan
        segments, live = segments_of(wiring.calls, per_segment=plan.layers_per_segment, live=plan.live_layers)
        adapters = self._adapters_of_layers(wiring)
        trained = [call for call, layer in enumerate(wiring.layer_of_call) if adapters[layer]]
        lowest = min(trained, default=wiring.calls)
        tape = self._forward(wiring, segments, live, keep=True)
        loss, slopes = self._finish(wiring, tape, live, adapters, lowest, gradients)
        for number in range(len(segments) - 1, -1, -1):
            first, last = segments[number]
            if last <= lowest:
                break
            self.interrupt()
            following = segments[number - 1] if number and segments[number - 1][1] > lowest else None
            with self._weights(wiring, (first, last), following):
                self._backward(wiring, tape, first, last, adapters, lowest, gradients, slopes)
        return loss

    def row_losses(self) -> list[float]:
        """The loss of every row in nats, without gradients."""
        import mlx.core as mx
        import numpy as np

        totals = np.zeros(self.rows)
        if not len(self.positions):
            return totals.tolist()
        wiring, plan = self.engine.wiring, self.engine.plan
        if wiring is None:
            self.interrupt()
            logits = self.engine.model(self.inputs).astype(mx.float32)
            picked = logits.reshape(-1, logits.shape[-1])[mx.array(self.positions)]
            losses = _cross_entropy(picked, self.targets)
        else:
            segments, end = segments_of(wiring.calls, per_segment=plan.layers_per_segment, live=0)
            tape = self._forward(wiring, segments, end, keep=False)
            hidden = self._at_positions(tape.values[wiring.calls - 1, 0])
            losses = self._tail(wiring, hidden, with_slope=False)[0]
        np.add.at(totals, self.positions // self.inputs.shape[1], np.array(losses, dtype=np.float64))
        return [float(total) for total in totals]

    def _adapters_of_layers(self, wiring: Wiring) -> list[dict[str, str]]:
        """For each layer, its adapters' names within the layer and in the model."""
        found: list[dict[str, str]] = [{} for _ in wiring.prefixes]
        for layer, prefix in enumerate(wiring.prefixes):
            for name in self.weights:
                if name.startswith(f"{prefix}."):
                    found[layer][name.removeprefix(f"{prefix}.")] = name
        return found

    def _forward(self, wiring: Wiring, segments: list[tuple[int, int]], live: int, *, keep: bool) -> _Tape:
        """Compute the calls before ``live``; with ``keep``, hold on to what the backward pass needs."""
        import mlx.core as mx

        tape = _Tape([None] * wiring.calls)
        at = {call: number for number, (first, last) in enumerate(segments) for call in range(first, last)}
        loaded = ExitStack()

        def on_call(layer: Any, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tape.arguments[call] = marked(wiring, call, args, kwargs) if keep else None
            if call >= live:
                return layer(*args, **kwargs)  # never computed: it only tells what later calls are given
            first, last = segments[at[call]]
            if call == first:
                self.interrupt()
                following = segments[at[call] + 1] if at[call] + 1 < len(segments) else None
                loaded.enter_context(self._weights(wiring, (first, last), following))
            mx.random.seed(_mix(self.seed, call))
            result = self.engine.run_layer(layer, args, kwargs, self.rows)
            given = {key[1] for key in wiring.given(first, last) if key[0] == call}
            for number, array in enumerate(arrays_of(result)):
                if number in given:
                    tape.values[call, number] = array
            if call == last - 1:
                mx.eval([tape.values[key] for key in wiring.given(first, last)])
                loaded.close()
                if not keep and last < wiring.calls:
                    tape.values.clear()
            return result

        with loaded, standing_in(wiring.layers, on_call):
            self.engine.model(self.inputs)
        return tape

    def _replay(
        self, wiring: Wiring, tape: _Tape, first: int, last: int, values: dict[Key, mx.array]
    ) -> dict[Key, mx.array]:
        """The calls ``first`` to ``last`` again, with ``values`` for what they take from earlier ones."""
        import mlx.core as mx

        known = dict(values)
        for call in range(first, last):
            args, kwargs = filled(tape.arguments[call], known)
            mx.random.seed(_mix(self.seed, call))
            result = self.engine.run_layer(wiring.layers[wiring.layer_of_call[call]], args, kwargs, self.rows)
            known.update({(call, number): array for number, array in enumerate(arrays_of(result))})
        return known

    def _backward(
        self,
        wiring: Wiring,
        tape: _Tape,
        first: int,
        last: int,
        adapters: list[dict[str, str]],
        lowest: int,
        gradients: Weights,
        slopes: dict[Key, mx.array],
    ) -> None:
        """Differentiate one segment; ``slopes`` of what it gives are used up, those of what it takes are added."""
        import mlx.core as mx

        given, taken = wiring.given(first, last), wiring.taken(first, last)
        below = (
            taken if lowest < first else []
        )  # what lies below needs no gradient when nothing there is trained
        names = self._names(wiring, first, last, adapters)
        outer = {key: tape.values[key] for key in taken}

        def segment(*arrays: mx.array) -> list[mx.array]:
            self._adopt(wiring, dict(zip(names, arrays[len(below) :], strict=True)), adapters)
            known = self._replay(wiring, tape, first, last, outer | dict(zip(below, arrays, strict=False)))
            return [known[key] for key in given]

        primals = [outer[key] for key in below] + [self.weights[name] for name in names]
        wanted = [slopes.pop(key, None) for key in given]
        cotangents = [
            mx.zeros_like(tape.values[key]) if slope is None else slope
            for key, slope in zip(given, wanted, strict=True)
        ]
        _, found = mx.vjp(segment, primals, cotangents)
        self._collect(found, below, names, slopes, gradients)
        self._adopt(wiring, {name: self.weights[name] for name in names}, adapters)
        for key in given:
            tape.values.pop(key, None)

    def _finish(
        self,
        wiring: Wiring,
        tape: _Tape,
        live: int,
        adapters: list[dict[str, str]],
        lowest: int,
        gradients: Weights,
    ) -> tuple[float, dict[Key, mx.array]]:
        """Live layers, tail and loss: the loss sum, and its slopes at what the live part takes from below."""
        import mlx.core as mx

        self.interrupt()
        end = (wiring.calls - 1, 0)
        taken = wiring.taken(live, wiring.calls) if live < wiring.calls else [end]
        below = taken if lowest < live else []
        names = self._names(wiring, live, wiring.calls, adapters)
        outer = {key: tape.values[key] for key in taken}
        primals = [outer[key] for key in below] + [self.weights[name] for name in names]
        slopes: dict[Key, mx.array] = {}

        def surrogate(*arrays: mx.array) -> tuple[mx.array, mx.array]:
            # Its gradient is the loss's: the tail gives d loss / d hidden, which is constant here.
            self._adopt(wiring, dict(zip(names, arrays[len(below) :], strict=True)), adapters)
            known = outer | dict(zip(below, arrays, strict=False))
            hidden = self._at_positions(self._replay(wiring, tape, live, wiring.calls, known)[end])
            losses, slope = self._tail(wiring, mx.stop_gradient(hidden), with_slope=True)
            product = hidden.astype(mx.float32) * mx.stop_gradient(slope).astype(mx.float32)
            return product.sum(), losses.sum()

        if not primals:
            losses = self._tail(wiring, self._at_positions(outer[end]), with_slope=False)[0]
            return float(losses.sum().item()), slopes  # type: ignore[arg-type]
        (_, loss), found = mx.vjp(surrogate, primals, [mx.ones(()), mx.zeros(())])
        self._collect(found, below, names, slopes, gradients, loss)
        self._adopt(wiring, {name: self.weights[name] for name in names}, adapters)
        return float(loss.item()), slopes  # type: ignore[arg-type]

    def _tail(self, wiring: Wiring, hidden: mx.array, *, with_slope: bool) -> tuple[mx.array, mx.array]:
        """(losses (positions,), d loss sum / d hidden), a slice of positions after the other on each lane."""
        import mlx.core as mx

        count, size = len(hidden), self.engine.plan.tail_slice_tokens
        streams: list[Any] = list(self.engine._streams) or [None]
        losses: list[mx.array] = []
        slopes: list[mx.array] = []
        for number, start in enumerate(range(0, count, size)):
            here, target = hidden[start : start + size], self.targets[start : start + size]
            if number >= len(streams):  # after the lane's slice before, or all logits are in memory at once
                before = number - len(streams)
                here = mx.depends([here], [losses[before], *slopes[before : before + 1]])[0]
            stream = streams[number % len(streams)]
            with mx.stream(stream) if stream is not None else nullcontext():
                if with_slope:
                    loss, slope = _loss_and_slope(wiring, here, target)
                    slopes.append(slope)
                else:
                    loss = _cross_entropy(tail_logits(wiring, here), target)
            losses.append(loss)
        return mx.concatenate(losses), mx.concatenate(slopes) if slopes else mx.zeros((0,))

    def _whole(self, gradients: Weights) -> float:
        """The model as one segment: its own call, full logits."""
        import mlx.core as mx

        self.interrupt()
        mx.random.seed(_mix(self.seed, 0))

        def loss_sum(masters: Weights) -> mx.array:
            self.engine._put_adapters(masters)
            logits = self.engine.model(self.inputs).astype(mx.float32)
            picked = logits.reshape(-1, logits.shape[-1])[mx.array(self.positions)]
            return _cross_entropy(picked, self.targets).sum()

        loss, found = mx.value_and_grad(loss_sum)(self.weights)
        mx.eval(loss, found)
        for name, gradient in found.items():
            gradients[name] = gradients[name] + gradient
        mx.eval(gradients)
        return float(loss.item())  # type: ignore[arg-type]  # a float32 scalar, not complex

    def _names(self, wiring: Wiring, first: int, last: int, adapters: list[dict[str, str]]) -> list[str]:
        """The adapters of the layers that the calls ``first`` to ``last`` call."""
        layers = dict.fromkeys(wiring.layer_of_call[first:last])
        return [name for layer in layers for name in adapters[layer].values()]

    def _adopt(self, wiring: Wiring, masters: Weights, adapters: list[dict[str, str]]) -> None:
        """Put adapter weights into the layers, in the model's type."""
        for layer, own in zip(wiring.layers, adapters, strict=True):
            present = {short: masters[name] for short, name in own.items() if name in masters}
            if present:
                layer.update(
                    nested({short: value.astype(self.engine.dtype) for short, value in present.items()})
                )

    def _collect(
        self,
        found: Iterable[mx.array],
        below: list[Key],
        names: list[str],
        slopes: dict[Key, mx.array],
        gradients: Weights,
        *others: mx.array,
    ) -> None:
        """Compute what differentiation found (and ``others``): slopes of earlier segments, adapters' gradients."""
        import mlx.core as mx

        values = list(found)
        changed = list(others)
        for key, value in zip(below, values, strict=False):
            slopes[key] = slopes[key] + value if key in slopes else value
            changed.append(slopes[key])
        for name, value in zip(names, values[len(below) :], strict=True):
            gradients[name] = gradients[name] + value
            changed.append(gradients[name])
        mx.eval(changed)

    def _at_positions(self, hidden: mx.array) -> mx.array:
        """(positions, ...) of hidden states (rows, width - 1, ...)."""
        import mlx.core as mx

        return hidden.reshape(-1, *hidden.shape[2:])[mx.array(self.positions)]

    @contextmanager
    def _weights(
        self, wiring: Wiring, segment: tuple[int, int], following: tuple[int, int] | None
    ) -> Iterator[None]:
        """The base weights of a segment in memory, and those of the following one on their way."""
        streamed = self.engine.streamed
        if streamed is None:
            yield
            return
        here = set(wiring.layer_of_call[slice(*segment)])
        soon = set(wiring.layer_of_call[slice(*following)]) if following else set()
        with streamed.in_memory(here, soon):
            yield


def _loss_and_slope(wiring: Wiring, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """(losses, d loss sum / d hidden) of some positions: d loss / d logits is softmax - one-hot, with one exp."""
    import mlx.core as mx

    def logits_of(hidden: mx.array) -> mx.array:
        return tail_logits(wiring, hidden)

    logits = logits_of(hidden)  # (positions, vocab)
    weights = mx.softmax(logits, axis=-1)
    total = logits.max(axis=-1) - mx.log(weights.max(axis=-1))  # log-sum-exp
    losses = total - mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    change = weights.at[mx.arange(len(targets)), targets].add(-1.0)
    # Most heads are linear: their gradient needs no logits, so that those of `mx.vjp` are never computed.
    _, (slope,) = mx.vjp(logits_of, [hidden], [change])
    return losses, slope


def _cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Losses in nats, (positions,), of logits (positions, vocab)."""
    import mlx.nn as nn

    return nn.losses.cross_entropy(logits, targets, reduction="none")


def _has_rows(array: mx.array, rows: int) -> bool:
    """Whether the first axis of an argument counts rows; a square mask counts positions."""
    return array.ndim > 1 and array.shape[0] == rows and not (array.ndim == 2 and array.shape[1] == rows)


def _mix(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number + 1) % 2**63


def _never() -> None:
    """Nothing interrupts."""
