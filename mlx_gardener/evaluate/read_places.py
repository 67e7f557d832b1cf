"""Which lines, and values of assertions, of held-out stretches a model would write exactly, found while their bits are counted.

In: stretches (`rows.Window`), and the likeliest token at each of their places (`Engine.read_rows`). Out: for each line whether greedy
writing would give it: it would where every token up to the line's end is the likeliest after those before it. So what costs an answer
of a thousand tokens' reading each when it is asked for comes with the bits of the stretch, for some hundred lines at once; by
so many an arm is told from another where twenty answers differ by chance. A line has nothing behind it and its path, and what
stands before it in the stretch, in front: from the file's beginning, or at least half a stretch. What is in front with retrieved
code was retrieved for its half of the stretch. What is spelled by other tokens than the tokenizer's own counts as wrong, in
every arm alike. Cost: a syntax tree for each file.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from mlx_gardener.dataset import asked_lines, asked_values
from mlx_gardener.dataset.examples import Excerpt

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.evaluate.rows import Window
    from mlx_gardener.model import CodeTokenizer

LINE, CROSS_FILE, ASSERTION = "read_line", "read_cross_file", "read_assertion"


@dataclass(frozen=True)
class ReadPlace:
    """A line, or an assertion's value, of a stretch, as the tokens that hold it and what ends it.

    Attributes:
        excerpt: its number, as in `rows.Window`.
        first: where the first token is in the excerpt.
        tokens: ids.
        ending: what the last of them spells up to the end: the line's, or that of what ends the value (`dataset.asked_values`).
        kinds: what it counts as, of LINE, CROSS_FILE and ASSERTION.
    """

    path: str
    excerpt: int
    first: int
    tokens: tuple[int, ...]
    ending: bytes
    kinds: tuple[str, ...]


def places_to_read(
    windows: Iterable[Window],
    excerpts: Sequence[Excerpt],
    tokenizer: CodeTokenizer,
    defined: Mapping[str, frozenset[str]],
) -> list[ReadPlace]:
    """The lines worth asking for (`dataset.asked_lines`), then the assertions' values, that have enough in front.

    None of an excerpt that its tokens do not spell.

    Args:
        excerpts: those that the windows were made of.
        defined: what `dataset.names_defined` says of the repository.
    """
    found: list[ReadPlace] = []
    by_excerpt: dict[int, list[Window]] = {}
    for window in windows:
        by_excerpt.setdefault(window.excerpt, []).append(window)
    values: dict[str, set[str]] = {}
    for number, own in sorted(by_excerpt.items()):
        excerpt, tokens = excerpts[number], own[0].tokens
        spelled = [tokenizer.spelling(token) for token in tokens]
        if b"".join(spelled) != excerpt.text.encode():
            continue
        ends = list(accumulate(map(len, spelled)))
        halves = [
            half for window in own for half in window.halves if window.start == 0 or half[0] > window.start
        ]
        for start, end, kinds in _stretches(excerpt, defined, values.setdefault(excerpt.path, set())):
            first, last = bisect_right(ends, start), bisect_left(ends, end)
            if first < last and any(low <= first and last < high for low, high in halves):
                ending = spelled[last][: end - ends[last - 1]]
                found.append(ReadPlace(excerpt.path, number, first, tokens[first : last + 1], ending, kinds))
    return found


def _stretches(
    excerpt: Excerpt, defined: Mapping[str, frozenset[str]], values: set[str]
) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Of every line and value where it begins and where what ends it ends, bytes, and its kinds."""
    for line in asked_lines(excerpt, defined):
        yield line.start_byte, line.end_byte + 1, (LINE, CROSS_FILE) if line.is_cross_file else (LINE,)
    for value in asked_values(excerpt, values):
        yield value.start_byte, value.closing_byte, (ASSERTION,)


def places_right(
    places: Sequence[ReadPlace],
    likeliest: Mapping[tuple[int, int], np.ndarray],
    tokenizer: CodeTokenizer,
) -> list[bool]:
    """Whether each place is what greedy writing gives.

    Args:
        likeliest: ids, by excerpt and the place of the first of them there.
    """
    by_excerpt: dict[int, list[tuple[int, np.ndarray]]] = {}
    for (excerpt, start), ids in likeliest.items():
        by_excerpt.setdefault(excerpt, []).append((start, ids))

    def ids_of(place: ReadPlace) -> list[int]:
        for start, ids in by_excerpt.get(place.excerpt, ()):
            if start <= place.first and place.first + len(place.tokens) <= start + len(ids):
                return [int(index) for index in ids[place.first - start :][: len(place.tokens)]]
        return []

    def is_right(place: ReadPlace) -> bool:
        found = ids_of(place)
        if found[:-1] != list(place.tokens[:-1]) or found[-1] >= tokenizer.vocab_size:
            return False  # a head may have rows that no token has
        return tokenizer.spelling(found[-1]).startswith(place.ending)

    return [is_right(place) for place in places]
