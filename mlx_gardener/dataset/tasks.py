"""Tasks on held-out code: the next line, lines that use what other files define, a span the size of a syntax node, and
places to be continued word for word. Assertions are in `assertions`."""

from __future__ import annotations

import io
import random
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from mlx_gardener.dataset.assertions import LOOKED_AT_BYTES
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.dataset.turns import in_turn
from mlx_gardener.source.languages import parse

if TYPE_CHECKING:
    from tree_sitter import Node

    from mlx_gardener.source.records import FileRecord

#: Nothing is learned from lines that anybody would guess: blanks, braces, imports, three characters.
_TRIVIAL = re.compile(
    r"[\s{}()\[\];,:]*|\s*(import|from|use|using|package|#include|require)\b.*|\s*(#|//|\*|/\*|--[\s\[-]).*"
)
_LEAST_CONTEXT_LINES = 3
#: Shortest and longest span, characters: short enough to be written within the usual limit of new tokens.
_SPAN_CHARACTERS = (8, 96)
#: Random places of a file after which no new span is found there (judgement).
_SPAN_TRIES = 16
#: A name that more files define says nothing about one of them; nor does a short one, or a single word in lower case,
#: which may as well be anybody's attribute (judgement).
_MOST_DEFINING = 3
_TELLING = re.compile(r"(?!(None|True|False|NULL|Self|String)$)(?=.*[A-Z_]).{4,}")
#: Nodes whose names are no use of them, and leaves that are names.
_NO_USE = re.compile(r"comment|string|import|^use_|^using|include|package|text|^regex")
_NAME = re.compile(r"identifier$|^constant$|^name$|^word$")
_DEFINES = re.compile(r"definition|declarat|_item$|_spec$|^class|^function|^method")


@dataclass(frozen=True)
class NextLineTask:
    """A place in a held-out file: ``prefix`` ends right before the line, ``target`` is the line without its newline."""

    path: str
    line: int
    prefix: str
    target: str


@dataclass(frozen=True)
class FimTask:
    """A syntax node taken out of a held-out file that parses without errors: ``prefix + target + suffix`` is the file."""

    path: str
    language: str
    line: int
    prefix: str
    target: str
    suffix: str


@dataclass(frozen=True)
class Place:
    """A line's end in a file, and what follows it."""

    path: str
    prefix: str
    rest: str


def file_lines(text: str) -> list[str]:
    """The lines of a file with their ends, as editors count them: form feeds and U+2028 end none."""
    return list(io.StringIO(text, newline=""))


def next_line_tasks(excerpts: Sequence[Excerpt], count: int, *, seed: int) -> list[NextLineTask]:
    """``count`` tasks drawn without repeats from held-out files in turn; fewer when there are not as many.

    The first of them are those that a smaller ``count`` draws.
    """
    places = []
    for excerpt in excerpts:
        for number, line in enumerate(line.rstrip("\r\n") for line in file_lines(excerpt.text)):
            if _is_asked(number, line):
                places.append((excerpt, number))
    turns = in_turn(places, lambda place: place[0].path, random.Random(seed))
    tasks = []
    for excerpt, number in islice(turns, count):
        lines = file_lines(excerpt.text)
        tasks.append(
            NextLineTask(excerpt.path, number + 1, "".join(lines[:number]), lines[number].rstrip("\r\n"))
        )
    return tasks


def names_defined(
    files: Sequence[FileRecord], trained: Sequence[FileRecord] | None = None
) -> dict[str, frozenset[str]]:
    """The repository's own names: those that its chunks define and that say something, each with the files that define it.

    ``__init__``, ``name`` and what more than three files define are nobody's own: who writes them knows nothing of the repository.
    Neither is what a file only imports.

    Args:
        trained: leave out what none of these defines: neither an adapter nor an index of them can know it.
    """
    known = {record.path for record in (files if trained is None else trained)}
    found: dict[str, set[str]] = {}
    for record in files:
        for chunk in record.chunks:
            for name in chunk.defined_names:
                found.setdefault(name, set()).add(record.path)
    return {
        name: frozenset(paths)
        for name, paths in found.items()
        if len(paths) <= _MOST_DEFINING and paths & known and _TELLING.fullmatch(name.strip("_"))
    }


def cross_file_tasks(
    excerpts: Sequence[Excerpt], count: int, defined: Mapping[str, frozenset[str]], *, seed: int
) -> list[NextLineTask]:
    """``count`` next lines that use a name which another file defines and theirs does not, from files in turn.

    There are fewer when there are not as many, and the first of them are those that a smaller ``count`` draws. Imports, comments
    and text are no use of a name.

    Args:
        defined: what `names_defined` says of the repository.
    """
    found: list[NextLineTask] = []
    looked_at = 0
    ordered = list(excerpts)
    random.Random(f"{seed}\0cross file").shuffle(ordered)
    for excerpt in ordered:
        if count == 0 or looked_at > LOOKED_AT_BYTES:
            break
        looked_at += len(excerpt.text)
        lines = file_lines(excerpt.text)
        found += [
            NextLineTask(excerpt.path, at + 1, "".join(lines[:at]), lines[at].rstrip("\r\n"))
            for at in _lines_using(excerpt, defined)
            if at < len(lines) and _is_asked(at, lines[at].rstrip("\r\n"))
        ]
    turns = in_turn(found, lambda task: task.path, random.Random(f"{seed}\0cross-file lines"))
    return list(islice(turns, count))


@dataclass(frozen=True)
class AskedLine:
    """A line worth asking for: where it and its end ("\\n") begin, bytes, and whether it uses what another file defines."""

    start_byte: int
    end_byte: int
    is_cross_file: bool


def asked_lines(excerpt: Excerpt, defined: Mapping[str, frozenset[str]]) -> list[AskedLine]:
    """The lines of a file of which `next_line_tasks` draws, but for one without an end.

    Args:
        defined: what `names_defined` says of the repository.
    """
    crossing, at = set(_lines_using(excerpt, defined)), 0
    found = []
    for number, line in enumerate(file_lines(excerpt.text)):
        start, at = at, at + len(line.encode())
        if line.endswith("\n") and _is_asked(number, line.rstrip("\r\n")):
            found.append(AskedLine(start, at - 1, number in crossing))
    return found


def _is_asked(number: int, line: str) -> bool:
    """Whether a line, counted from 0, is worth asking for."""
    return number >= _LEAST_CONTEXT_LINES and len(line.strip()) >= 4 and not _TRIVIAL.fullmatch(line)


def _lines_using(excerpt: Excerpt, defined: Mapping[str, frozenset[str]]) -> list[int]:
    """The lines of a file, counted from 0, that use a name which is defined elsewhere and not here.

    They are those of `file_lines`: a syntax tree does not end a line at a carriage return alone.
    """
    ends = list(accumulate(len(line.encode()) for line in file_lines(excerpt.text)))
    return sorted({bisect_right(ends, at) for _, at in uses_of_other_files(excerpt, defined)})


def uses_of_other_files(excerpt: Excerpt, defined: Mapping[str, frozenset[str]]) -> list[tuple[int, int]]:
    """Where a file uses names that are defined elsewhere and not here: lines, counted from 0, and bytes; rising.

    Args:
        defined: what `names_defined` says of the repository.
    """
    data = excerpt.text.encode()
    tree = parse(data, excerpt.language)
    used: list[tuple[int, int, str]] = []
    own: set[str] = set()
    waiting = [] if tree is None else [tree.root_node]
    while waiting:
        node = waiting.pop()
        if _NO_USE.search(node.type):
            continue
        waiting += node.children
        if _DEFINES.search(node.type) and (named := node.child_by_field_name("name")) is not None:
            own.add(data[named.start_byte : named.end_byte].decode(errors="replace"))
        if not node.child_count and _NAME.search(node.type):
            name = data[node.start_byte : node.end_byte].decode(errors="replace")
            if name in defined and excerpt.path not in defined[name]:
                used.append((node.start_point[0], node.start_byte, name))
    return sorted((line, at) for line, at, name in used if name not in own)


def fim_tasks(excerpts: Sequence[Excerpt], count: int, *, seed: int) -> list[FimTask]:
    """``count`` spans drawn without repeats, from files in turn and evenly by place in each; fewer where few parse without errors.

    The first of them are those that a smaller ``count`` draws.
    """
    return list(islice(_spans_in_turn(excerpts, seed), count))


def _spans_in_turn(excerpts: Sequence[Excerpt], seed: int) -> Iterator[FimTask]:
    """As `in_turn` would have them; a file is looked at when its turn comes."""
    by_file: dict[str, list[Excerpt]] = {}
    for excerpt in excerpts:
        by_file.setdefault(excerpt.path, []).append(excerpt)
    left = [
        _spans_of(found, random.Random(f"{seed}\0holes\0{path}".encode(errors="surrogateescape")))
        for path, found in by_file.items()
    ]
    choose = random.Random(f"{seed}\0holes")
    while left:
        choose.shuffle(left)
        for spans in tuple(left):
            task = next(spans, None)
            if task is None:
                left.remove(spans)
            else:
                yield task


def _spans_of(excerpts: Sequence[Excerpt], choose: random.Random) -> Iterator[FimTask]:
    """Spans of a file, until hardly any is new."""
    left = [(excerpt, set[tuple[int, int]]()) for excerpt in excerpts if _parses(excerpt)]
    while left:
        excerpt, drawn = choose.choices(left, [len(excerpt.text) for excerpt, _ in left])[0]
        span = _new_span(excerpt, drawn, choose)
        if span is None:
            left.remove((excerpt, drawn))
            continue
        drawn.add(span)
        start, end = span
        data = excerpt.text.encode()
        prefix, target, suffix = data[:start].decode(), data[start:end].decode(), data[end:].decode()
        yield FimTask(excerpt.path, excerpt.language, prefix.count("\n") + 1, prefix, target, suffix)


def _parses(excerpt: Excerpt) -> bool:
    tree = parse(excerpt.text.encode(), excerpt.language)
    return tree is not None and not tree.root_node.has_error


def _new_span(
    excerpt: Excerpt, drawn: Collection[tuple[int, int]], choose: random.Random
) -> tuple[int, int] | None:
    """Start and end (bytes) of a node that was not drawn yet; None where none is found around some random places."""
    data = excerpt.text.encode()
    tree = parse(data, excerpt.language)
    if tree is None:
        return None
    spans = (_node_at(tree.root_node, data, choose) for _ in range(_SPAN_TRIES))
    return next((span for span in spans if span is not None and span not in drawn), None)


def _node_at(root: Node, data: bytes, choose: random.Random) -> tuple[int, int] | None:
    """The largest named node around a random byte that is no longer than a drawn length; bytes."""
    at, most = choose.randrange(len(data)), choose.randint(*_SPAN_CHARACTERS)
    node = root.named_descendant_for_byte_range(at, at)
    while node is not None and node.parent is not None:
        if node.parent.end_byte - node.parent.start_byte > most:
            break
        node = node.parent
    if node is None or not _SPAN_CHARACTERS[0] <= node.end_byte - node.start_byte <= _SPAN_CHARACTERS[1]:
        return None
    text = data[node.start_byte : node.end_byte].decode()
    return None if "comment" in node.type or _TRIVIAL.fullmatch(text) else (node.start_byte, node.end_byte)


def continuation_places(
    excerpts: Sequence[Excerpt], count: int, *, least_rest: int, seed: int
) -> list[Place]:
    """``count`` line ends drawn without repeats, with lines before and at least ``least_rest`` characters after."""
    choices = []
    for excerpt in excerpts:
        ends = [match.start() for match in re.finditer(r"\n", excerpt.text)][_LEAST_CONTEXT_LINES - 1 :]
        choices += [(excerpt, end) for end in ends if len(excerpt.text) - end >= least_rest]
    chosen = random.Random(f"{seed}\0places").sample(choices, min(count, len(choices)))
    return [Place(excerpt.path, excerpt.text[:end], excerpt.text[end:]) for excerpt, end in chosen]
