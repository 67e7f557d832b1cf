"""Retrieval by structure: the definitions that code before a place imports and uses, shown by their signatures.

BM25 finds code that looks like what is being written; that is how other files use a thing, and seldom the thing. Here names are
looked up: those that the file's imports name and those in an editor's screen before the place. In: an index, in which every
definition has a word of its own (`definitions.defining_word`), and a place. Out: `Card`s: signatures, of a class those of its
methods too, the one that is likeliest needed first. Cost: a millisecond or two; a file's imports are looked for in its first and
last 16,000 characters before the place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mlx_gardener.retrieval.definitions import defining_word, signatures_of
from mlx_gardener.retrieval.words import QUERY_CHARACTERS

if TYPE_CHECKING:
    from mlx_gardener.retrieval.index import Index

_IMPORTS = re.compile(
    r"^[ \t]*(?:(?:from|import|use|using|pub[ \t]+use|require|require_relative|export)\b"
    r"|(?:const|let|var)\b[^\n=]{1,200}=[ \t]*require\b)",
    re.M,
)
_NAME = re.compile(r"[^\W\d]\w{2,}")
#: Characters of an import statement, at most.
_IMPORT = 2000
#: Characters at the file's beginning and before the place in which imports are looked for, and of a chunk, for signatures.
_LOOKED_AT = 2**14
#: A name that more chunks define says nothing about one of them.
_MOST_DEFINING = 6
#: Methods of a class that are shown, at most, and definitions of a place that are looked at.
_METHODS, _MOST_CARDS = 24, 48


@dataclass(frozen=True)
class Card:
    """Signatures of one definition: the chunk it is in, and the text."""

    chunk: int
    text: str


def cards_for(index: Index, path: str, before: str) -> Iterator[Card]:
    """Definitions in other files that a place may need: what is imported and used right before it, what is imported, what is used.

    Args:
        path: of the file that is worked on; its own chunks are left out.
        before: its text before the place.
    """
    screen = before[-QUERY_CHARACTERS:]
    imported: dict[str, str] = {}
    for statement in _imports(before):
        screen = screen.replace(statement, "")
        for name in _NAME.findall(statement):
            imported.setdefault(name, statement)
    recent = list(dict.fromkeys(reversed(_NAME.findall(screen))))
    used = set(recent)
    ordered = [
        *(name for name in recent if name in imported),
        *(name for name in imported if name not in used),
        *(name for name in recent if name not in imported),
    ]
    seen: set[int] = set()
    for name in ordered:
        chunks = [chunk for chunk in index.with_word(defining_word(name)) if index.path_of(chunk) != path]
        if not chunks or len(chunks) > _MOST_DEFINING:
            continue
        chosen = _meant(index, chunks, imported.get(name, ""))
        if chosen in seen:
            continue
        seen.add(chosen)
        if text := _card(index, chosen, name):
            yield Card(chosen, text)
        if len(seen) == _MOST_CARDS:
            return


def _imports(before: str) -> Iterator[str]:
    """The import statements of a file, as far as they are looked for."""
    texts = [before] if len(before) <= 2 * _LOOKED_AT else [before[:_LOOKED_AT], before[-_LOOKED_AT:]]
    for text in texts:
        for match in _IMPORTS.finditer(text):
            depth = 0
            end = min(len(text), match.start() + _IMPORT)
            for at in range(match.start(), end):
                letter = text[at]
                if letter in "({":
                    depth += 1
                elif letter in ")}":
                    depth -= 1
                elif letter == "\n" and depth <= 0:
                    end = at
                    break
            yield text[match.start() : end]


def _meant(index: Index, chunks: Iterable[int], statement: str) -> int:
    """Of chunks that define a name, the one whose path an import statement names best; the first of several."""
    words = set(_NAME.findall(statement))

    def unnamed(chunk: int) -> int:
        return -len(words & set(PurePosixPath(index.path_of(chunk)).with_suffix("").parts))

    return min(chunks, key=lambda chunk: (unnamed(chunk), chunk))


def _card(index: Index, chunk: int, name: str) -> str:
    """The signatures that a definition's chunk shows: its own; of a class its methods', too, also where they are chunks themselves."""
    lines = signatures_of(index.text_of(chunk)[:_LOOKED_AT])
    if not lines:
        return ""
    first = next((line for line in lines if re.search(rf"\b{re.escape(name)}\b", line)), lines[0])
    indent = _indent(first)
    at = lines.index(first)
    shown = [first]
    for line in lines[at + 1 :]:
        if _indent(line) <= indent:
            return "\n".join(shown)
        shown.append(line)
    if re.search(r"\b(class|interface|trait|protocol|object|impl|struct)\b", first):
        end = index.end_of_file(chunk)
        for following in range(chunk + 1, min(end, chunk + 1 + _METHODS)):
            more = signatures_of(index.text_of(following)[:_LOOKED_AT])
            if more and _indent(more[0]) <= indent:
                break
            shown += more[:1]
    return "\n".join(shown[: _METHODS + 1])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
