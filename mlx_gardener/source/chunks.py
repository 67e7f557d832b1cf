"""A file into chunks that mean something: functions, classes, methods, imports, ... by its syntax tree.

The chunks of a file lie side by side and cover all of it but blank lines, so that dropping one leaves the rest whole.
Small classes stay together; larger ones become their head and one chunk per member. Files without a grammar, and
stretches a grammar cannot read, become blocks between blank lines. Cost: one parse and a look at top-level nodes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.config import DataConfig
from mlx_gardener.errors import DataError
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_bytes
from mlx_gardener.source.filters import decode_source
from mlx_gardener.source.imports import imports_of
from mlx_gardener.source.languages import language_of, parse
from mlx_gardener.source.quality import complexity_of, quality_of
from mlx_gardener.source.records import ChunkType, CodeChunk

if TYPE_CHECKING:
    from tree_sitter import Node

#: A class of at most this many lines stays one chunk (judgement: it fits a screen).
WHOLE_CLASS_LINES = 40
#: Blocks of files without a grammar grow to about this many lines.
BLOCK_LINES = 30
#: Classes within classes deeper than this stay one chunk.
MAX_DEPTH = 20

#: First match wins; node types of all grammars follow these words.
_KINDS = (
    (ChunkType.COMMENT, re.compile(r"comment|^hash_bang|shebang")),
    (ChunkType.IMPORT, re.compile(r"import|^use_|^using|^package|preproc_include|^include|extern_crate|namespace_use")),
    (ChunkType.INTERFACE, re.compile(r"interface|trait|protocol")),
    (ChunkType.FUNCTION, re.compile(r"function|method|constructor|^fun_|^init_|^deinit|operator_|macro|subscript|^singleton_")),
    (ChunkType.CLASS, re.compile(r"class|^impl_|^object_|^struct|^module|^extension|namespace|record")),
    (ChunkType.TYPE, re.compile(r"type|enum|union|^mod_item")),
    (ChunkType.VARIABLE, re.compile(r"variable|const|static|assign|lexical|^property|^field|^declaration|preproc_def|^var_|^let_")),
)  # fmt: skip
#: Wrappers: what they are is decided by what they hold.
_WRAPPERS = re.compile(
    r"^(export_statement|decorated_definition|template_declaration|ambient_declaration|expression_statement|declare_)"
)
#: Nodes that only hold others (header guards, ``extern "C"``); their content is looked at in their place.
_TRANSPARENT = re.compile(
    r"^(preproc_if|preproc_else|preproc_elif|linkage_specification|declaration_list|namespace_definition|mod_item)"
)
_BODIES = re.compile(r"body|declaration_list|^block$|members?$")


@dataclass(frozen=True)
class _Span:
    """Bytes of a file and what they are."""

    start: int
    end: int
    kind: ChunkType
    name: str
    broken: bool = False


class CodePreprocessor:
    """Turns code into `CodeChunk`s.

    Args:
        config: limits of the dataset; only its filters are read.
    """

    def __init__(self, config: DataConfig | None = None) -> None:
        self.config = config or DataConfig()

    def preprocess_file(self, path: str | Path, code: str | None = None) -> list[CodeChunk]:
        """The chunks of a file; its language follows from its name.

        Args:
            code: what is in it; read from the file when None.

        Raises:
            DataError: it cannot be read, is larger than ``data.max_file_bytes``, or is no text.
        """
        name = path.as_posix() if isinstance(path, Path) else path
        return self.preprocess_code(self._read(name) if code is None else code, language_of(name), name)

    def _read(self, path: str) -> str:
        try:
            return decode_source(read_bytes(Path(path), max_bytes=self.config.max_file_bytes))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path!r} is no text in UTF-8 or UTF-16.", next_step="Name a file of code."
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path!r} cannot be read ({reason_of(error)}).", next_step="Name a file of code."
            ) from error

    def preprocess_code(self, code: str, language: str, path: str = "") -> list[CodeChunk]:
        """The chunks of ``code``; a language without a grammar gives blocks.

        Raises:
            DataError: ``code`` holds lone surrogates and so is no text.
        """
        try:
            data = code.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"The code of {path!r} is not valid Unicode.", next_step="Decode it as UTF-8 first."
            ) from error
        imports = imports_of(code, language)
        lines = _LineIndex(data)
        return [_chunk(data, span, language, path, imports, lines) for span in split_spans(data, language)]


def split_spans(data: bytes, language: str) -> list[_Span]:
    """Side-by-side spans of a file's UTF-8 bytes, without the blank lines between them."""
    tree = parse(data, language)
    if tree is None:
        return list(_blocks(data, 0, len(data)))
    spans = list(_merged(_node_spans(tree.root_node, data), data))
    if len(spans) == 1 and spans[0].kind in (ChunkType.BLOCK, ChunkType.VARIABLE):
        return [_Span(spans[0].start, spans[0].end, ChunkType.MODULE, "", spans[0].broken)]
    return spans


def _node_spans(parent: Node, data: bytes, inside_class: bool = False, depth: int = 0) -> Iterator[_Span]:
    """Spans of a node's children; wrappers are looked through, large classes opened down to `MAX_DEPTH`."""
    for node in parent.children:
        if not node.is_named and node.end_byte - node.start_byte <= 2:
            continue  # braces and separators; `_merged` gives them to a neighbour
        if node.type == "ERROR":
            for block in _blocks(data, node.start_byte, node.end_byte):
                yield _Span(block.start, block.end, ChunkType.BLOCK, "", broken=True)
            continue
        kind, core = _kind_of(node)
        lines = node.end_point[0] - node.start_point[0] + 1
        opens = kind in (ChunkType.CLASS, ChunkType.INTERFACE) or _TRANSPARENT.match(core.type)
        body = _body_of(core) if opens and lines > WHOLE_CLASS_LINES and depth < MAX_DEPTH else None
        if body is None:
            if kind is ChunkType.FUNCTION and inside_class:
                kind = ChunkType.METHOD
            yield _Span(node.start_byte, node.end_byte, kind, _name_of(core, data), node.has_error)
            continue
        is_class = kind in (ChunkType.CLASS, ChunkType.INTERFACE)
        members = list(_node_spans(body, data, inside_class=is_class, depth=depth + 1))
        first = members[0].start if members else node.end_byte
        yield _Span(node.start_byte, first, kind, _name_of(core, data), False)
        yield from members


def _kind_of(node: Node) -> tuple[ChunkType, Node]:
    """What a node is, and the node that decides it (a wrapper's content)."""
    core = node
    while _WRAPPERS.match(core.type) and core.named_child_count:
        inner = core.child_by_field_name("definition") or core.child_by_field_name("declaration")
        core = inner or core.named_children[-1]
    if core.type in ("string", "concatenated_string") and core is not node:
        return ChunkType.COMMENT, core  # a docstring
    if core.type in ("lexical_declaration", "variable_declaration", "assignment_expression"):
        text_types = {child.type for part in core.named_children for child in part.named_children}
        if text_types & {"arrow_function", "function_expression", "function"}:
            return ChunkType.FUNCTION, core
    for kind, pattern in _KINDS:
        if pattern.search(core.type):
            return kind, core
    return ChunkType.BLOCK, core


def _body_of(node: Node) -> Node | None:
    """The node that holds a class's members; the node itself where they lie in it directly."""
    body = node.child_by_field_name("body")
    if body is None:
        body = next((child for child in reversed(node.named_children) if _BODIES.search(child.type)), None)
    if body is None and node.type.startswith("preproc"):
        body = node
    return body if body is not None and body.named_child_count > 1 else None


def _name_of(node: Node, data: bytes) -> str:
    """The name a node gives to what it defines; "" where it gives none."""
    for field in ("name", "declarator", "left", "type"):
        found = node.child_by_field_name(field)
        while found is not None and (inner := found.child_by_field_name("declarator")) is not None:
            found = inner
        if found is not None:
            # Not `Node.text`, which reads a whole piece of the file for it. A name of 100 characters has 400 bytes at most.
            text = data[found.start_byte : found.end_byte].lstrip()[:400]
            return text.decode(errors="replace").split("(")[0].strip()[:100]
    for child in node.named_children[:1]:
        if child.type == "variable_declarator":
            return _name_of(child, data)
    return ""


def _merged(spans: Iterator[_Span], data: bytes) -> Iterator[_Span]:
    """Spans without gaps or repeats: comments join what follows, runs of imports or small variables join."""
    held: _Span | None = None
    covered = 0
    for span in spans:
        start = max(span.start, covered)
        if start >= span.end or not data[start : span.end].strip():
            continue
        gap = data[covered:start]
        if gap.strip():
            start = covered + len(gap) - len(gap.lstrip())
        span = _Span(start, span.end, span.kind, span.name, span.broken)
        covered = span.end
        if held is None:
            held = span
        elif _joins(held, span, data):
            kind, name = (
                (span.kind, span.name)
                if held.kind is ChunkType.COMMENT
                else (held.kind, held.name or span.name)
            )
            held = _Span(held.start, span.end, kind, name, held.broken or span.broken)
        else:
            yield held
            held = span
    if held is not None:
        tail = len(data.rstrip())
        yield _Span(held.start, max(held.end, tail), held.kind, held.name, held.broken)


def _joins(first: _Span, second: _Span, data: bytes) -> bool:
    between = data[first.end : second.start]
    if first.kind is ChunkType.COMMENT:
        return between.count(b"\n") <= 1 or second.kind is ChunkType.COMMENT
    same = first.kind is second.kind and first.kind in (ChunkType.IMPORT, ChunkType.VARIABLE, ChunkType.BLOCK)
    return (
        same
        and second.end - first.start < 2000
        and (first.kind is ChunkType.IMPORT or between.count(b"\n") <= 1)
    )


def _blocks(data: bytes, start: int, end: int) -> Iterator[_Span]:
    """Stretches between blank lines, joined up to about `BLOCK_LINES` lines."""
    begin: int | None = None
    lines = 0
    position = last = start
    for line in data[start:end].splitlines(keepends=True):
        blank = not line.strip()
        if begin is not None and ((blank and lines >= BLOCK_LINES) or lines >= 4 * BLOCK_LINES):
            yield _Span(begin, last, ChunkType.BLOCK, "")
            begin = None
        if not blank:
            if begin is None:
                begin, lines = position, 0
            last = position + len(line.rstrip(b"\r\n"))
        lines += 1
        position += len(line)
    if begin is not None:
        yield _Span(begin, last, ChunkType.BLOCK, "")


class _LineIndex:
    """Line numbers of byte offsets, for offsets asked in rising order."""

    def __init__(self, data: bytes) -> None:
        self._data, self._offset, self._line = data, 0, 1

    def line_of(self, offset: int) -> int:
        if offset < self._offset:
            self._offset, self._line = 0, 1
        self._line += self._data.count(b"\n", self._offset, offset)
        self._offset = offset
        return self._line


def _chunk(
    data: bytes, span: _Span, language: str, path: str, imports: tuple[str, ...], lines: _LineIndex
) -> CodeChunk:
    raw = data[span.start : span.end]
    content = raw.decode(errors="replace")
    quality = quality_of(content, span.kind, parse_error=span.broken)
    identity = hashlib.sha256(f"{path}\0{span.start}\0{span.end}\0".encode(errors="surrogateescape") + raw)
    used = (
        imports
        if span.kind is ChunkType.IMPORT
        else tuple(name for name in imports if _last_part(name) in content)
    )
    return CodeChunk(
        id=identity.hexdigest()[:16],
        content=content,
        language=language,
        chunk_type=span.kind,
        file_path=path,
        start_line=lines.line_of(span.start),
        end_line=lines.line_of(max(span.start, span.end - 1)),
        start_byte=span.start,
        end_byte=span.end,
        metadata={
            "name": span.name,
            "quality": quality.score,
            "quality_reasons": quality.reasons,
            "parse_error": span.broken,
        },
        dependencies=used,
        complexity_score=complexity_of(content),
    )


def _last_part(name: str) -> str:
    return re.split(r"[./:\\]+", name.rstrip("/"))[-1] or name
