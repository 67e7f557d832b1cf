"""What counts as a word of code: identifiers, whole and by their parts (camelCase, snake_case), in lower case.

In: text. Out: words, and the 64-bit hashes that stand for them in an index: eight bytes instead of a string, and two words of
a million fall together once in thirty million repositories. Cost: about a third of a second for a MB.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

_WORD = re.compile(r"[^\W\d_]\w*|_\w+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
#: Characters before the place that make the query; an editor's screen.
QUERY_CHARACTERS = 1200


def code_words(text: str) -> list[str]:
    """Identifiers of ``text``, in lower case, each followed by its parts where it has several."""
    words: list[str] = []
    for word in _WORD.findall(text):
        words += _with_parts(word)
    return words


def words_of(path: str, text: str) -> list[str]:
    """Words of a text and of its path, whose suffix says nothing that tells files of a repository apart."""
    return code_words(f"{path.rpartition('.')[0] or path}\n{text}")


def query_words(path: str, before: str) -> list[str]:
    """The words of a place, each once: its file's path and an editor's screen of what stands before it."""
    return list(dict.fromkeys(words_of(path, before[-QUERY_CHARACTERS:])))


@lru_cache(maxsize=2**16)
def _with_parts(word: str) -> tuple[str, ...]:
    parts = [part.lower() for part in _PART.findall(word)]
    return (word.lower(), *parts) if len(parts) > 1 else (word.lower(),)


@lru_cache(maxsize=2**16)
def word_hash(word: str) -> int:
    """64 bits that stand for a word, the same everywhere and always."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
