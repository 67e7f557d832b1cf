"""Held-out code as rows: windows of files, plain or with retrieved code in front, with the same tokens as targets.

In: excerpts of held-out files. Out: `RowSet`s. Where the test part is larger than the work allows, windows are drawn, one
from each file in turn, so that all files stay in: what can be concluded depends on files more than on windows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.dataset.rows import Document, RowSet, bucket
from mlx_gardener.dataset.turns import in_turn
from mlx_gardener.model.tokens import header_text

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.evaluate.retrieval import Retriever
    from mlx_gardener.model import CodeTokenizer


@dataclass(frozen=True)
class Window:
    """A stretch of a held-out file: ``tokens[start:end]`` of its excerpt's ids are targets, ``header`` is shown before.

    ``excerpt`` is its excerpt's number among those that windows were made of.
    """

    excerpt: int
    path: str
    header: tuple[int, ...]
    tokens: tuple[int, ...]
    start: int
    end: int

    @property
    def halves(self) -> list[tuple[int, int]]:
        """Start and end of the parts whose targets have code retrieved for them, each apart: of what is not empty."""
        middle = self.start + max(1, (self.end - self.start + 1) // 2)
        return [(start, end) for start, end in ((self.start, middle), (middle, self.end)) if start < end]


def make_windows(excerpts: Sequence[Excerpt], tokenizer: CodeTokenizer, width: int) -> list[Window]:
    """All windows of at most ``width`` tokens, header included; together every token once."""
    windows = []
    opening = [index for index in (tokenizer.bos_id, tokenizer.file_id) if index is not None]
    for number, excerpt in enumerate(excerpts):
        header = (*opening, *tokenizer.encode(header_text(tokenizer, excerpt.path)))
        tokens = tuple(tokenizer.encode(excerpt.text))
        room = max(1, width - len(header))
        windows += [
            Window(number, excerpt.path, header, tokens, at, min(at + room, len(tokens)))
            for at in range(0, len(tokens), room)
        ]
    return windows


def draw_windows(windows: Sequence[Window], count: int, *, seed: int) -> list[Window]:
    """``count`` windows, from every file in turn; all where there are no more. In their order.

    Those that a smaller ``count`` draws are among them.
    """
    if len(windows) <= count:
        return list(windows)
    turns = in_turn(range(len(windows)), lambda at: windows[at].path, random.Random(f"{seed}\0windows"))
    return [windows[at] for at in sorted(islice(turns, count))]


def plain_rows(windows: Sequence[Window], tokenizer: CodeTokenizer, widths: Sequence[int]) -> RowSet:
    """A window a row, opened by its file's path."""
    documents = [_document(window, window.header, window.start, window.end, tokenizer) for window in windows]
    return bucket(documents, _widths(documents, widths), pad_id=tokenizer.pad_id)


def rows_with_context(
    windows: Sequence[Window], tokenizer: CodeTokenizer, retriever: Retriever, widths: Sequence[int]
) -> RowSet:
    """Every window in two rows, each with code retrieved for what stands before its own targets.

    A row: retrieved files, the header, the window up to the targets, the targets. Only the window's tokens are targets.
    """
    documents = []
    for window in windows:
        for start, end in window.halves:
            before = tokenizer.decode(list(window.tokens[max(0, start - 400) : start]))
            shown = tokenizer.decode(list(window.tokens[window.start : start]))
            context = retriever.context(window.path, before, shown=[shown])
            bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            header = window.header[len(bos) :]
            opening = (*bos, *context, *header, *window.tokens[window.start : start])
            documents.append(_document(window, opening, start, end, tokenizer))
    return bucket(documents, _widths(documents, widths), pad_id=tokenizer.pad_id)


def _widths(documents: Sequence[Document], widths: Sequence[int]) -> tuple[int, ...]:
    """Few widths that hold all: half of the narrowest, the given ones, and the longest in steps of 128."""
    longest = max((len(document.tokens) for document in documents), default=1)
    longest = -(-longest // 128) * 128
    return tuple(sorted({widths[0] // 2, *(width for width in widths if width < longest), longest}))


def _document(
    window: Window, shown: Sequence[int], start: int, end: int, tokenizer: CodeTokenizer
) -> Document:
    """``tokens[start:end]`` of the window's excerpt behind what is shown; its label is (excerpt, place of the first target)."""
    import numpy as np

    tokens = np.array([*shown, *window.tokens[start:end]], dtype=np.int32)
    mask: np.ndarray = np.zeros(len(tokens), dtype=bool)
    mask[len(shown) :] = True
    mask[0] = False
    size = int(tokenizer.byte_lengths[tokens[mask]].sum())
    return Document(tokens, mask, size, False, window.path, (window.excerpt, start + (not shown)))
