"""One micro-batch on its way through the segments: forward, tail, backward.

What a forward pass leaves behind is a tape: the arguments of every layer's call, and the arrays that segments hand on.
A segment's gradient is that of replaying its calls from the tape. The last layers of a plan may stay *live*: they are
computed once, together with the tail. With all of them live a step is one graph, as in a plain training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.batch import MicroBatch, Pulse, Weights
from mlx_gardener.engine.call_graph import Key, Wiring, arrays_of, filled, marked, segments_of, standing_in
from mlx_gardener.engine.executor import Executor
from mlx_gardener.engine.tail import Tail, cross_entropy
from mlx_gardener.model.lora import nested

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass
class _Tape:
    """What a forward pass leaves for the backward pass."""

    arguments: list[Any]
    values: dict[Key, mx.array] = field(default_factory=dict)


class Passage:
    """A micro-batch and what is known of it while it passes.

    Args:
        weights: float32 masters of the adapters by mlx-lm's names; empty when no gradients are wanted.
        between: told of every segment; may raise.
    """

    def __init__(self, engine: Executor, weights: Weights, part: MicroBatch, between: Pulse) -> None:
        import mlx.core as mx

        self.engine, self.weights, self.between = engine, weights, between
        self.rows = len(part.tokens)
        self.inputs = mx.array(part.tokens[:, :-1])  # (rows, width - 1)
        wanted = part.loss_mask[:, 1:].reshape(-1).nonzero()[0]
        self.positions = wanted  # of the flattened (rows, width - 1), those that bear loss
        self.targets = mx.array(part.tokens[:, 1:].reshape(-1)[wanted])  # (positions,)

    def loss_and_gradients(self, gradients: Weights) -> float:
        """The loss sum in nats; the adapters' gradients are added to ``gradients``."""
        if not len(self.positions):
            return 0.0
        if self.engine.wiring is None:
            return self._whole(gradients)
        wiring, plan = self.engine.wiring, self.engine.plan
        segments, live = segments_of(wiring.calls, live=plan.kept_layers)
        adapters = self._adapters_of_layers(wiring)
        trained = [call for call, layer in enumerate(wiring.layer_of_call) if adapters[layer]]
        lowest = min(trained, default=wiring.calls)
        tape = self._forward(wiring, segments, live, keep=True)
        loss, slopes = self._finish(wiring, tape, live, adapters, lowest, gradients)
        for number in range(len(segments) - 1, -1, -1):
            first, last = segments[number]
            if last <= lowest:
                break
            self.between()
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
        wiring = self.engine.wiring
        if wiring is None:
            self.between()
            logits = self.engine.model(self.inputs).astype(mx.float32)
            picked = logits.reshape(-1, logits.shape[-1])[mx.array(self.positions)]
            losses = cross_entropy(picked, self.targets)
        else:
            segments, end = segments_of(wiring.calls, live=0)
            tape = self._forward(wiring, segments, end, keep=False)
            hidden = self._at_positions(tape.values[wiring.calls - 1, 0])
            with self.engine.tail_threads():
                losses = self._tail(wiring).losses(hidden)
                mx.eval(losses)
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
                self.between()
                following = segments[at[call] + 1] if at[call] + 1 < len(segments) else None
                loaded.enter_context(self._weights(wiring, (first, last), following))
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

        words = self.engine.words
        with loaded, standing_in(wiring.layers, on_call):
            if words is None:
                self.engine.model(self.inputs)
            else:
                words.without_head(lambda: self.engine.model(self.inputs))
        return tape

    def _replay(
        self,
        wiring: Wiring,
        tape: _Tape,
        first: int,
        last: int,
        values: dict[Key, mx.array],
        on_call: Callable[[list[mx.array]], None] = lambda arrays: None,
    ) -> dict[Key, mx.array]:
        """The calls ``first`` to ``last`` again, with ``values`` for what they take from earlier ones.

        Args:
            on_call: given the arrays that each call makes.
        """

        known = dict(values)
        for call in range(first, last):
            args, kwargs = filled(tape.arguments[call], known)
            result = self.engine.run_layer(wiring.layers[wiring.layer_of_call[call]], args, kwargs, self.rows)
            made = arrays_of(result)
            on_call(made)
            known.update({(call, number): array for number, array in enumerate(made)})
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
        by_layer = self._names(wiring, first, last, adapters)
        names = [name for layer in by_layer for name in layer]
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
        self._collect(found, below, by_layer, slopes, gradients)
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

        self.between()
        end, tail = (wiring.calls - 1, 0), self._tail(wiring)
        slopes: dict[Key, mx.array] = {}
        if live >= wiring.calls:  # the tail stands alone
            hidden = tape.values[end]
            with self.engine.tail_threads():
                if lowest < wiring.calls:
                    losses, slope = tail.losses_and_slope(self._at_positions(hidden))
                    flat = mx.zeros(
                        (hidden.shape[0] * hidden.shape[1], *hidden.shape[2:]), dtype=hidden.dtype
                    )
                    flat = flat.at[mx.array(self.positions)].add(slope.astype(hidden.dtype))
                    slopes[end] = flat.reshape(hidden.shape)
                else:
                    losses = tail.losses(self._at_positions(hidden))
                loss = losses.sum()
                mx.eval(loss, slopes)
            return float(loss.item()), slopes  # type: ignore[arg-type]  # a float32 scalar, not complex
        taken = wiring.taken(live, wiring.calls)
        below = taken if lowest < live else []
        by_layer = self._names(wiring, live, wiring.calls, adapters)
        names = [name for layer in by_layer for name in layer]
        outer = {key: tape.values[key] for key in taken}
        primals = [outer[key] for key in below] + [self.weights[name] for name in names]
        #: What is computed together, in order. All at once, MLX would allocate far ahead of what it computes.
        stages: list[list[mx.array]] = []

        def surrogate(*arrays: mx.array) -> tuple[mx.array, mx.array]:
            # Its gradient is the loss's: the tail gives d loss / d hidden, which is constant here.
            self._adopt(wiring, dict(zip(names, arrays[len(below) :], strict=True)), adapters)
            known = outer | dict(zip(below, arrays, strict=False))
            known = self._replay(wiring, tape, live, wiring.calls, known, stages.append)
            hidden = self._at_positions(known[end])
            with self.engine.tail_threads():
                losses, slope = tail.losses_and_slope(mx.stop_gradient(hidden), stages.append)
            product = hidden.astype(mx.float32) * mx.stop_gradient(slope).astype(mx.float32)
            return product.sum(), losses.sum()

        if not primals:
            loss, found = surrogate()[1], list[mx.array]()
        else:
            (_, loss), found = mx.vjp(surrogate, primals, [mx.ones(()), mx.zeros(())])
        for number in range(len(stages)):
            mx.eval(stages[number])
            stages[number] = []
            if live + number < wiring.calls:
                self.between()
            else:
                self.between.again()
        mx.eval(loss)
        self._collect(found, below, by_layer, slopes, gradients, self.between)
        self._adopt(wiring, {name: self.weights[name] for name in names}, adapters)
        return float(loss.item()), slopes  # type: ignore[arg-type]

    def _tail(self, wiring: Wiring) -> Tail:
        engine = self.engine
        return Tail(
            wiring,
            self.targets,
            slice_tokens=engine.plan.loss_slice_tokens,
            streams=engine.streams,
            words=engine.words,
            between=self.between.again,
        )

    def _whole(self, gradients: Weights) -> float:
        """The model as one segment: its own call, full logits."""
        import mlx.core as mx

        self.between()

        def loss_sum(masters: Weights) -> mx.array:
            self.engine.put_adapters(masters)
            logits = self.engine.model(self.inputs).astype(mx.float32)
            picked = logits.reshape(-1, logits.shape[-1])[mx.array(self.positions)]
            return cross_entropy(picked, self.targets).sum()

        loss, found = mx.value_and_grad(loss_sum)(self.weights)
        mx.eval(loss, found)
        for name, gradient in found.items():
            gradients[name] = gradients[name] + gradient
        mx.eval(gradients)
        return float(loss.item())  # type: ignore[arg-type]  # a float32 scalar, not complex

    def _names(
        self, wiring: Wiring, first: int, last: int, adapters: list[dict[str, str]]
    ) -> list[list[str]]:
        """The adapters of each of the layers that the calls ``first`` to ``last`` call."""
        return [list(adapters[layer].values()) for layer in dict.fromkeys(wiring.layer_of_call[first:last])]

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
        found: list[mx.array],
        below: list[Key],
        names: list[list[str]],
        slopes: dict[Key, mx.array],
        gradients: Weights,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute what differentiation found, the last layer's gradients first, and add it to what is there.

        Args:
            found: slopes of what ``below`` names, then the gradients of the adapters ``names``.
            names: adapters by layer.
            between: called after each layer but the first.
        """
        import mlx.core as mx

        of_adapters = iter(found[len(below) :])
        by_layer = [[(name, next(of_adapters)) for name in layer] for layer in names]
        for layer in by_layer[:0:-1]:
            gradients.update((name, gradients[name] + value) for name, value in layer)
            mx.eval([gradients[name] for name, _ in layer])
            between()
        first = by_layer[0] if by_layer else []
        gradients.update((name, gradients[name] + value) for name, value in first)
        slopes.update(
            (key, slopes[key] + value if key in slopes else value)
            for key, value in zip(below, found, strict=False)
        )
        mx.eval([gradients[name] for name, _ in first], [slopes[key] for key in below])

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
