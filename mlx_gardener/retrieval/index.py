"""The index: a repository's chunks with their words, as arrays that are searched in place, also from a file.

BM25 in Lucene's form (Robertson & Zaragoza 2009; Kamphuis et al. 2020): a chunk's score is the sum, over the words of the query,
of ``ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * length / mean length))`` with k1 = 1.5, b = 0.75; what does
not depend on the query is computed when the index is made, as in bm25s (Lù 2024, arXiv:2407.03618).

In: `FilePart`s, one a file. Out: an `Index`, and another one for every change: files that are the same keep their postings, so
that a refreshed index equals one that is made anew. Cost: 9 bytes a posting (chunk, weight, count) and the texts themselves;
code has about 50 distinct words a chunk, so half a kB a chunk and about as much of text. Arrays that were read from disk are
mapped: of them, memory holds what was looked at lately, and the system may take it back. Making one takes 40 bytes a
posting and the text twice for a moment, about 4 kB a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_gardener.retrieval.parts import KEY_BYTES, STAMP_NUMBERS, FilePart, file_part
from mlx_gardener.retrieval.words import word_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_K1, _B = 1.5, 0.75
#: A posting while an index is made, in 64 bits: word, chunk, count. Further occurrences change a score by less than 1 %.
_COUNT_BITS, _CHUNK_BITS = 8, 28
_WORD_SHIFT = 36
#: Files and postings that are worked on at a time.
_AT_ONCE_FILES, _AT_ONCE_POSTINGS = 1000, 2**20
#: Of the words of a query, the rarest that have so many postings choose the candidates; these are scored by all words.
_MOST_POSTINGS, _CANDIDATES = 200_000, 256


@dataclass(frozen=True)
class Index:
    """A repository's chunks and words.

    Attributes:
        name: of the repository, as the model is told it.
        paths: of all files that were looked at, sorted.
        stamps: (files, 4) int64; states: (files,) uint8; keys: (files, 16) uint8; see `FilePart`.
        file_chunks: (files + 1,) int32: chunks of file f are ``file_chunks[f]`` to ``file_chunks[f + 1]``.
        lines: (chunks, 2) int32; lengths: (chunks,) int32, in words.
        text_ends: (chunks + 1,) int64; texts: (bytes,) uint8: text of chunk c is ``texts[text_ends[c]:text_ends[c + 1]]``.
        words: (words,) uint64, sorted; starts: (words + 1,) int64: postings of word w are ``starts[w]`` to ``starts[w + 1]``.
        chunks, counts, weights: (postings,) int32, uint8, float32: chunk, occurrences in it, and its part of the score.
    """

    name: str
    paths: tuple[str, ...]
    stamps: NDArray[np.int64]
    states: NDArray[np.uint8]
    keys: NDArray[np.uint8]
    file_chunks: NDArray[np.int32]
    lines: NDArray[np.int32]
    lengths: NDArray[np.int32]
    text_ends: NDArray[np.int64]
    texts: NDArray[np.uint8]
    words: NDArray[np.uint64]
    starts: NDArray[np.int64]
    chunks: NDArray[np.int32]
    counts: NDArray[np.uint8]
    weights: NDArray[np.float32]

    @property
    def chunk_count(self) -> int:
        """Chunks in it."""
        return len(self.lengths)

    @property
    def size_bytes(self) -> int:
        """What its arrays take, texts included."""
        return sum(value.nbytes for value in vars(self).values() if hasattr(value, "nbytes"))

    def path_of(self, chunk: int) -> str:
        """The file that a chunk is of."""
        import numpy as np

        return self.paths[int(np.searchsorted(self.file_chunks, chunk, side="right")) - 1]

    def text_of(self, chunk: int) -> str:
        """A chunk's text."""
        start, end = self.text_ends[chunk : chunk + 2]
        return self.texts[start:end].tobytes().decode(errors="replace")

    def search(self, words: Sequence[str], count: int, *, without: str = "") -> list[int]:
        """The chunks with the best scores for a query, best first; earlier ones first where scores are the same.

        In a large index chunks are chosen by the query's rarer words, as many as have `_MOST_POSTINGS` together, and the best
        `_CANDIDATES` of them are scored by all; in one of some thousand chunks the rarer words are all words.

        Args:
            words: of the query, each once; those that stand nowhere count for nothing.
            count: at most so many.
            without: the path of a file whose chunks are left out.
        """
        import numpy as np

        wanted = np.array([word_hash(word) for word in words], dtype=np.uint64)
        if not len(self.words) or not len(wanted) or count < 1:
            return []
        at = np.minimum(np.searchsorted(self.words, wanted), len(self.words) - 1)
        at = at[self.words[at] == wanted]
        at = at[np.argsort(self.starts[at + 1] - self.starts[at], kind="stable")]
        rare = int(np.searchsorted(np.cumsum(self.starts[at + 1] - self.starts[at]), _MOST_POSTINGS, "right"))
        rare = max(1, rare)
        scores: NDArray[np.float32] = np.zeros(self.chunk_count, dtype=np.float32)
        for word in at[:rare].tolist():
            start, end = self.starts[word : word + 2]
            scores[self.chunks[start:end]] += self.weights[start:end]  # a word has each chunk once
        own = self._file(without)
        if own is not None:
            scores[self.file_chunks[own] : self.file_chunks[own + 1]] = 0
        found = _best(scores, count if rare >= len(at) else max(count, _CANDIDATES))
        total = scores[found]
        for word in at[rare:].tolist():
            start, end = self.starts[word : word + 2]
            places = np.minimum(np.searchsorted(self.chunks[start:end], found), end - start - 1)
            total += np.where(self.chunks[start + places] == found, self.weights[start + places], 0)
        return [int(chunk) for chunk in found[np.argsort(-total, kind="stable")][:count]]

    def with_word(self, word: str) -> list[int]:
        """The chunks that a word stands in, rising."""
        import numpy as np

        wanted = np.uint64(word_hash(word))
        at = int(np.searchsorted(self.words, wanted))
        if at == len(self.words) or self.words[at] != wanted:
            return []
        return [int(chunk) for chunk in self.chunks[self.starts[at] : self.starts[at + 1]]]

    def end_of_file(self, chunk: int) -> int:
        """The number after that of the last chunk of a chunk's file."""
        import numpy as np

        return int(self.file_chunks[int(np.searchsorted(self.file_chunks, chunk, side="right"))])

    def _file(self, path: str) -> int | None:
        from bisect import bisect_left

        at = bisect_left(self.paths, path)
        return at if path and at < len(self.paths) and self.paths[at] == path else None


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The places of the ``count`` highest scores above zero, and of all that equal the last of them; rising."""
    import numpy as np

    least = np.float32(0)
    if count < len(scores):
        least = np.partition(scores, -count)[-count]
    return np.flatnonzero((scores >= least) & (scores > 0))


def index_of_chunks(chunks: Iterable[tuple[str, str]], *, name: str = "") -> Index:
    """An index of (path, text) pairs, which stand in no file."""
    by_path: dict[str, list[bytes]] = {}
    for path, text in chunks:
        by_path.setdefault(path, []).append(text.encode(errors="replace"))
    parts = [file_part(path, texts, [(0, 0)] * len(texts)) for path, texts in by_path.items()]
    return merged(None, parts, name=name)


def merged(earlier: Index | None, parts: Sequence[FilePart], *, name: str, kept: Sequence[int] = ()) -> Index:
    """An index of some of an earlier one's files and of new parts.

    Args:
        kept: numbers of files of ``earlier``, rising; their chunks, words and stamps stay as they are.
        parts: of further files.
    """
    import numpy as np

    old = [] if earlier is None else [(earlier.paths[file], file, None) for file in kept]
    files = sorted([*old, *((part.path, -1, part) for part in parts)], key=lambda item: item[0])
    chunk_counts = [
        len(part.texts)
        if part is not None
        else int(earlier.file_chunks[file + 1] - earlier.file_chunks[file])  # type: ignore[union-attr]
        for _, file, part in files
    ]
    file_chunks = np.concatenate([[0], np.cumsum(chunk_counts, dtype=np.int64)]).astype(np.int32)
    stamps = [earlier.stamps[file] if part is None else part.stamp for _, file, part in files]  # type: ignore[union-attr]
    states = [earlier.states[file] if part is None else part.state for _, file, part in files]  # type: ignore[union-attr]
    keys = [
        earlier.keys[file] if part is None else np.frombuffer(part.key, dtype=np.uint8)  # type: ignore[union-attr]
        for _, file, part in files
    ]
    lines, lengths, sizes, texts = [], [], [], []
    for _, file, part in files:
        if part is not None:
            if part.texts:
                lines.append(np.array(part.lines, dtype=np.int32).reshape(-1, 2))
                lengths.append(np.array(part.lengths, dtype=np.int32))
                sizes.append(np.array([len(text) for text in part.texts], dtype=np.int64))
                texts.append(np.frombuffer(b"".join(part.texts), dtype=np.uint8))
            continue
        assert earlier is not None
        first, end = int(earlier.file_chunks[file]), int(earlier.file_chunks[file + 1])
        if first < end:
            lines.append(earlier.lines[first:end])
            lengths.append(earlier.lengths[first:end])
            sizes.append(np.diff(earlier.text_ends[first : end + 1]))
            texts.append(earlier.texts[earlier.text_ends[first] : earlier.text_ends[end]])
    all_lengths = _joined(lengths, np.int32)
    words, starts, chunks, counts = _postings(earlier, files, file_chunks)
    return Index(
        name=name,
        paths=tuple(path for path, _, _ in files),
        stamps=np.array(stamps, dtype=np.int64).reshape(-1, STAMP_NUMBERS),
        states=np.array(states, dtype=np.uint8),
        keys=np.array(keys, dtype=np.uint8).reshape(-1, KEY_BYTES),
        file_chunks=file_chunks,
        lines=_joined(lines, np.int32).reshape(-1, 2),
        lengths=all_lengths,
        text_ends=np.concatenate([[0], np.cumsum(_joined(sizes, np.int64), dtype=np.int64)]),
        texts=_joined(texts, np.uint8),
        words=words,
        starts=starts,
        chunks=chunks,
        counts=counts,
        weights=_weights(starts, chunks, counts, all_lengths),
    )


def _joined(pieces: list[Any], kind: Any) -> Any:
    import numpy as np

    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=kind)


def _postings(
    earlier: Index | None, files: Sequence[tuple[str, int, FilePart | None]], file_chunks: NDArray[np.int32]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int32], NDArray[np.uint8]]:
    """Words, starts, chunks and counts of the new index: those that are kept under their new numbers, and the new ones."""
    import numpy as np

    new = [
        (part.words, part.chunks, part.counts, file_chunks[number])
        for number, (_, _, part) in enumerate(files)
        if part is not None and part.words is not None and part.chunks is not None and part.counts is not None
    ]
    words = _vocabulary(earlier, [found for found, *_ in new])
    moved = None if earlier is None else _moved(earlier, files, file_chunks)
    stays = 0 if earlier is None or moved is None else _count_of(earlier, moved)
    packed: NDArray[np.uint64] = np.empty(stays + sum(len(found) for found, *_ in new), dtype=np.uint64)
    at = 0
    if earlier is not None and moved is not None:
        for ids, chunks, counts in _kept_postings(earlier, moved, np.searchsorted(words, earlier.words)):
            packed[at : at + len(ids)] = _packed(ids, chunks, counts)
            at += len(ids)
    for hashes, own_chunks, own_counts, first in new:
        ids = np.searchsorted(words, hashes)
        packed[at : at + len(hashes)] = _packed(ids, own_chunks + first, own_counts)
        at += len(hashes)
    packed.sort()
    with_word = np.bincount((packed >> np.uint64(_WORD_SHIFT)).astype(np.int32), minlength=len(words))
    counts = packed.astype(np.uint8)  # the lowest byte
    packed >>= np.uint64(_COUNT_BITS)
    numbers = packed.astype(np.uint32)
    numbers &= np.uint32(2**_CHUNK_BITS - 1)
    there = with_word > 0
    starts = np.concatenate([[0], np.cumsum(with_word[there], dtype=np.int64)])
    return words[there], starts, numbers.view(np.int32), counts


def _packed(ids: NDArray[Any], chunks: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.uint64]:
    """A posting in 64 bits, which are in order when they are sorted: word, chunk, count."""
    import numpy as np

    packed = ids.astype(np.uint64) << np.uint64(_WORD_SHIFT)
    packed |= chunks.astype(np.uint64) << np.uint64(_COUNT_BITS)
    packed |= counts.astype(np.uint64)
    return packed


def _vocabulary(earlier: Index | None, hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """All words, sorted; some of an earlier index may be gone."""
    import numpy as np

    words = np.zeros(0, dtype=np.uint64) if earlier is None else earlier.words
    for at in range(0, len(hashes), _AT_ONCE_FILES):
        words = np.union1d(words, np.concatenate(hashes[at : at + _AT_ONCE_FILES]))
    return words


def _count_of(earlier: Index, moved: NDArray[np.int32]) -> int:
    """Postings of an earlier index whose chunks stay."""
    blocks = range(0, len(earlier.chunks), _AT_ONCE_POSTINGS)
    return sum(int((moved[earlier.chunks[at : at + _AT_ONCE_POSTINGS]] >= 0).sum()) for at in blocks)


def _kept_postings(
    earlier: Index, moved: NDArray[np.int32], word_ids: NDArray[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[np.int32], NDArray[np.uint8]]]:
    """(word, chunk, count) of an earlier index's postings whose chunks stay, under their new numbers, in blocks."""
    import numpy as np

    for at in range(0, len(earlier.chunks), _AT_ONCE_POSTINGS):
        end = min(at + _AT_ONCE_POSTINGS, len(earlier.chunks))
        chunks = moved[earlier.chunks[at:end]]
        stay = np.flatnonzero(chunks >= 0)
        word = np.searchsorted(earlier.starts, at + stay, side="right") - 1
        yield word_ids[word], chunks[stay], earlier.counts[at:end][stay]


def _moved(
    earlier: Index, files: Sequence[tuple[str, int, FilePart | None]], file_chunks: NDArray[np.int32]
) -> NDArray[np.int32]:
    """The new number of every earlier chunk; -1 where it is gone."""
    import numpy as np

    moved: NDArray[np.int32] = np.full(earlier.chunk_count, -1, dtype=np.int32)
    for number, (_, file, part) in enumerate(files):
        if part is None:
            first, end = int(earlier.file_chunks[file]), int(earlier.file_chunks[file + 1])
            moved[first:end] = np.arange(file_chunks[number], file_chunks[number] + end - first)
    return moved


def _weights(
    starts: NDArray[np.int64],
    chunks: NDArray[np.int32],
    counts: NDArray[np.uint8],
    lengths: NDArray[np.int32],
) -> NDArray[np.float32]:
    import numpy as np

    with_word = np.diff(starts)
    rarity = np.log(1 + (len(lengths) - with_word + 0.5) / (with_word + 0.5)).astype(np.float32)
    mean = float(lengths.mean()) if len(lengths) else 1.0
    damping = (_K1 * (1 - _B + _B * lengths / max(mean, 1e-9))).astype(np.float32)
    result: NDArray[np.float32] = counts.astype(np.float32)
    result /= result + damping[chunks]
    result *= np.repeat(rarity, with_word)
    return result
