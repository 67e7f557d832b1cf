"""Rows of tokens with a loss mask, packed to a few fixed widths, and the batches of an epoch.

A token is a target when ``loss_mask`` is True at its position; it is predicted from the ones before it in its row.
Padding is never a target, and neither is the first token of a document, which would be guessed across documents.
Documents of one row see each other, as in the repository-level training of code models: they come from one repository.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Document:
    """Token ids of one example, all int32 or bool of the same length.

    ``target_bytes`` are the bytes of source that the targets spell; ``path`` is the file they come from, if one; ``label`` is
    for whoever wants to know the row again that a document became.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    target_bytes: int
    splittable: bool
    path: str = ""
    label: Hashable = None


@dataclass(frozen=True)
class Batch:
    """Rows of one width: ``tokens`` int32, ``loss_mask`` bool and ``document_ids`` int32, all (rows, width).

    Document ids count from 1 within a row; padding has 0. ``row_bytes`` int64 (rows,) are the source bytes that each
    row's targets spell, ``paths`` the file of each row, "" where a row holds several documents, ``labels`` likewise, None there.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    document_ids: np.ndarray
    loss_tokens: int
    source_bytes: int
    row_bytes: np.ndarray
    paths: tuple[str, ...]
    labels: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class _Matrix:
    """All rows of one width."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    document_ids: np.ndarray
    source_bytes: np.ndarray  # (rows,)
    paths: tuple[str, ...]  # (rows,)
    labels: tuple[Hashable, ...]  # (rows,)

    def batch(self, rows: np.ndarray) -> Batch:
        mask = self.loss_mask[rows]
        row_bytes = self.source_bytes[rows]
        return Batch(
            tokens=self.tokens[rows],
            loss_mask=mask,
            document_ids=self.document_ids[rows],
            loss_tokens=int(mask.sum()),
            source_bytes=int(row_bytes.sum()),
            row_bytes=row_bytes,
            paths=tuple(self.paths[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
        )


class RowSet:
    """Rows by width, and the order in which an epoch takes them."""

    def __init__(self, matrices: dict[int, _Matrix]) -> None:
        self._matrices = {width: matrix for width, matrix in sorted(matrices.items()) if len(matrix.tokens)}

    def __len__(self) -> int:
        return sum(len(matrix.tokens) for matrix in self._matrices.values())

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths there are rows of, rising."""
        return tuple(self._matrices)

    @property
    def total_tokens(self) -> int:
        """Positions of all rows, padding included."""
        return sum(matrix.tokens.size for matrix in self._matrices.values())

    @property
    def padding_tokens(self) -> int:
        """Positions that hold nothing."""
        return sum(int((matrix.document_ids == 0).sum()) for matrix in self._matrices.values())

    @property
    def loss_tokens(self) -> int:
        """Positions that are targets."""
        return sum(int(matrix.loss_mask.sum()) for matrix in self._matrices.values())

    @property
    def source_bytes(self) -> int:
        """Bytes of source text that the targets spell."""
        return sum(int(matrix.source_bytes.sum()) for matrix in self._matrices.values())

    def update_count(self, tokens_per_update: int) -> int:
        """Batches in one epoch."""
        return sum(
            -(-len(matrix.tokens) // rows_per_batch(tokens_per_update, width))
            for width, matrix in self._matrices.items()
        )

    def batches(
        self, tokens_per_update: int, *, seed: int | None, epoch: int = 0, start: int = 0
    ) -> Iterator[Batch]:
        """The batches of one epoch, each of one width and about ``tokens_per_update`` positions.

        Args:
            seed: with ``epoch`` decides which rows meet and the order of the batches; None keeps the rows' order.
            start: batches to leave out at the beginning, for going on exactly.
        """
        import numpy as np

        generator = None if seed is None else np.random.default_rng((seed, epoch))
        plan: list[tuple[int, np.ndarray]] = []
        for width, matrix in self._matrices.items():
            order = np.arange(len(matrix.tokens))
            if generator is not None:
                generator.shuffle(order)
            size = rows_per_batch(tokens_per_update, width)
            plan += [(width, order[at : at + size]) for at in range(0, len(order), size)]
        if generator is not None:
            generator.shuffle(plan)  # type: ignore[arg-type]
        for width, rows in plan[start:]:
            yield self._matrices[width].batch(rows)

    def spread(self, tokens: int) -> RowSet:
        """About so many positions of these rows, at least one row: evenly from all of them, so that all files stay in."""
        import numpy as np

        share = tokens / max(1, self.total_tokens)
        if share >= 1:
            return self
        taken = {}
        for width, matrix in self._matrices.items():
            count = max(1, round(share * len(matrix.tokens)))
            here = np.unique(np.linspace(0, len(matrix.tokens) - 1, count).round().astype(int))
            taken[width] = _Matrix(
                matrix.tokens[here],
                matrix.loss_mask[here],
                matrix.document_ids[here],
                matrix.source_bytes[here],
                tuple(matrix.paths[row] for row in here),
                tuple(matrix.labels[row] for row in here),
            )
        return RowSet(taken)

    def arrays(self) -> dict[str, np.ndarray]:
        """All rows as named arrays, without their paths and labels; `from_arrays` makes a RowSet of them again."""
        return {
            f"{width} {name}": getattr(matrix, name)
            for width, matrix in self._matrices.items()
            for name in ("tokens", "loss_mask", "document_ids", "source_bytes")
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RowSet:
        """The inverse of `arrays`."""
        parts: dict[int, dict[str, np.ndarray]] = {}
        for key, value in arrays.items():
            width, name = key.split(" ")
            parts.setdefault(int(width), {})[name] = value
        return cls(
            {
                width: _Matrix(
                    **part, paths=("",) * len(part["tokens"]), labels=(None,) * len(part["tokens"])
                )
                for width, part in parts.items()
            }
        )

    def sha256(self) -> str:
        """Over all tokens and masks, in order."""
        digest = hashlib.sha256()
        for width, matrix in self._matrices.items():
            digest.update(f"{width}:{len(matrix.tokens)};".encode())
            digest.update(matrix.tokens.tobytes())
            digest.update(matrix.loss_mask.tobytes())
        return digest.hexdigest()


def rows_per_batch(tokens_per_update: int, width: int) -> int:
    """Rows of a full batch."""
    return max(1, tokens_per_update // width)


def pack(documents: Sequence[Document], widths: Sequence[int], *, pad_id: int) -> RowSet:
    """Training rows from documents: whole ones first, best fit by falling length; split ones fill what is left.

    A document that may be split (left to right) goes on in another row where it was cut; the first token there is no
    target. Rows left half empty shrink to a narrower width where they fit. Documents are shared among the widths by
    their length: one goes to the narrowest width that holds it, splittable ones evenly to all.
    """
    bins: dict[int, list[list[Document]]] = {width: [] for width in widths}
    space: dict[int, list[int]] = {width: [] for width in widths}
    whole = sorted(
        (document for document in documents if not document.splittable), key=lambda item: -len(item.tokens)
    )
    for document in whole:
        length = len(document.tokens)
        width = next((width for width in widths if length <= width), widths[-1])
        if length > width:
            document, length = _cut(document, 0, width), width
        fits = [at for at, left in enumerate(space[width]) if left >= length]
        if fits:
            at = min(fits, key=lambda index: space[width][index])
        else:
            at = len(bins[width])
            bins[width].append([])
            space[width].append(width)
        bins[width][at].append(document)
        space[width][at] -= length
    _fill(bins, space, [document for document in documents if document.splittable], widths)
    rows: dict[int, list[list[Document]]] = {width: [] for width in widths}
    for width in widths:
        for content in bins[width]:
            used = sum(len(document.tokens) for document in content)
            rows[next(narrow for narrow in widths if used <= narrow)].append(content)
    return RowSet({width: _matrix(rows[width], width, pad_id) for width in widths})


#: A gap shorter than this is not worth a piece of a document.
_LEAST_PIECE = 16


def _fill(
    bins: dict[int, list[list[Document]]],
    space: dict[int, list[int]],
    documents: list[Document],
    widths: Sequence[int],
) -> None:
    """Put pieces of splittable documents into the gaps, then into rows of their own, widths in turn."""
    gaps = [(width, at) for width in widths for at, left in enumerate(space[width]) if left >= _LEAST_PIECE]
    turn = 0
    for document in documents:
        position = 0
        while position < len(document.tokens) - 1:
            if gaps:
                width, at = gaps.pop(0)
            else:
                width = widths[turn % len(widths)]
                turn += 1
                at = len(bins[width])
                bins[width].append([])
                space[width].append(width)
            piece = _cut(document, position, position + space[width][at])
            bins[width][at].append(piece)
            space[width][at] -= len(piece.tokens)
            position += len(piece.tokens)
            if space[width][at] >= _LEAST_PIECE:
                gaps.insert(0, (width, at))


def _cut(document: Document, start: int, end: int) -> Document:
    """Tokens ``start`` to ``end`` of a document as one of its own, whose first token is no target."""
    mask = document.loss_mask[start:end].copy()
    whole = max(1, int(document.loss_mask.sum()))
    if len(mask):
        mask[0] = False
    share = int(mask.sum()) / whole
    return Document(
        document.tokens[start:end], mask, round(document.target_bytes * share), document.splittable
    )


def bucket(documents: Sequence[Document], widths: Sequence[int], *, pad_id: int) -> RowSet:
    """Evaluation rows: one document a row, in the narrowest width that holds it; no document may be longer."""
    rows: dict[int, list[list[Document]]] = {width: [] for width in widths}
    for document in documents:
        rows[next(width for width in widths if len(document.tokens) <= width)].append([document])
    return RowSet({width: _matrix(rows[width], width, pad_id) for width in widths})


def _matrix(rows: list[list[Document]], width: int, pad_id: int) -> _Matrix:
    import numpy as np

    tokens = np.full((len(rows), width), pad_id, dtype=np.int32)
    loss_mask = np.zeros((len(rows), width), dtype=bool)
    document_ids = np.zeros((len(rows), width), dtype=np.int32)
    source_bytes = np.zeros(len(rows), dtype=np.int64)
    for row, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents, start=1):
            end = at + len(document.tokens)
            tokens[row, at:end] = document.tokens
            loss_mask[row, at:end] = document.loss_mask
            loss_mask[row, at] = False  # its predecessor is another document, or nothing
            document_ids[row, at:end] = number
            source_bytes[row] += document.target_bytes
            at = end
    paths = tuple(documents[0].path if len(documents) == 1 else "" for documents in rows)
    labels = tuple(documents[0].label if len(documents) == 1 else None for documents in rows)
    return _Matrix(tokens, loss_mask, document_ids, source_bytes, paths, labels)
