"""Retrieved context: BM25 over the chunks of the training part, put in front of a prompt in the model's own form.

Good retrieval is what a fine-tuned model has to beat, so it is an arm of every evaluation. A query is what an editor
would have: the file's path and the code before the place, never what is to be guessed. Identifiers count whole and by
their parts (camelCase, snake_case). The ranking is `bm25s`' (Lù 2024, arXiv:2407.03618). Cost: under a second for some
thousand chunks, a millisecond a query, and the training part's text in memory.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_gardener.dataset import PreparedData
from mlx_gardener.dataset.examples import Excerpt, excerpts_of, header_text
from mlx_gardener.errors import DataError
from mlx_gardener.source import read_source

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer

_WORD = re.compile(r"[^\W\d_]\w*|_\w+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
#: Characters before the place that make the query; an editor's screen.
_QUERY_CHARACTERS = 1200
_MOST_CHUNKS = 8


def code_words(text: str) -> list[str]:
    """Identifiers of ``text``, in lower case, each followed by its parts where it has several."""
    words: list[str] = []
    for word in _WORD.findall(text):
        parts = [part.lower() for part in _PART.findall(word)]
        words += [word.lower(), *parts] if len(parts) > 1 else [word.lower()]
    return words


def _words_of(path: str, text: str) -> list[str]:
    """Words of a text and of its path, whose suffix says nothing that tells files of a repository apart."""
    return code_words(f"{path.rpartition('.')[0] or path}\n{text}")


class Retriever:
    """Finds chunks of the training part for a place in another file.

    Args:
        chunks: (path, text) of every chunk.
        limit_tokens: most tokens of a context.
    """

    def __init__(
        self, chunks: Sequence[tuple[str, str]], tokenizer: CodeTokenizer, *, limit_tokens: int
    ) -> None:
        import bm25s

        # The library sets DEBUG itself, and its lines would be in the run's log.
        logging.getLogger("bm25s").setLevel(logging.INFO)
        self._chunks = list(chunks)
        self._tokenizer = tokenizer
        self._limit = limit_tokens
        self._index = bm25s.BM25()
        self._words: set[str] = set()
        corpus = [_words_of(path, text) for path, text in self._chunks]
        self._words.update(word for words in corpus for word in words)
        if self._words:
            self._index.index(corpus, show_progress=False)

    def context(self, path: str, before: str) -> list[int]:
        """Token ids of the best chunks for a place: the best one last, nearest to the prompt; at most the limit.

        Args:
            path: of the file that is worked on; its own chunks are never shown.
            before: the code in front of the place.
        """
        import numpy as np

        query = [
            word
            for word in dict.fromkeys(_words_of(path, before[-_QUERY_CHARACTERS:]))
            if word in self._words
        ]
        if not query:
            return []
        scores = self._index.get_scores(query)
        shown: list[list[int]] = []
        room = self._limit
        for at in np.argsort(-scores, kind="stable")[:_MOST_CHUNKS]:
            name, text = self._chunks[int(at)]
            if scores[at] <= 0 or room < 32:
                break
            if name == path:
                continue
            ids = self._file(name, text)[:room]
            shown.append(ids)
            room -= len(ids)
        return [index for ids in reversed(shown) for index in ids]

    def _file(self, path: str, text: str) -> list[int]:
        """A piece of a file as the model is used to see one: file marker (or a comment) with the path, then the text."""
        marker = [] if self._tokenizer.file_id is None else [self._tokenizer.file_id]
        return [*marker, *self._tokenizer.encode(header_text(self._tokenizer, path) + text.rstrip() + "\n")]


def training_excerpts(data: PreparedData) -> list[Excerpt]:
    """The text of the training part; files that changed since the scan are left out, as they were from the rows."""
    excerpts: list[Excerpt] = []
    for record in data.split.train:
        try:
            excerpts += excerpts_of(read_source(data.scan.root, record), record)
        except DataError:
            continue  # counted when the rows were made (files_changed_while_reading)
    return excerpts


def training_chunks(data: PreparedData) -> list[tuple[str, str]]:
    """(path, text) of every chunk of the training part."""
    chunks = []
    for record in data.split.train:
        try:
            text = read_source(data.scan.root, record).text.encode()
        except DataError:
            continue  # as above
        chunks += [
            (record.path, text[chunk.start_byte : chunk.end_byte].decode(errors="replace"))
            for chunk in record.chunks
        ]
    return chunks
