"""Languages by file name, and the tree-sitter grammar of each; files without a grammar are read as plain blocks."""

from __future__ import annotations

import threading
from functools import cache
from importlib import import_module
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Language, Parser, Tree

_BY_SUFFIX = {
    "python": ".py .pyi .pyw",
    "javascript": ".js .jsx .mjs .cjs",
    "typescript": ".ts .mts .cts",
    "tsx": ".tsx",
    "go": ".go",
    "rust": ".rs",
    "c": ".c .h",
    "cpp": ".cc .cpp .cxx .hpp .hh .hxx .ipp .inl",
    "java": ".java",
    "ruby": ".rb .rake .gemspec",
    "php": ".php",
    "csharp": ".cs",
    "swift": ".swift",
    "kotlin": ".kt .kts",
    "bash": ".sh .bash .zsh",
    "lua": ".lua",
    "scala": ".scala .sc",
    "perl": ".pl .pm",
    "r": ".r",
    "julia": ".jl",
    "haskell": ".hs",
    "ocaml": ".ml .mli",
    "elixir": ".ex .exs",
    "erlang": ".erl .hrl",
    "clojure": ".clj .cljs .cljc .edn",
    "dart": ".dart",
    "objective-c": ".m .mm",
    "zig": ".zig",
    "nim": ".nim",
    "sql": ".sql",
    "css": ".css .scss .less .sass",
    "html": ".html .htm .vue .svelte .jinja .j2 .tmpl",
    "markdown": ".md .markdown .mdx",
    "rst": ".rst",
    "yaml": ".yml .yaml",
    "toml": ".toml",
    "json": ".json .jsonc .json5",
    "xml": ".xml .xsd",
    "ini": ".ini .cfg .conf",
    "make": ".mk .mak",
    "cmake": ".cmake",
    "protobuf": ".proto",
    "assembly": ".s .asm",
    "tex": ".tex",
}
_BY_NAME = {
    "makefile": "make",
    "dockerfile": "docker",
    "cmakelists.txt": "cmake",
    "rakefile": "ruby",
    "gemfile": "ruby",
}
LANGUAGES = {suffix: language for language, suffixes in _BY_SUFFIX.items() for suffix in suffixes.split()}

#: A tick is a hundred operations of a parser. Usual files take at most one for 28 bytes, most one for 100 and more.
FREE_PARSE_TICKS = 500
BYTES_PER_PARSE_TICK = 20
#: A parser gets a file in pieces, and usual files are read two or three times over.
PIECE_BYTES, FREE_READS, READS_PER_PIECE = 4096, 500, 32

#: language -> (module of the grammar's wheel, function that gives the grammar)
GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "java": ("tree_sitter_java", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "csharp": ("tree_sitter_c_sharp", "language"),
    "swift": ("tree_sitter_swift", "language"),
    "kotlin": ("tree_sitter_kotlin", "language"),
    "bash": ("tree_sitter_bash", "language"),
}


def language_of(path: str) -> str:
    """The language of a file by its name; "text" where nothing is known."""
    name = PurePosixPath(path).name.lower()
    return _BY_NAME.get(name) or LANGUAGES.get(PurePosixPath(name).suffix, "text")


@cache
def _grammar(language: str) -> Language:
    from tree_sitter import Language

    module, function = GRAMMARS[language]
    return Language(getattr(import_module(module), function)())


#: Parsers of the running thread, by language.
_OF_THREAD = threading.local()


def parser_for(language: str) -> Parser | None:
    """The parser of a language; None where there is no grammar. One per thread: two that use one at once end the process."""
    if language not in GRAMMARS:
        return None
    from tree_sitter import Parser

    parsers: dict[str, Parser] = _OF_THREAD.__dict__.setdefault("parsers", {})
    if language not in parsers:
        parsers[language] = Parser(_grammar(language))
    return parsers[language]


def parse(data: bytes, language: str) -> Tree | None:
    """The syntax tree of UTF-8 text; None without a grammar, and where it would take unusually many operations.

    Some grammars need a minute and more for a hundred bytes of nonsense, or look ahead to the end of the file at every word
    (Kotlin's does both), be it a stranger's file or what a model writes. Operations and reads are counted and not seconds, so
    that a text gives the same on every machine.
    """
    parser = parser_for(language)
    if parser is None:
        return None
    ticks = FREE_PARSE_TICKS + len(data) // BYTES_PER_PARSE_TICK
    reads = FREE_READS + READS_PER_PIECE * (len(data) // PIECE_BYTES)

    def read(at: int, point: object) -> bytes:
        nonlocal reads
        reads -= 1
        return data[at : at + PIECE_BYTES]

    def is_too_much(offset: int, has_error: bool) -> bool:
        nonlocal ticks
        ticks -= 1
        return ticks < 0 or reads < 0

    try:
        return parser.parse(read, progress_callback=is_too_much)
    except ValueError:
        parser.reset()
        return None
