"""Which lines of held-out stretches a model would write exactly, found while their bits are counted.

In: stretches (`rows.Window`), and the likeliest token at each of their places (`Engine.read_rows`). Out: for each line whether greedy
writing would give it: it would where every token up to the line's end is the likeliest after those before it. So what costs an answer
of a thousand tokens' reading each when it is asked for comes with the bits of the stretch, for some hundred lines at once; by
so many an arm is told from another where twenty answers differ by chance. A line has nothing behind it and its path, and what
stands before it in the stretch, in front: from the file's beginning, or at least half a stretch. What is in front with retrieved
code was retrieved for its half of the stretch. A line spelled by other tokens than the tokenizer's own counts as wrong, in
every arm alike. Cost: a syntax tree for each file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from mlx_gardener.dataset import asked_lines
from mlx_gardener.dataset.examples import Excerpt

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.evaluate.rows import Window
    from mlx_gardener.model import CodeTokenizer

_END = b"\n"


@dataclass(frozen=True)
class ReadLine:
    """A line of a stretch: the ids of its tokens, the last of which holds its end, and where the first is in its excerpt.

    ``excerpt`` is as in `rows.Window`; ``is_cross_file`` says whether it uses a name that another file defines.
    """

    path: str
    excerpt: int
    first: int
    tokens: tuple[int, ...]
    is_cross_file: bool


def lines_to_read(
    windows: Iterable[Window],
    excerpts: Sequence[Excerpt],
    tokenizer: CodeTokenizer,
    defined: Mapping[str, frozenset[str]],
) -> list[ReadLine]:
    """The lines worth asking for (`dataset.asked_lines`) that have enough in front; none of an excerpt that its tokens do not spell.

    Args:
        excerpts: those that the windows were made of.
        defined: what `dataset.names_defined` says of the repository.
    """
    found: list[ReadLine] = []
    by_excerpt: dict[int, list[Window]] = {}
    for window in windows:
        by_excerpt.setdefault(window.excerpt, []).append(window)
    for number, own in by_excerpt.items():
        tokens = own[0].tokens
        ends = list(accumulate(len(tokenizer.spelling(token)) for token in tokens))
        if b"".join(map(tokenizer.spelling, tokens)) != excerpts[number].text.encode():
            continue
        parts = [
            part for window in own for part in window.halves if window.start == 0 or part[0] > window.start
        ]
        for line in asked_lines(excerpts[number], defined):
            first, last = bisect_right(ends, line.start_byte), bisect_right(ends, line.end_byte)
            if first < last and any(start <= first and last < end for start, end in parts):
                is_cross_file = line.is_cross_file
                found.append(ReadLine(own[0].path, number, first, tokens[first : last + 1], is_cross_file))
    return found


def lines_right(
    lines: Sequence[ReadLine],
    likeliest: Mapping[tuple[int, int], np.ndarray],
    tokenizer: CodeTokenizer,
) -> list[bool]:
    """Whether each line is what greedy writing gives.

    Args:
        likeliest: ids, by excerpt and the place of the first of them there.
    """
    by_excerpt: dict[int, list[tuple[int, np.ndarray]]] = {}
    for (excerpt, start), ids in likeliest.items():
        by_excerpt.setdefault(excerpt, []).append((start, ids))

    def ids_of(line: ReadLine) -> list[int]:
        for start, ids in by_excerpt.get(line.excerpt, ()):
            if start <= line.first and line.first + len(line.tokens) <= start + len(ids):
                return [int(index) for index in ids[line.first - start :][: len(line.tokens)]]
        return []

    def ending(index: int) -> bytes | None:
        """What a token has of the line that it ends; None where it ends none."""
        before, end, _ = (tokenizer.spelling(index) if index < tokenizer.vocab_size else b"").partition(_END)
        return before.rstrip() if end else None

    def is_right(line: ReadLine) -> bool:
        found = ids_of(line)
        is_same = found[:-1] == list(line.tokens[:-1])
        return bool(found) and is_same and ending(found[-1]) == ending(line.tokens[-1])

    return [is_right(line) for line in lines]
