"""One micro-batch on its way through the segments: forward, LM head and loss, backward.

What a forward pass leaves behind is a tape: the arguments of every layer's call, and the arrays that segments hand on.
A segment's gradient is that of replaying its calls from the tape. The last layers of a plan may keep their activations: they are
computed once, together with head and loss. With all of them kept a step is one graph, as in a plain training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.batch import BACKWARD, MicroBatch, Pulse, Weights
from mlx_gardener.engine.call_graph import CallGraph, Key, arrays_of, filled, marked, segments_of, standing_in
from mlx_gardener.engine.executor import Executor
from mlx_gardener.engine.head_loss import HeadLoss, cross_entropy
from mlx_gardener.engine.products_kept import KeptProducts
from mlx_gardener.engine.states import States
from mlx_gardener.model.lora import nested

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np


@dataclass
class _Tape:
    """What a forward pass leaves for the backward pass, by the numbers of layer calls.

    ``arguments`` of each call, with `FromCall` for arrays of other calls; ``values``, the arrays that later segments take, by
    `call_graph.Key` (call, number of the array); ``products`` of the calls that keep them.
    """

    arguments: list[Any]
    values: States
    products: dict[int, KeptProducts]


class ForwardBackward:
    """A micro-batch and what is known of it while it passes.

    Names that the methods share: ``kept`` is the first call whose activations are kept, ``lowest`` the first with an adapter, where
    the backward pass ends; a segment is the calls ``first`` to ``last`` (exclusive); ``adapters`` are names by layer
    (`_adapters_of_layers`); ``cotangents`` are gradients of the loss sum at arrays that calls made, by `call_graph.Key`.

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
        if self.engine.graph is None:
            return self._whole(gradients)
        graph, plan = self.engine.graph, self.engine.plan
        segments, kept = segments_of(graph.calls, kept=plan.kept_layers)
        adapters = self._adapters_of_layers(graph)
        trained = [call for call, layer in enumerate(graph.layer_of_call) if adapters[layer]]
        lowest = min(trained, default=graph.calls)
        on_disk = plan.states_on_disk
        with States(on_disk=on_disk, directory=self.engine.scratch_dir if on_disk else None) as states:
            tape = self._forward(graph, segments, kept, states, keep=True)
            loss, cotangents = self._finish(graph, tape, kept, adapters, lowest, gradients)
            for number in range(len(segments) - 1, -1, -1):
                first, last = segments[number]
                if last <= lowest:
                    break
                self.between((1 + BACKWARD) * (last - first))
                following = segments[number - 1] if number and segments[number - 1][1] > lowest else None
                with self._weights(graph, (first, last), following):
                    self._backward(graph, tape, first, last, adapters, lowest, gradients, cotangents)
        return loss

    def losses_and_likeliest(self) -> tuple[np.ndarray, np.ndarray]:
        """Loss in nats and likeliest token at each of ``positions``, both (positions,), without gradients."""
        import mlx.core as mx
        import numpy as np

        if not len(self.positions):
            return np.zeros(0), np.zeros(0, dtype=np.int32)
        graph = self.engine.graph
        if graph is None:
            self.between()
            logits = self.engine.model(self.inputs).astype(mx.float32)
            picked = logits.reshape(-1, logits.shape[-1])[mx.array(self.positions)]
            losses, likeliest = cross_entropy(picked, self.targets), picked.argmax(axis=-1)
        else:
            segments, end = segments_of(graph.calls, kept=0)
            tape = self._forward(graph, segments, end, States(), keep=False)
            hidden = self._at_positions(tape.values[graph.calls - 1, 0])
            self.between(self.engine.head_work)
            with self.engine.head_threads():
                losses, likeliest = self._head_loss(graph).losses_and_likeliest(hidden)
                mx.eval(losses, likeliest)
        return np.array(losses, dtype=np.float64), np.array(likeliest, dtype=np.int32)

    def _adapters_of_layers(self, graph: CallGraph) -> list[dict[str, str]]:
        """For each layer, its adapters' names within the layer and in the model."""
        found: list[dict[str, str]] = [{} for _ in graph.prefixes]
        for layer, prefix in enumerate(graph.prefixes):
            for name in self.weights:
                if name.startswith(f"{prefix}."):
                    found[layer][name.removeprefix(f"{prefix}.")] = name
        return found

    def _forward(
        self, graph: CallGraph, segments: list[tuple[int, int]], kept: int, states: States, *, keep: bool
    ) -> _Tape:
        """Compute the calls before ``kept``; with ``keep``, hold on to what the backward pass needs, arrays in ``states``."""
        import mlx.core as mx

        engine, tape = self.engine, _Tape([None] * graph.calls, states, {})
        at = {call: number for number, (first, last) in enumerate(segments) for call in range(first, last)}
        loaded = ExitStack()

        def on_call(layer: Any, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tape.arguments[call] = marked(graph, call, args, kwargs) if keep else None
            if call >= kept:
                return layer(*args, **kwargs)  # never computed: it only tells what later calls are given
            first, last = segments[at[call]]
            if call == first:
                self.between(last - first)
                following = segments[at[call] + 1] if at[call] + 1 < len(segments) else None
                loaded.enter_context(self._weights(graph, (first, last), following))
            if keep and call >= kept - engine.plan.kept_products:
                tape.products[call] = KeptProducts()
            products = tape.products.get(call)
            result = engine.run_layer(layer, args, kwargs, self.rows, products=products)
            given = {key[1] for key in graph.given(first, last) if key[0] == call}
            for number, array in enumerate(arrays_of(result)):
                if number in given:
                    states[call, number] = array
            if call == last - 1:
                mx.eval(
                    [states[key] for key in graph.given(first, last)],
                    [] if products is None else products.arrays,
                )
                loaded.close()
                if not keep and last < graph.calls:
                    states.drop_all()
                if last < kept:  # what the topmost ones give is taken at once
                    for key in graph.given(first, last):
                        states.put_away(key)
            return result

        vocabulary = engine.vocabulary
        with loaded, standing_in(graph.layers, on_call):
            if vocabulary is None:
                engine.model(self.inputs)
            else:
                vocabulary.without_head(lambda: engine.model(self.inputs))
        return tape

    def _replay(
        self,
        graph: CallGraph,
        tape: _Tape,
        first: int,
        last: int,
        values: dict[Key, mx.array],
        on_call: Callable[[list[mx.array]], None] | None = None,
    ) -> dict[Key, mx.array]:
        """The calls ``first`` to ``last`` again, with ``values`` for what they take from earlier ones.

        Args:
            on_call: given the arrays that each call makes, where their activations are kept.
        """

        known = dict(values)
        for call in range(first, last):
            args, kwargs = filled(tape.arguments[call], known)
            layer = graph.layers[graph.layer_of_call[call]]
            result = self.engine.run_layer(
                layer, args, kwargs, self.rows, tiled=on_call is None, products=tape.products.get(call)
            )
            made = arrays_of(result)
            if on_call is not None:
                on_call(made)
            known.update({(call, number): array for number, array in enumerate(made)})
        return known

    def _backward(
        self,
        graph: CallGraph,
        tape: _Tape,
        first: int,
        last: int,
        adapters: list[dict[str, str]],
        lowest: int,
        gradients: Weights,
        cotangents: dict[Key, mx.array],
    ) -> None:
        """Differentiate one segment; ``cotangents`` of what it gives are used up, those of what it takes are added."""
        import mlx.core as mx

        given, taken = graph.given(first, last), graph.taken(first, last)
        below = (
            taken if lowest < first else []
        )  # what lies below needs no gradient when nothing there is trained
        by_layer = self._names(graph, first, last, adapters)
        names = [name for layer in by_layer for name in layer]
        outer = {key: tape.values[key] for key in taken}

        def segment(*arrays: mx.array) -> list[mx.array]:
            self._adopt(graph, dict(zip(names, arrays[len(below) :], strict=True)), adapters)
            known = self._replay(graph, tape, first, last, outer | dict(zip(below, arrays, strict=False)))
            return [known[key] for key in given]

        primals = [outer[key] for key in below] + [self.weights[name] for name in names]
        wanted = [cotangents.pop(key, None) for key in given]
        incoming = [
            mx.zeros_like(tape.values[key]) if cotangent is None else cotangent
            for key, cotangent in zip(given, wanted, strict=True)
        ]
        _, found = mx.vjp(segment, primals, incoming)
        self._collect(found, below, by_layer, cotangents, gradients)
        self._adopt(graph, {name: self.weights[name] for name in names}, adapters)
        for key in given:
            tape.values.drop(key)
        for call in range(first, last):
            tape.products.pop(call, None)

    def _finish(
        self,
        graph: CallGraph,
        tape: _Tape,
        kept: int,
        adapters: list[dict[str, str]],
        lowest: int,
        gradients: Weights,
    ) -> tuple[float, dict[Key, mx.array]]:
        """Layers whose activations are kept, LM head and loss: the loss sum, and the cotangents of what those layers take."""
        import mlx.core as mx

        head_work = self.engine.head_work * (1 + BACKWARD)
        self.between(head_work if kept >= graph.calls else 1)
        end, head_loss = (graph.calls - 1, 0), self._head_loss(graph)
        cotangents: dict[Key, mx.array] = {}
        if kept >= graph.calls:  # the head stands alone
            self.engine.plan.drop_buffers()
            hidden = tape.values[end]
            with self.engine.head_threads():
                if lowest < graph.calls:
                    losses, gradient = head_loss.losses_and_gradient(self._at_positions(hidden))
                    flat = mx.zeros_like(hidden).reshape(-1, *hidden.shape[2:])
                    flat = flat.at[mx.array(self.positions)].add(gradient.astype(hidden.dtype))
                    cotangents[end] = flat.reshape(hidden.shape)
                else:
                    losses, _ = head_loss.losses_and_likeliest(self._at_positions(hidden))
                loss = losses.sum()
                mx.eval(loss, cotangents)
            self.engine.plan.drop_buffers()
            return float(loss.item()), cotangents  # type: ignore[arg-type]  # a float32 scalar, not complex
        taken = graph.taken(kept, graph.calls)
        below = taken if lowest < kept else []
        by_layer = self._names(graph, kept, graph.calls, adapters)
        names = [name for layer in by_layer for name in layer]
        outer = {key: tape.values[key] for key in taken}
        primals = [outer[key] for key in below] + [self.weights[name] for name in names]
        #: What is computed together, in order. All at once, MLX would allocate far ahead of what it computes.
        stages: list[list[mx.array]] = []

        def surrogate(*arrays: mx.array) -> tuple[mx.array, mx.array]:
            # Its gradient is the loss's: head and loss give d loss / d hidden, which is constant here.
            self._adopt(graph, dict(zip(names, arrays[len(below) :], strict=True)), adapters)
            known = outer | dict(zip(below, arrays, strict=False))
            known = self._replay(graph, tape, kept, graph.calls, known, stages.append)
            hidden = self._at_positions(known[end])
            with self.engine.head_threads():
                losses, gradient = head_loss.losses_and_gradient(mx.stop_gradient(hidden), stages.append)
            product = hidden.astype(mx.float32) * mx.stop_gradient(gradient).astype(mx.float32)
            return product.sum(), losses.sum()

        if not primals:
            loss, found = surrogate()[1], list[mx.array]()
        else:
            (_, loss), found = mx.vjp(surrogate, primals, [mx.ones(()), mx.zeros(())])
        for number in range(len(stages)):
            mx.eval(stages[number])
            stages[number] = []
            if kept + number < graph.calls:
                # After the last layer: the head, and the gradient of that layer with it.
                self.between(1 if kept + number + 1 < graph.calls else head_work + BACKWARD)
            else:
                self.between.again()
        mx.eval(loss)
        self._collect(found, below, by_layer, cotangents, gradients, self.between)
        self._adopt(graph, {name: self.weights[name] for name in names}, adapters)
        return float(loss.item()), cotangents  # type: ignore[arg-type]

    def _head_loss(self, graph: CallGraph) -> HeadLoss:
        engine = self.engine
        return HeadLoss(
            graph,
            self.targets,
            slice_tokens=engine.plan.loss_slice_tokens,
            streams=engine.streams,
            vocabulary=engine.vocabulary,
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
        self, graph: CallGraph, first: int, last: int, adapters: list[dict[str, str]]
    ) -> list[list[str]]:
        """The adapters of each of the layers that the calls ``first`` to ``last`` call."""
        return [list(adapters[layer].values()) for layer in dict.fromkeys(graph.layer_of_call[first:last])]

    def _adopt(self, graph: CallGraph, masters: Weights, adapters: list[dict[str, str]]) -> None:
        """Put adapter weights into the layers, in the model's type."""
        for layer, own in zip(graph.layers, adapters, strict=True):
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
        cotangents: dict[Key, mx.array],
        gradients: Weights,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute what differentiation found, the last layer's gradients first, and add it to what is there.

        Args:
            found: cotangents of what ``below`` names, then the gradients of the adapters ``names``.
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
        cotangents.update(
            (key, cotangents[key] + value if key in cotangents else value)
            for key, value in zip(below, found, strict=False)
        )
        mx.eval([gradients[name] for name, _ in first], [cotangents[key] for key in below])

    def _at_positions(self, hidden: mx.array) -> mx.array:
        """(positions, ...) of hidden states (rows, width - 1, ...)."""
        import mlx.core as mx

        return hidden.reshape(-1, *hidden.shape[2:])[mx.array(self.positions)]

    @contextmanager
    def _weights(
        self, graph: CallGraph, segment: tuple[int, int], following: tuple[int, int] | None
    ) -> Iterator[None]:
        """The base weights of a segment in memory, and those of the following one on their way."""
        streamed = self.engine.streamed
        if streamed is None:
            yield
            return
        here = set(graph.layer_of_call[slice(*segment)])
        soon = set(graph.layer_of_call[slice(*following)]) if following else set()
        with streamed.in_memory(here, soon):
            yield
