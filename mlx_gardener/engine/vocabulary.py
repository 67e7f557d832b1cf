"""Embedding and LM head in shards: the head in slices of the vocabulary, both on disk when they alone break the budget.

In a small model with a large vocabulary, or a large one under a small budget, these two tables are most of what is
left in memory when layers are streamed. A batch needs only the rows of its own tokens from the embedding; the head is
taken in slices of the vocabulary (`engine.head_loss`). Rows of a table lie one after the other in a safetensors file, so a
slice is one read. Cost: the head is read twice per micro-batch, the next slice while this one computes. A quantised
head that is in memory gains too: its floats are made twice per micro-batch, and not for every slice of positions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from mlx_gardener.engine.call_graph import CannotSplit
from mlx_gardener.platform.untrusted import read_header

if TYPE_CHECKING:
    import numpy as np

_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "U8": "uint8"}
_KINDS = (nn.Embedding, nn.QuantizedEmbedding, nn.Linear, nn.QuantizedLinear)


@dataclass(frozen=True)
class Shard:
    """The head's rows of the tokens ``first`` to ``first + len(rows)``; ``rows`` (shard, hidden), ``bias`` (shard,)."""

    first: int
    rows: mx.array
    bias: mx.array | None

    def products(self, states: mx.array) -> mx.array:
        """(positions, shard) of hidden states (positions, hidden)."""
        found = states @ self.rows.T
        return found if self.bias is None else found + self.bias

    def back(self, cotangent: mx.array) -> mx.array:
        """The gradient at the hidden states (positions, hidden), of the products' (positions, shard)."""
        return cotangent @ self.rows

    def holds(self, targets: mx.array) -> mx.array:
        """Which targets are tokens of this shard."""
        return (targets >= self.first) & (targets < self.first + len(self.rows))

    def one_hot(self, targets: mx.array) -> mx.array:
        """(positions, shard): 1 at every target."""
        tokens = mx.arange(self.first, self.first + len(self.rows))
        return (targets[:, None] == tokens[None]).astype(mx.float32)


class _Table:
    """Rows of one embedding or head in the model's files."""

    def __init__(self, module: nn.Module, arrays: Mapping[str, _OnDisk | _InMemory], dtype: mx.Dtype) -> None:
        self._arrays, self._dtype = arrays, dtype
        self.rows = len(module.weight)
        self._packing = {
            name: getattr(module, name) for name in ("group_size", "bits", "mode") if hasattr(module, name)
        }
        bias = module.get("bias")
        self.bias = None if bias is None else bias.astype(dtype)

    def read(self, first: int, last: int) -> dict[str, Any]:
        """The stored rows ``first`` to ``last`` (exclusive); from disk on any thread, as no MLX is in it."""
        return {name: array.rows(first, last) for name, array in self._arrays.items()}

    def floats(self, rows: dict[str, Any]) -> mx.array:
        """(rows, hidden) of stored rows."""
        stored = {name: self._arrays[name].as_stored(found) for name, found in rows.items()}
        if "scales" not in stored:
            return stored["weight"].astype(self._dtype)
        biases = stored["biases"].astype(self._dtype) if "biases" in stored else None
        scales = stored["scales"].astype(self._dtype) if biases is not None else stored["scales"]
        return mx.dequantize(stored["weight"], scales, biases, **self._packing).astype(self._dtype)

    def pick(self, ids: np.ndarray) -> mx.array:
        """(tokens, hidden) of any tokens."""
        import numpy as np

        found = [self.read(int(token), int(token) + 1) for token in ids]
        return self.floats({name: np.concatenate([one[name] for one in found]) for name in self._arrays})


@dataclass(frozen=True)
class _InMemory:
    """An array of a module."""

    array: mx.array

    def rows(self, first: int, last: int) -> mx.array:
        """(last - first, ...), not copied yet."""
        return self.array[first:last]

    def as_stored(self, rows: mx.array) -> mx.array:
        """The rows as they are."""
        return rows


@dataclass(frozen=True)
class _OnDisk:
    """An array of a safetensors file: where it begins (bytes), its type, and the shape of a row."""

    file: Path
    offset: int
    dtype: str
    row_shape: tuple[int, ...]

    def rows(self, first: int, last: int) -> np.ndarray:
        """(last - first, ...); bfloat16, which NumPy does not know, as uint16."""
        import numpy as np

        plain = {"bfloat16": "uint16"}.get(self.dtype, self.dtype)
        size = int(np.prod(self.row_shape)) * np.dtype(plain).itemsize
        with self.file.open("rb") as stream:
            data = os.pread(stream.fileno(), (last - first) * size, self.offset + first * size)
        if len(data) != (last - first) * size:
            raise OSError(f"{self.file.name} ends before its arrays do")
        return np.frombuffer(data, dtype=plain).reshape(last - first, *self.row_shape)

    def as_stored(self, rows: np.ndarray) -> mx.array:
        """Rows in the type of the file."""
        found = mx.array(rows)
        return found.view(mx.bfloat16) if self.dtype == "bfloat16" else found


class _StandIn(nn.Module):
    """Takes the place of an embedding or a head."""

    def __init__(
        self, vocabulary: VocabularyShards, table: _Table, own: nn.Module | None, *, embeds: bool
    ) -> None:
        super().__init__()
        self.vocabulary, self.table, self.embeds = vocabulary, table, embeds
        if own is not None:
            self.own = own

    def __call__(self, x: mx.array) -> mx.array:
        if not self.embeds:
            return self.as_linear(x)
        if "own" in self:
            found: mx.array = self.own(x)
            return found
        import numpy as np

        ids, places = np.unique(np.array(x), return_inverse=True)
        return self.table.pick(ids)[mx.array(places.reshape(x.shape))]

    def as_linear(self, x: mx.array) -> mx.array:
        if self.vocabulary.idle and "own" in self:
            found: mx.array = self.own.as_linear(x) if self.embeds else self.own(x)
            return found
        return self.vocabulary.answer(self.table, x)


class VocabularyShards:
    """Embedding and head of a model, in shards of the vocabulary.

    Args:
        model: has the tables it was loaded with, read or not.
        vocab: tokens in the tables.
        dtype: what is computed in.
        path: the model's directory, to read rows from its ``model*.safetensors``; None when the tables are in memory.

    Raises:
        CannotSplit: the model has no such tables, or the files do not hold them under its names.
    """

    def __init__(self, model: nn.Module, vocab: int, *, dtype: mx.Dtype, path: Path | None = None) -> None:
        self._model, self._on_disk = model, path is not None
        self._own = dict(vocabulary_tables(model, vocab))
        if not self._own:
            raise CannotSplit("its embedding and head are not of the usual kinds")
        entries = {} if path is None else _entries(path)
        self._tables = {
            name: _Table(module, _find(entries, name, module) if path else _held(module), dtype)
            for name, module in self._own.items()
        }
        self._answer: Callable[[mx.array], mx.array] | None = None
        self._head: _Table | None = None
        self._reader = ThreadPoolExecutor(1, "head")

    @property
    def idle(self) -> bool:
        """Whether nobody takes the head in shards now."""
        return self._answer is None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While this lasts the model has stand-ins, then its own tables again."""
        self._put(self._stand_ins())
        try:
            yield
        finally:
            self._put(self._own)

    def install(self) -> None:
        """Put stand-ins into the model for good; tables that are on disk are let go from memory."""
        self._put(self._stand_ins())
        self._own = {}

    def _stand_ins(self) -> dict[str, nn.Module]:
        return {
            name: _StandIn(
                self,
                table,
                None if self._on_disk else self._own[name],
                embeds=isinstance(self._own[name], (nn.Embedding, nn.QuantizedEmbedding)),
            )
            for name, table in self._tables.items()
        }

    def _put(self, modules: dict[str, nn.Module]) -> None:
        from mlx.utils import tree_unflatten

        self._model.update_modules(tree_unflatten(list(modules.items())))

    def answer(self, table: _Table, x: mx.array) -> mx.array:
        """What the head gives for ``x`` (..., hidden), as whoever called the model wants it."""
        self._head = table
        if self._answer is None:
            raise RuntimeError("the head is on disk: the model cannot be called as it is")
        return self._answer(x)

    def without_head(self, call: Callable[[], Any]) -> Any:
        """``call()``, in which the head gives nothing of use."""
        return self._answering(lambda x: mx.zeros((*x.shape[:-1], 1)), call)

    def head_input(self, call: Callable[[], Any]) -> mx.array:
        """What the head is given in ``call()``."""
        seen: list[mx.array] = []

        def note(x: mx.array) -> mx.array:
            seen.append(x)
            return mx.zeros((*x.shape[:-1], 1))

        self._answering(note, call)
        return seen[0]

    def with_products(self, products: mx.array, call: Callable[[], mx.array]) -> mx.array:
        """``call()``, in which the head gives ``products``."""
        return self._answering(lambda _: products, call)

    def _answering(self, answer: Callable[[mx.array], mx.array], call: Callable[[], Any]) -> Any:
        before, self._answer = self._answer, answer
        try:
            return call()
        finally:
            self._answer = before

    def slices(self, rows: int, shards: int) -> Iterator[list[Shard]]:
        """The head in slices of ``rows`` rows, each in up to ``shards`` shards; the next is read while one is used."""
        table = self._head
        assert table is not None, "the head was not called yet"
        cuts = [(first, min(first + rows, table.rows)) for first in range(0, table.rows, rows)]
        coming: Future[dict[str, Any]] | None = None
        for number, (first, last) in enumerate(cuts):
            stored = table.read(first, last) if coming is None else coming.result()
            if self._on_disk and number + 1 < len(cuts):
                coming = self._reader.submit(table.read, *cuts[number + 1])
            size = -(-(last - first) // shards)
            yield [
                Shard(
                    first + at,
                    table.floats({name: array[at : at + size] for name, array in stored.items()}),
                    None if table.bias is None else table.bias[first + at : min(first + at + size, last)],
                )
                for at in range(0, last - first, size)
            ]


def vocabulary_tables(model: nn.Module, vocab: int) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of what has a row for every token: embedding and head."""
    for name, module in model.named_modules():
        if isinstance(module, _KINDS) and len(module.weight) == vocab and type(module) in _KINDS:
            yield name, module


def _held(module: nn.Module) -> dict[str, _InMemory]:
    return {leaf: _InMemory(module[leaf]) for leaf in ("weight", "scales", "biases") if leaf in module}


def _entries(path: Path) -> dict[str, _OnDisk]:
    found = {}
    for file in sorted(path.glob("model*.safetensors")):
        with file.open("rb") as stream:
            data = 8 + int.from_bytes(stream.read(8), "little")
        for name, entry in read_header(file).items():
            if entry["dtype"] in _TYPES:
                shape = tuple(entry["shape"])
                start = data + entry["data_offsets"][0]
                found[name] = _OnDisk(file, start, _TYPES[entry["dtype"]], shape[1:])
    return found


def _find(entries: dict[str, _OnDisk], name: str, module: nn.Module) -> dict[str, _OnDisk]:
    """The arrays of a table in the files: under its own name, or one that ends with it or that it ends with."""
    wanted = [leaf for leaf in ("weight", "scales", "biases") if leaf in module]
    found = {}
    for leaf in wanted:
        full = f"{name}.{leaf}"
        fits = [
            entry
            for key, entry in entries.items()
            if key == full or key.endswith(f".{full}") or full.endswith(f".{key}")
        ]
        if len(fits) != 1 or fits[0].row_shape != tuple(module[leaf].shape[1:]):
            raise CannotSplit(f"its files hold no {full}")
        found[leaf] = fits[0]
    return found
