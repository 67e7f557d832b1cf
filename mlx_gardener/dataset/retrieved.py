"""Training examples with retrieved code in front, so that an adapter learns to use it instead of to pass over it.

In: pieces of training files, an index of the training part. Out: `RetrievedExample`s: what retrieval would show for a place, in the
form that evidence and server use, found by the path and the code before the place; then the code before it, of which nothing is
learned, since it chose the context; then what is learned. Places where a name of another file is used are preferred: where the
context says nothing that is needed, a model learns to ignore it (CoLA, arXiv:2503.15301). A file's own chunks are never shown, nor
those of its near duplicates, nor any most of which the row shows anyway, also where it has what is to be written.

Cost: an index of the training part (about 4 kB a chunk for a moment), a parse of its files, and a search with the encoding of what
it found for every example, some milliseconds each, of which there are at most `MOST_EXAMPLES`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset.examples import (
    CHARACTERS_PER_TOKEN,
    MIDDLE_CHARACTERS,
    Example,
    Excerpt,
    ExcerptPiece,
    RetrievedExample,
    choose_span,
    node_span,
    piece_characters,
    pieces_of,
)
from mlx_gardener.dataset.tasks import names_defined, uses_of_other_files
from mlx_gardener.retrieval import Retriever, index_of_files
from mlx_gardener.retrieval.context import CONTEXT_TOKENS
from mlx_gardener.source.records import FileRecord

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer

#: More examples with retrieved code are not made: the share falls instead, evenly. A minute or two of preparation.
MOST_EXAMPLES = 8192
#: Share of the spans at a name that are a syntax node around it; others are the line, or its end from a place before the name.
_NODE_SHARE = 0.6


class RetrievedExamples:
    """Chooses pieces and makes examples with retrieved code of them.

    Attributes:
        count: examples made so far; ``context_tokens`` stand in front of them, together.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[FileRecord],
        tokenizer: CodeTokenizer,
        config: TrainingConfig,
        *,
        name: str,
    ) -> None:
        """``files`` are the training part: what is retrieved comes from nowhere else."""
        width = config.data.sequence_lengths[-1]
        limit = min(CONTEXT_TOKENS, width // 2)
        self.width = width
        self.count = self.context_tokens = 0
        self._config = config.data
        self._seed = config.seed
        self._can_fill = tokenizer.markers is not None
        self._retriever = Retriever(index_of_files(root, files, name=name), tokenizer, limit_tokens=limit)
        self._piece_characters = piece_characters(width - limit)
        self._before_characters = int(CHARACTERS_PER_TOKEN * (width - limit))
        self._defined = names_defined(files)
        clusters: dict[int, list[str]] = {}
        for record in files:
            clusters.setdefault(record.cluster, []).append(record.path)
        self._near = {record.path: frozenset(clusters[record.cluster]) for record in files}
        self._characters = sum(
            chunk.end_byte - chunk.start_byte for record in files for chunk in record.chunks
        )

    def taken_from(
        self, pieces: Sequence[ExcerptPiece], interrupt: Callable[[], None] = lambda: None
    ) -> tuple[list[RetrievedExample], list[Example], list[ExcerptPiece]]:
        """(examples with retrieved code, what of their pieces is learned without, the pieces that were not taken).

        Args:
            interrupt: asked between pieces; may raise.
        """
        uses: dict[Excerpt, list[int]] = {}
        keys = []
        for at, piece in enumerate(pieces):
            if piece.excerpt not in uses:
                uses[piece.excerpt] = self._uses(piece.excerpt)
            end = piece.start + len(piece.text)
            needs = any(piece.start <= place < end for place in uses[piece.excerpt])
            draw = random.Random(f"{self._seed}\0retrieved\0{piece.excerpt.path}\0{piece.start}").random()
            keys.append((not needs, draw, at))
        taken = self._chosen(pieces, [at for _, _, at in sorted(keys)])
        made: list[RetrievedExample] = []
        plain: list[Example] = []
        left: list[ExcerptPiece] = []
        for at, piece in enumerate(pieces):
            interrupt()
            found = self._examples(piece, uses[piece.excerpt]) if at in taken else None
            if found is None:
                left.append(piece)
            else:
                made += found[0]
                plain += found[1]
        self.count += len(made)
        self.context_tokens += sum(len(example.context) for example in made)
        return made, plain, left

    def _chosen(self, pieces: Sequence[ExcerptPiece], order: Sequence[int]) -> set[int]:
        """The first pieces in ``order`` whose rows come to the share of all rows, as far as the bound allows for these pieces."""
        share = self._config.retrieval_share
        plain = sum(len(piece.text) for piece in pieces)
        most = MOST_EXAMPLES * plain / max(1, self._characters)
        learned, parts = plain / CHARACTERS_PER_TOKEN, 0
        taken: set[int] = set()
        for at in order:
            more = math.ceil(len(pieces[at].text) / self._piece_characters)
            rows = parts * self.width
            if rows >= share * (rows + learned) or (taken and parts + more > most):
                break
            taken.add(at)
            parts += more
            learned -= (
                len(pieces[at].text) / CHARACTERS_PER_TOKEN / 2
            )  # of a piece, what is behind its places; about half
        return taken

    def _uses(self, excerpt: Excerpt) -> list[int]:
        """Places (characters) in an excerpt where it uses names that other training files define."""
        data = excerpt.text.encode()
        places = [at for _, at in uses_of_other_files(excerpt, self._defined)]
        if len(data) == len(excerpt.text):
            return places
        return [len(data[:at].decode(errors="replace")) for at in places]

    def _examples(
        self, piece: ExcerptPiece, uses: Sequence[int]
    ) -> tuple[list[RetrievedExample], list[Example]] | None:
        """Examples of all of a piece, in parts that fit into a row behind the context; None where nothing is found for it."""
        excerpt, choose = piece.excerpt, piece.choose
        made: list[RetrievedExample] = []
        plain: list[Example] = []
        start = piece.start
        for text in pieces_of(piece.text, self._piece_characters):
            inside = [place - start for place in uses if start <= place < start + len(text)]
            span = self._span(text, excerpt.language, inside, choose)
            at, end = (self._line(text, inside, choose),) * 2 if span is None else span
            before = excerpt.text[: start + at]
            if span is None:  # a line break is often one token with the indentation that follows
                before = before.rstrip("\n")
            middle = None if span is None else text[at:end]
            learned = text[end:] if span is not None else excerpt.text[len(before) : start + len(text)]
            shows = (before[-self._before_characters :], (middle or "") + learned)
            found = self._retriever.find(excerpt.path, before, shown=shows, apart=self._near[excerpt.path])
            if found.pieces:
                shown = before[-2 * int(CHARACTERS_PER_TOKEN * self.width) :]
                made.append(RetrievedExample(excerpt.path, found.ids, shown, middle, learned))
            alone = text[:at] if found.pieces else text
            if len(alone.strip()) >= 4 * MIDDLE_CHARACTERS[0]:
                plain.append(Example(excerpt.path, alone, "", None))
            start += len(text)
        return (made, plain) if made else None

    def _span(
        self, text: str, language: str, uses: Sequence[int], choose: random.Random
    ) -> tuple[int, int] | None:
        """The span to fill in, at a name of another file where there is one; None for left to right."""
        if not self._can_fill or choose.random() >= self._config.fim_rate:
            return None
        if not uses:
            return choose_span(text, language, choose)
        place = choose.choice(uses)
        if choose.random() < _NODE_SHARE:
            span = node_span(text, language, choose, len(text[:place].encode()))
            if span is not None:
                return span
        start, end = _line_around(text, place)
        first = start + len(text[start:end]) - len(text[start:end].lstrip())
        if choose.random() < 0.5:
            first = choose.randint(first, place)
        return (
            (first, end) if 0 < end - first <= MIDDLE_CHARACTERS[1] else choose_span(text, language, choose)
        )

    def _line(self, text: str, uses: Sequence[int], choose: random.Random) -> int:
        """Where a line begins from which on is learned: one in the first half that uses another file's name, else the first."""
        lines = sorted({_line_around(text, place)[0] for place in uses if place < len(text) / 2})
        return choose.choice(lines) if lines else 0


def _line_around(text: str, place: int) -> tuple[int, int]:
    """Start and end of the line at a place, without its newline."""
    end = text.find("\n", place)
    return text.rfind("\n", 0, place) + 1, len(text) if end < 0 else end
