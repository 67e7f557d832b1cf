"""One file as an index takes it: its chunks' texts, and their words with how often each stands there.

In: texts of chunks. Out: a `FilePart`. Beside the words of its text (`words`) a chunk has one for every name that it defines
(`definitions.defining_word`). Cost: about half a second for a MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_gardener.retrieval.definitions import defining_word, names_defined_in
from mlx_gardener.retrieval.words import word_hash, words_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What became of a file: not used, used, the same as an earlier one.
DROPPED, KEPT, DUPLICATE = 0, 1, 2
#: Numbers by which a change of a file shows: size, times of its content and of its inode, the inode.
STAMP_NUMBERS = 4
KEY_BYTES = 16
#: Further occurrences change a score by less than 1 %, and a count is a byte.
_MOST_COUNTED = 2**8 - 1


@dataclass(frozen=True)
class FilePart:
    """One file as an index takes it.

    Attributes:
        stamp: by which a change shows; zeros where it has to be looked at again.
        state: `DROPPED`, `KEPT` or `DUPLICATE`.
        key: the same for files of the same content; zeros where none is known.
        texts: of the chunks.
        lines: first and last line of each, from 1.
        words: hashes of distinct words, chunk after chunk; ``chunks`` (numbers within the file) and ``counts`` belong to them.
        lengths: words of each chunk.
    """

    path: str
    stamp: tuple[int, int, int, int] = (0, 0, 0, 0)
    state: int = DROPPED
    key: bytes = bytes(KEY_BYTES)
    texts: tuple[bytes, ...] = ()
    lines: tuple[tuple[int, int], ...] = ()
    words: NDArray[np.uint64] | None = None
    chunks: NDArray[np.int32] | None = None
    counts: NDArray[np.uint8] | None = None
    lengths: tuple[int, ...] = ()


def file_part(
    path: str,
    texts: Sequence[bytes],
    lines: Sequence[tuple[int, int]],
    names: Sequence[Sequence[str]] = (),
    **known: Any,
) -> FilePart:
    """The part of a file whose chunks are ``texts``.

    Args:
        names: that each chunk defines by its syntax; those that its text tells are found in any case.
        known: further fields of `FilePart`.
    """
    import numpy as np

    hashes: list[int] = []
    chunks: list[int] = []
    counts: list[int] = []
    lengths = []
    for number, text in enumerate(texts):
        code = text.decode(errors="replace")
        words = words_of(path, code)
        found = Counter(words)
        told = names[number] if number < len(names) else ()
        # These are no words of its text: its length stays.
        found.update({defining_word(name) for name in (*names_defined_in(code), *told)})
        lengths.append(len(words))
        hashes += map(word_hash, found)
        counts += (min(count, _MOST_COUNTED) for count in found.values())
        chunks += [number] * len(found)
    return FilePart(
        path,
        texts=tuple(texts),
        lines=tuple(lines),
        words=np.array(hashes, dtype=np.uint64),
        chunks=np.array(chunks, dtype=np.int32),
        counts=np.array(counts, dtype=np.uint8),
        lengths=tuple(lengths),
        **{"state": KEPT, **known},
    )
