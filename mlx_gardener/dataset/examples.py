"""Examples: pieces of files left to right, with a span to fill in, or several files of the repository in a row.

Every example opens with its file's path (the model's own file marker where it has one, a comment where not), which
is shown and never a target. Fill-in-the-middle follows Bavarian et al. 2022 (arXiv:2207.14255) in prefix-suffix-middle
order and ends with the end-of-text token, which teaches stopping.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_gardener.config import DataConfig
from mlx_gardener.dataset.cache import TokenCache
from mlx_gardener.dataset.rows import Document
from mlx_gardener.model.tokens import header_text
from mlx_gardener.source.languages import parse
from mlx_gardener.source.records import FileRecord, SourceFile

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.model import CodeTokenizer

#: Characters a token spells on average in code; only used to choose how long a piece of text may be.
CHARACTERS_PER_TOKEN = 3.0
#: Shortest and longest middle of a fill-in-the-middle example, characters.
MIDDLE_CHARACTERS = (8, 600)
#: Of a row behind retrieved code, the part that the code before the place keeps however much there is to learn (judgement).
_BEFORE_SHARE = 1 / 3
#: Markers around a span, the end's included.
_MARKS = 4
#: Shares of the middles that are a syntax node, and a line or its end: what an editor asks for most (judgement).
FIM_NODE_SHARE, FIM_LINE_SHARE = 0.6, 0.25


@dataclass(frozen=True)
class Excerpt:
    """A stretch of a file that passed the filters whole."""

    path: str
    language: str
    text: str


@dataclass(frozen=True)
class Example:
    """Texts of one example before they are tokens. ``middle`` is None for left to right."""

    path: str
    prefix: str
    suffix: str
    middle: str | None


@dataclass(frozen=True)
class RetrievedExample:
    """Texts of one example, and the token ids that stand in front of it.

    Attributes:
        before: shown; nothing of it is learned.
        middle: what a span held; None where ``after`` follows on ``before``, left to right.
        after: learned as well.
    """

    path: str
    context: tuple[int, ...]
    before: str
    middle: str | None
    after: str


def excerpts_of(source: SourceFile, record: FileRecord) -> list[Excerpt]:
    """The stretches of a file between what was dropped from it; whole lines, blank ones kept."""
    data = source.text.encode()
    texts = (data[start:end].decode(errors="replace") for start, end in _kept_stretches(data, record))
    return [Excerpt(record.path, record.language, text.rstrip() + "\n") for text in texts]


def kept_lines(source: SourceFile, record: FileRecord) -> list[tuple[int, int]]:
    """First and last line, counted from 1, of every excerpt of a file."""
    data = source.text.encode()
    return [
        (data.count(b"\n", 0, start) + 1, data.count(b"\n", 0, start + len(data[start:end].rstrip())) + 1)
        for start, end in _kept_stretches(data, record)
    ]


def _kept_stretches(data: bytes, record: FileRecord) -> list[tuple[int, int]]:
    """Start and end (bytes) of what is kept of a file: chunks with nothing but blanks between them are one stretch."""
    merged: list[tuple[int, int]] = []
    for chunk in record.chunks:
        if merged and not data[merged[-1][1] : chunk.start_byte].strip():
            merged[-1] = (merged[-1][0], chunk.end_byte)
        else:
            merged.append((data.rfind(b"\n", 0, chunk.start_byte) + 1, chunk.end_byte))
    return [(start, end) for start, end in merged if data[start:end].decode(errors="replace").strip()]


def pieces_of(text: str, limit: int) -> Iterator[str]:
    """``text`` cut into pieces of at most about ``limit`` characters, at blank lines where it can be."""
    start = 0
    while len(text) - start > limit:
        end = _best_cut(text, start, start + limit)
        yield text[start:end]
        start = end
    if text[start:].strip():
        yield text[start:]


def _best_cut(text: str, start: int, most: int) -> int:
    least = start + (most - start) // 2
    for mark in ("\n\n\n", "\n\n", "\n"):
        found = text.rfind(mark, least, most)
        if found >= 0:
            return found + len(mark)
    return most


@dataclass(frozen=True)
class ExcerptPiece:
    """A piece of an excerpt: ``text`` stands at ``start`` (characters) of it; ``choose`` decides what becomes of it."""

    excerpt: Excerpt
    start: int
    text: str
    choose: random.Random


def training_pieces(excerpts: Sequence[Excerpt], config: DataConfig, *, seed: int) -> list[ExcerptPiece]:
    """All excerpts cut into pieces of the lengths of rows, which are drawn by excerpt.

    Args:
        seed: each excerpt has its own stream, so that a changed file changes no other.
    """
    pieces = []
    for excerpt in excerpts:
        choose = random.Random(f"{seed}\0{excerpt.path}\0{len(excerpt.text)}")
        limit = piece_characters(choose.choice(config.sequence_lengths))
        start = 0
        for text in pieces_of(excerpt.text, limit):
            pieces.append(ExcerptPiece(excerpt, start, text, choose))
            start += len(text)
    return pieces


def piece_characters(tokens: int) -> int:
    """How long a piece may be that shall have at most so many tokens with its path and markers; most are shorter then."""
    return max(MIDDLE_CHARACTERS[0], int((tokens - 40) * CHARACTERS_PER_TOKEN * 0.85))


def example_of(piece: ExcerptPiece, config: DataConfig, *, can_fill: bool) -> Example:
    """A piece as an example: with probability ``fim_rate`` with a span, else left to right.

    Args:
        can_fill: whether the model has fill-in-the-middle markers.
    """
    span = None
    if can_fill and piece.choose.random() < config.fim_rate:
        span = choose_span(piece.text, piece.excerpt.language, piece.choose)
    if span is None:
        return Example(piece.excerpt.path, piece.text, "", None)
    start, end = span
    return Example(piece.excerpt.path, piece.text[:start], piece.text[end:], piece.text[start:end])


def make_examples(
    excerpts: Sequence[Excerpt], config: DataConfig, *, can_fill: bool, seed: int
) -> Iterator[Example]:
    """Every piece of every excerpt as one example; see `training_pieces` and `example_of`."""
    for piece in training_pieces(excerpts, config, seed=seed):
        yield example_of(piece, config, can_fill=can_fill)


def choose_span(text: str, language: str, choose: random.Random) -> tuple[int, int] | None:
    """Start and end (characters) of the middle: a syntax node, a line or its end, or anything; None if too short."""
    if len(text) < 4 * MIDDLE_CHARACTERS[0]:
        return None
    kind = choose.random()
    if kind < FIM_NODE_SHARE:
        span = node_span(text, language, choose)
        if span is not None:
            return span
    if kind < FIM_NODE_SHARE + FIM_LINE_SHARE:
        return _line_span(text, choose)
    length = choose.randint(MIDDLE_CHARACTERS[0], min(MIDDLE_CHARACTERS[1], len(text) // 2))
    start = choose.randrange(len(text) - length)
    return start, start + length


def node_span(
    text: str, language: str, choose: random.Random, place: int | None = None
) -> tuple[int, int] | None:
    """A named node around a place, of a drawn size between the limits; None without a syntax tree or a fitting node.

    Args:
        place: a byte of the text; drawn where it is None.
    """
    data = text.encode()
    tree = parse(data, language)
    if tree is None:
        return None
    for _ in range(4):
        at = choose.randrange(len(data)) if place is None else place
        wanted = choose.randint(*MIDDLE_CHARACTERS)
        node = tree.root_node.named_descendant_for_byte_range(at, at)
        while node is not None and node.parent is not None:
            bigger = node.parent
            if bigger.end_byte - bigger.start_byte > min(wanted, len(data) // 2):
                break
            node = bigger
        if (
            node is not None
            and MIDDLE_CHARACTERS[0] <= node.end_byte - node.start_byte <= MIDDLE_CHARACTERS[1]
        ):
            start = len(data[: node.start_byte].decode(errors="replace"))
            return start, start + len(data[node.start_byte : node.end_byte].decode(errors="replace"))
    return None


def _line_span(text: str, choose: random.Random) -> tuple[int, int] | None:
    """A whole line, or its tail from a random place on."""
    for _ in range(8):
        at = choose.randrange(len(text))
        start = text.rfind("\n", 0, at) + 1
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        content = text[start:end]
        if len(content.strip()) < MIDDLE_CHARACTERS[0] // 2 or len(content) > MIDDLE_CHARACTERS[1]:
            continue
        indent = len(content) - len(content.lstrip())
        start += indent
        if choose.random() < 0.5 and end - start > 4:
            start = choose.randrange(start, end - 2)
        return start, end
    return None


class Encoder:
    """Turns examples into `Document`s with a model's tokenizer and markers."""

    def __init__(self, cache: TokenCache, *, repository: str) -> None:
        self._cache = cache
        self._tokenizer: CodeTokenizer = cache.tokenizer
        self._repository = repository

    def documents(self, examples: Sequence[Example]) -> list[Document]:
        """One document an example; prefix and suffix are learned too (docs/decisions.md)."""
        texts = [text for example in examples for text in self._texts(example)]
        encoded = iter(self._cache.encode_many(texts))
        result = []
        for example in examples:
            header, prefix, suffix, middle = (next(encoded) for _ in range(4))
            if example.middle is None:
                result.append(self._left_to_right(header, prefix))
            else:
                result.append(self._fill(header, prefix, suffix, middle))
        return result

    def retrieved_documents(self, examples: Sequence[RetrievedExample], width: int) -> list[Document]:
        """One document an example, of at most ``width`` tokens: context, path and the code before the place are no targets.

        Where a row has no room for all, the code far from the place is left out, on both sides. A span that leaves no room is
        learned left to right.
        """
        import numpy as np

        texts = [
            text
            for example in examples
            for text in (
                header_text(self._tokenizer, example.path),
                *self._sides(example.before, example.middle),
                example.after,
            )
        ]
        encoded = iter(self._cache.encode_many(texts))
        bos = [] if self._tokenizer.bos_id is None else [self._tokenizer.bos_id]
        file = [] if self._tokenizer.file_id is None else [self._tokenizer.file_id]
        markers = self._tokenizer.markers
        result = []
        for example in examples:
            header, before, middle, after = (next(encoded) for _ in range(4))
            context = example.context
            if width - len(context) - len(header) < width // 4:  # a path as long as a row
                context = ()
            opening = np.concatenate([[*bos, *context, *file], header]).astype(np.int32)
            room = max(1, width - len(opening) - _MARKS)
            if example.middle is not None and markers is not None and 2 * len(middle) <= room:
                room -= len(middle)
                behind = min(len(after), room - min(len(before), int(room * _BEFORE_SHARE)))
                shown, after = before[max(0, len(before) - room + behind) :], after[:behind]
                parts = [(opening, False), *self._marked(shown, after, middle, learn_prefix=False)]
            else:
                learned = np.concatenate([middle, after])
                behind = min(len(learned), room - min(len(before), int(room * _BEFORE_SHARE)))
                shown = before[max(0, len(before) - room + behind) :]
                parts = [(opening, False), (shown, False), (learned[:behind], True)]
            result.append(self._document(parts, splittable=False))
        return result

    def repository_document(self, excerpts: Sequence[Excerpt]) -> Document:
        """Files one after another, in the model's repository format; targets are the files' texts and their ends."""
        import numpy as np

        texts = [
            text
            for excerpt in excerpts
            for text in (header_text(self._tokenizer, excerpt.path), excerpt.text)
        ]
        encoded = iter(self._cache.encode_many([self._repository + "\n", *texts]))
        name = next(encoded)
        marker = [] if self._tokenizer.repo_id is None else [self._tokenizer.repo_id]
        parts: list[tuple[np.ndarray, bool]] = []
        if marker:
            parts.append((np.concatenate([np.array(marker, dtype=np.int32), name]), False))
        for _ in excerpts:
            parts += [(self._header(next(encoded)), False), (next(encoded), True)]
        parts.append((np.array([self._tokenizer.eos_id], dtype=np.int32), True))
        return self._document(parts, splittable=True)

    def windows(self, excerpt: Excerpt, width: int) -> list[Document]:
        """An excerpt for evaluation: windows of at most ``width`` tokens, each opened by the path; every token a target."""
        header, tokens = self._cache.encode_many([header_text(self._tokenizer, excerpt.path), excerpt.text])
        opening = self._header(header)
        room = width - len(opening)
        return [
            self._document(
                [(opening, False), (tokens[at : at + room], True)], splittable=False, path=excerpt.path
            )
            for at in range(0, len(tokens), room)
        ]

    def _texts(self, example: Example) -> tuple[str, str, str, str]:
        prefix, middle = self._sides(example.prefix, example.middle)
        return header_text(self._tokenizer, example.path), prefix, example.suffix, middle

    def _sides(self, before: str, middle: str | None) -> tuple[str, str]:
        """What stands before a span and in it, as prompts have it (`FimMarkers.middle_from`)."""
        if middle is None or self._tokenizer.markers is None:
            return before, middle or ""
        line = self._tokenizer.markers.middle_from(before)
        return before[:line], before[line:] + middle

    def _header(self, ids: np.ndarray) -> np.ndarray:
        import numpy as np

        first = [self._tokenizer.bos_id, self._tokenizer.file_id]
        return np.concatenate(
            [np.array([index for index in first if index is not None], dtype=np.int32), ids]
        )

    def _left_to_right(self, header: np.ndarray, text: np.ndarray) -> Document:
        return self._document([(self._header(header), False), (text, True)], splittable=True)

    def _fill(
        self, header: np.ndarray, prefix: np.ndarray, suffix: np.ndarray, middle: np.ndarray
    ) -> Document:
        parts = [(self._header(header), False), *self._marked(prefix, suffix, middle)]
        return self._document(parts, splittable=False)

    def _marked(
        self, prefix: np.ndarray, suffix: np.ndarray, middle: np.ndarray, *, learn_prefix: bool = True
    ) -> list[tuple[np.ndarray, bool]]:
        """A span with what is around it in the model's own markers, and what of it is learned; the end marker is."""
        import numpy as np

        markers = self._tokenizer.markers
        assert markers is not None  # examples with a span are only made for models that have markers

        def mark(index: int | None) -> tuple[np.ndarray, bool]:
            return np.array([] if index is None else [index], dtype=np.int32), False

        first = [mark(markers.prefix), (prefix, learn_prefix)]
        second = [mark(markers.suffix), (suffix, True)]
        context = second + first if markers.order == "SPM" else first + second
        end = (np.array([markers.end], dtype=np.int32), True)
        return [*context, mark(markers.middle), (middle, True), end]

    def _document(
        self, parts: list[tuple[np.ndarray, bool]], *, splittable: bool, path: str = ""
    ) -> Document:
        import numpy as np

        tokens = np.concatenate([ids for ids, _ in parts]).astype(np.int32)
        mask = np.concatenate([np.full(len(ids), learned) for ids, learned in parts]).astype(bool)
        if len(mask):
            mask[0] = False
        target_bytes = int(self._tokenizer.byte_lengths[tokens[mask]].sum())
        return Document(tokens, mask, target_bytes, splittable, path)
