"""How a base model computes under a plan: which operations, rows at once, CPU streams and threads of BLAS.

In: a model, cut at its layers (`engine.call_graph`), and a `Plan`. Out: layer calls on all rows, and the settings of MLX
and BLAS that hold while a micro-batch, or text, is computed. Cost: one look at a few tokens, to learn the layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.batch import BACKWARD, MicroBatch, Weights
from mlx_gardener.engine.call_graph import (
    CallGraph,
    CannotSplit,
    arrays_of,
    learn_call_graph,
    map_arrays,
)
from mlx_gardener.engine.cpu_streams import cpu_stream
from mlx_gardener.engine.operations import Operations, operations
from mlx_gardener.engine.states import room_for_states
from mlx_gardener.engine.tiles import in_tiles
from mlx_gardener.model.lora import nested
from mlx_gardener.platform.blas import blas_threads

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

    from mlx_gardener.dataset import Batch
    from mlx_gardener.engine.plan import Plan
    from mlx_gardener.engine.products_kept import KeptProducts
    from mlx_gardener.engine.stream import StreamedWeights
    from mlx_gardener.engine.vocabulary import VocabularyShards

#: Rows at once where nothing is differentiated, for each of a training step's: a layer's own work forward is less than half
#: of that with its gradient, and nothing is kept for later.
FORWARD_ROWS = 2
#: Rows of at least so many blocks of queries are taken in blocks where nothing is differentiated.
FORWARD_BLOCKS = 2


class Executor:
    """A base model cut into segments, and the plan by which its layers are computed.

    Args:
        model: a frozen base, with or without adapters; adapters may come and go.
        plan: may be replaced between steps (``engine.plan = smaller``).
        dtype: what adapters are cast to on their way into the model.
        streamed: reads the weights of layers that are not kept in memory; None when all are.
        vocabulary: embedding and head, where the head is taken in slices of the vocabulary.
        per_document: whether documents packed into a row see only themselves.
        scratch_dir: where hidden states are written that a plan has on disk; the system's place where None.

    Attributes:
        takes_tiles: whether tiles, and kept products, give the gradients that are given without (`engine.verify`).
        whole_because: why the model is taken whole, as one segment; None when it is cut.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        dtype: mx.Dtype,
        streamed: StreamedWeights | None = None,
        vocabulary: VocabularyShards | None = None,
        per_document: bool = False,
        scratch_dir: Path | None = None,
    ) -> None:
        import mlx.core as mx

        self.scratch_dir, self.takes_tiles = scratch_dir, True
        self.model, self.plan, self.dtype = model, plan, dtype
        self.streamed, self.vocabulary, self.per_document = streamed, vocabulary, per_document
        self.graph: CallGraph | None = None
        self.whole_because: str | None = None
        self.streams = (
            [cpu_stream(f"stream {number}") for number in range(plan.cpu_streams)]
            if plan.cpu_streams > 1
            else []
        )
        try:
            self.graph = learn_call_graph(model, mx.zeros((2, 7), dtype=mx.int32))
        except CannotSplit as error:
            self.take_whole(str(error))

    def take_whole(self, because: str) -> None:
        """Compute the model as one segment from now on."""
        self.graph, self.whole_because = None, because

    def put_adapters(self, weights: Weights) -> None:
        """Give the model's adapters these values, in the type they compute in."""
        self.model.update(nested({name: value.astype(self.dtype) for name, value in weights.items()}))

    def smaller_plan(self) -> Plan | None:
        """The next smaller plan; None when nothing is left to give."""
        return self.plan.smaller(free_bytes=room_for_states(self.scratch_dir))

    @property
    def calls(self) -> int:
        """Layer calls in a forward pass, after each of which a step may be ended; 1 for a model that is taken whole."""
        return 1 if self.graph is None else self.graph.calls

    @property
    def step_work(self) -> float:
        """The work of a micro-batch's step, in forward passes of a layer."""
        if self.graph is None:
            return 1.0
        again = self.calls - min(self.plan.kept_layers, self.calls)
        return self.calls * (1 + BACKWARD) + again + self.head_work * (1 + BACKWARD)

    @property
    def forward_work(self) -> float:
        """The work of a micro-batch that is only read, in forward passes of a layer."""
        return 1.0 if self.graph is None else self.calls + self.head_work

    @cached_property
    def head_work(self) -> float:
        """The LM head's product in forward passes of a layer, by the bytes of their weights; 1 where those are on disk."""
        from mlx.utils import tree_flatten

        if self.graph is None or self.streamed is not None:
            return 1.0
        layers = [[value for _, value in tree_flatten(one.parameters())] for one in self.graph.layers]
        inside = {id(value) for values in layers for value in values}
        outside = [value for _, value in tree_flatten(self.model.parameters()) if id(value) not in inside]
        largest = max(sum(value.nbytes for value in values) for values in layers)
        return max((value.nbytes for value in outside), default=largest) / largest

    @property
    def forward_tokens(self) -> int:
        """Positions that keep all streams busy where nothing is differentiated: of a smaller batch some have no row."""
        most = 1 if self.graph is None else FORWARD_ROWS
        return max(
            max(rows, min(most * rows, len(self.streams))) * width
            for width, rows in self.plan.rows_of_width.items()
        )

    def micro_batches(self, batch: Batch, *, forward_only: bool = False) -> Iterator[MicroBatch]:
        """``batch`` in parts of as many rows as the plan takes at once."""
        rows, width = batch.tokens.shape
        size = self.plan.rows_for(width)
        if forward_only and self.graph is not None:
            size *= FORWARD_ROWS
        for start in range(0, rows, size):
            here = slice(start, start + size)
            yield MicroBatch(start, batch.tokens[here], batch.loss_mask[here], batch.document_ids[here])

    @contextmanager
    def computing(
        self, part: MicroBatch, seed: int, first_row: int, *, forward_only: bool = False
    ) -> Iterator[None]:
        """The plan's operations and threads, for one micro-batch."""
        import mlx.nn as nn

        self._operations = replace(
            self._plain_operations(forward_only=forward_only),
            document_ids=part.document_ids[:, :-1] if self.per_document else None,
            row_seeds=tuple(_mix(seed, first_row + part.first_row + row) for row in range(len(part.tokens))),
            dropouts={
                id(module): number
                for number, (_, module) in enumerate(self.model.named_modules())
                if isinstance(module, nn.Dropout)
            },
        )
        with operations(self._operations), self._threads(self.streams_for(len(part.tokens))):
            yield

    def _plain_operations(self, *, forward_only: bool) -> Operations:
        plan = self.plan
        # A row of a planned width is read without its last token.
        least = max(0, plan.attention_least - 1)
        if (
            forward_only
        ):  # causal blocks leave out half of the exponentials, which a gradient's sums would eat up
            least = min(least, FORWARD_BLOCKS * plan.attention_block)
            if plan.forward_least is not None:  # as measured
                least = max(0, plan.forward_least - 1)
        return Operations(plan.attention_block, least, plan.dequantize, forward_only=forward_only)

    @contextmanager
    def reading(self, streams: int, *, in_blocks: bool = False) -> Iterator[None]:
        """The plan's operations and threads, for calls of the model that only read and write text.

        Args:
            streams: that the caller computes on.
            in_blocks: share each product with quantised weights among all streams; for one stream.
        """
        chosen = self._plain_operations(forward_only=True)
        if in_blocks:
            chosen, streams = replace(chosen, product_streams=tuple(self.streams)), len(self.streams)
        with operations(chosen), self._threads(streams):
            yield

    @contextmanager
    def _threads(self, streams: int) -> Iterator[None]:
        """Threads of BLAS while ``streams`` streams compute; all where one does."""
        if streams <= 1:
            yield
            return
        with blas_threads(max(1, (os.cpu_count() or 1) // streams)):
            yield

    @contextmanager
    def head_threads(self) -> Iterator[None]:
        """Threads of BLAS while head and loss are computed: it uses all streams, however few the rows."""
        with self._threads(len(self.streams)):
            yield

    def streams_for(self, rows: int) -> int:
        """Streams that ``rows`` are shared among."""
        return max(1, min(len(self.streams), rows))

    def run_layer(
        self,
        layer: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        rows: int,
        *,
        tiled: bool = True,
        products: KeptProducts | None = None,
    ) -> Any:
        """A layer's own code on all rows, shared among the CPU streams: MLX's CPU backend has one thread per stream.

        Args:
            tiled: by tiles of positions, where the plan has them; False for a layer whose activations are kept.
            products: where the layer keeps its products, or finds them; it takes no tiles then.
        """
        tile = self.plan.tile_tokens if tiled and self.takes_tiles else 0
        positions = max(1, tile // rows) if tile else 0
        if products is not None:
            with products.of(layer, self._operations) as call:
                return self._on_streams(call, args, kwargs, rows)
        with in_tiles(layer, positions, self._operations):
            return self._on_streams(layer, args, kwargs, rows)

    def _on_streams(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> Any:
        import mlx.core as mx

        streams = self.streams_for(rows)
        if streams == 1:
            return layer(*args, **kwargs)
        results, everything = [], replace(self._operations)
        cuts = [rows * part // streams for part in range(streams + 1)]
        for stream, start, stop in zip(self.streams, cuts[:-1], cuts[1:], strict=False):
            here = slice(start, stop)

            def own_rows(array: mx.array, here: slice = here) -> mx.array:
                return array[here] if _has_rows(array, rows) else array

            with mx.stream(stream):
                own_args, own_kwargs = map_arrays(own_rows, (args, kwargs))
                self._operations.take_rows(everything, here)
                results.append(layer(*own_args, **own_kwargs))
        self._operations.take_rows(everything, slice(None))
        parts = [iter(arrays_of(result)) for result in results]
        return map_arrays(lambda _: mx.concatenate([next(part) for part in parts]), results[0])


def _has_rows(array: mx.array, rows: int) -> bool:
    """Whether the first axis of an argument counts rows; a square mask counts positions."""
    return array.ndim > 1 and array.shape[0] == rows and not (array.ndim == 2 and array.shape[1] == rows)


def _mix(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number + 1) % 2**63
