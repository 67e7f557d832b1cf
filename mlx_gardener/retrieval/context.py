"""Code in front of a prompt: retrieved pieces, then what the client sent, in the model's own form and within one budget.

In: a place in a file with its prompt, an index, a client's pieces of other files. Out: token ids, and which pieces they show. The
file itself comes first and is `evaluate.complete`'s; of the tokens that are left for other code (`OTHER_CODE_TOKENS`, less where
the model's room is short) the client's own pieces take theirs first, retrieved ones what is left, up to what the evidence
measured. In the prompt the order is the other way round: what matters most stands nearest to the place. Evidence and server call
the same functions here.
Cost: one search, and the encoding of at most eight chunks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_gardener.model.tokens import header_text
from mlx_gardener.retrieval.index import Index
from mlx_gardener.retrieval.structure import Card, cards_for
from mlx_gardener.retrieval.words import query_words

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer

#: Tokens of other code that stand in front of a prompt, the client's pieces and retrieved ones together.
OTHER_CODE_TOKENS = 768
#: Most of them that are retrieved, and no more than a training row holds (judgement).
CONTEXT_TOKENS = 384
_MOST_CHUNKS = 8
#: Of retrieved code, the share that is signatures: none, as a real base reads lines better behind whole chunks (docs/evidence.md).
SIGNATURES_SHARE = 0.0
#: Chunks that are looked at for these: some may be shown already.
_LOOKED_AT = 4 * _MOST_CHUNKS
#: Room below which a piece says nothing.
_LEAST_TOKENS = 32
#: Characters for each token of room that are read of a piece: no tokenizer's tokens are as long on average.
_CHARACTERS_PER_TOKEN = 100
#: Lines shorter than this say nothing about where they come from.
_TELLING_CHARACTERS = 4


@dataclass(frozen=True)
class Piece:
    """A retrieved chunk that is shown: its lines in its file, and its tokens in the prompt, header included."""

    path: str
    start_line: int
    end_line: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class Context:
    """What stands in front of a prompt: ``ids`` of retrieved pieces, best last, and the pieces, best first."""

    ids: tuple[int, ...] = ()
    pieces: tuple[Piece, ...] = ()

    @property
    def tokens(self) -> int:
        """Of the pieces, together."""
        return sum(piece.tokens for piece in self.pieces)


class Retriever:
    """Finds chunks for a place in a file.

    Args:
        limit_tokens: most tokens of a context.
        signatures: the share of them that is for signatures of what the place imports and uses (`structure`); chunks take what is
            left.
    """

    def __init__(
        self,
        index: Index,
        tokenizer: CodeTokenizer,
        *,
        limit_tokens: int,
        signatures: float = SIGNATURES_SHARE,
    ) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._limit = limit_tokens
        self._signatures = signatures

    def context(self, path: str, before: str, *, shown: Iterable[str] = ()) -> list[int]:
        """Token ids of the best chunks for a place; see `find`."""
        return list(self.find(path, before, shown=shown).ids)

    def texts(self, *shown: Sequence[int]) -> list[str]:
        """What token ids say."""
        return [self._tokenizer.decode(list(ids)) for ids in shown]

    def find(
        self,
        path: str,
        before: str,
        *,
        shown: Iterable[str] = (),
        most_tokens: int | None = None,
        apart: Collection[str] = (),
    ) -> Context:
        """The best chunks for a place: the best one last, nearest to the prompt; at most the limit.

        Args:
            path: of the file that is worked on; its own chunks are never shown.
            before: the code before the place, which is searched by; the prompt may show less of it.
            shown: texts that the prompt or the row shows. A chunk most of whose lines stand in it is left out.
            most_tokens: fewer than the limit.
            apart: paths of further files whose chunks are never shown.
        """
        room = self._limit if most_tokens is None else min(self._limit, most_tokens)
        if room < _LEAST_TOKENS:
            return Context()
        found = self._index.search(query_words(path, before), _LOOKED_AT, without=path)
        opening = self._repository()
        room -= len(opening)
        known: set[str] = set().union(*map(_telling_lines, shown))
        ids, pieces = self._with_signatures(path, before, int(self._signatures * room), known, apart)
        room -= sum(map(len, ids))
        of_signatures = len(pieces)
        for chunk in found:
            if room < _LEAST_TOKENS or len(pieces) - of_signatures == _MOST_CHUNKS:
                break
            name = self._index.path_of(chunk)
            if name in apart:
                continue
            text = self._index.text_of(chunk)
            lines = _telling_lines(text)
            if lines and 2 * len(lines & known) > len(lines):
                continue
            known |= lines
            whole = self._file(name, text[: _CHARACTERS_PER_TOKEN * room])
            written = whole[:room]
            first, last = self._index.lines[chunk].tolist()
            if written != whole:  # told are the lines that are shown; before them stands the path
                breaks = self._tokenizer.decode(written).rstrip().count("\n")
                last = min(last, first + max(0, breaks - header_text(self._tokenizer, name).count("\n")))
            ids.append(written)
            pieces.append(Piece(name, first, last, len(written)))
            room -= len(written)
        if not pieces:
            return Context()
        inner = [*ids[:of_signatures], *reversed(ids[of_signatures:])]
        return Context((*opening, *(index for piece in inner for index in piece)), tuple(pieces))

    def _with_signatures(
        self, path: str, before: str, room: int, known: set[str], apart: Collection[str]
    ) -> tuple[list[list[int]], list[Piece]]:
        """Token ids and pieces of the signatures that fit, those of a file together; their lines become ``known``."""
        texts: dict[str, list[Card]] = {}
        left = room
        if room < _LEAST_TOKENS:
            return [], []
        for card in cards_for(self._index, path, before):
            name = self._index.path_of(card.chunk)
            if name in apart or _telling_lines(card.text) <= known:
                continue
            takes = len(self._tokenizer.encode(card.text)) + 1
            if name not in texts:
                takes += len(self._file(name, ""))
            if takes <= room:
                known |= _telling_lines(card.text)
                texts.setdefault(name, []).append(card)
                room -= takes
            if room < _LEAST_TOKENS // 2:
                break
        ids, pieces = [], []
        for name, cards in texts.items():
            written = self._file(name, "\n".join(card.text for card in cards))[:left]
            left -= len(written)
            lines = self._index.lines[[card.chunk for card in cards]]
            ids.append(written)
            pieces.append(Piece(name, int(lines[:, 0].min()), int(lines[:, 1].max()), len(written)))
        return ids, pieces

    def _repository(self) -> list[int]:
        """How the model's rows of a repository begin, where it has a marker for that."""
        if self._tokenizer.repo_id is None or not self._index.name:
            return []
        return [self._tokenizer.repo_id, *self._tokenizer.encode(f"{self._index.name}\n")]

    def _file(self, path: str, text: str) -> list[int]:
        """A piece of a file as the model is used to see one: file marker (or a comment) with the path, then the text."""
        marker = [] if self._tokenizer.file_id is None else [self._tokenizer.file_id]
        return [*marker, *self._tokenizer.encode(header_text(self._tokenizer, path) + text.rstrip() + "\n")]


def _telling_lines(text: str) -> set[str]:
    """The lines of a text that are long enough to say where they come from, without their indentation."""
    return {found for line in text.splitlines() if len(found := line.strip()) >= _TELLING_CHARACTERS}


def code_in_front(
    retriever: Retriever | None,
    path: str,
    before: str,
    after: str | None = None,
    *,
    own: Sequence[int],
    sent: Sequence[int] = (),
    most_tokens: int = OTHER_CODE_TOKENS,
) -> tuple[list[int], Context]:
    """What stands in front of a place, and what of it was retrieved.

    Args:
        retriever: None retrieves nothing.
        path, before: as in `Retriever.find`.
        after: the code after the place; None goes on left to right. Without a path nothing would tell where the retrieved code
            ends then, so nothing is retrieved.
        own: token ids of the place's own prompt: all of the open file that is shown, which may be far less than there is.
        sent: token ids of the client's pieces of other files; they take the room first.
        most_tokens: for all of it.
    """
    if retriever is None or not (path or after is not None):
        return list(sent), Context()
    shown = retriever.texts(own, sent)
    found = retriever.find(path, before, shown=shown, most_tokens=most_tokens - len(sent))
    return [*found.ids, *sent], found


def most_in_front(prompt: Sequence[int], room: int) -> int:
    """Tokens of other code that fit in front of a prompt, into ``room`` tokens for both."""
    return max(0, min(OTHER_CODE_TOKENS, room - len(prompt)))


def with_context(prompt: Sequence[int], context: Sequence[int], tokenizer: CodeTokenizer) -> list[int]:
    """A prompt with other code in front: after the token that opens a document, where the model has one."""
    opening = 0 if tokenizer.bos_id is None or not context else 1
    return [*prompt[:opening], *context, *prompt[opening:]]
