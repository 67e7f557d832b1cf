"""Chunks: every language with a grammar is cut at its own functions and classes, and nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.config import DataConfig
from mlx_gardener.errors import DataError
from mlx_gardener.source import ChunkType, CodePreprocessor
from mlx_gardener.source.chunks import split_spans
from mlx_gardener.source.languages import GRAMMARS
from tests.support.counted import Counted
from tests.support.samples import SAMPLES


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_every_grammar_finds_its_function_or_class(language: str) -> None:
    path, code, name = SAMPLES[language]
    chunks = CodePreprocessor().preprocess_file(path, code)
    assert {chunk.language for chunk in chunks} == {language}
    kinds = {chunk.chunk_type for chunk in chunks if chunk.metadata["name"] == name}
    assert kinds & {ChunkType.FUNCTION, ChunkType.CLASS}, [(c.chunk_type, c.metadata["name"]) for c in chunks]
    assert not any(chunk.metadata["parse_error"] for chunk in chunks)


def test_an_assignment_is_named_after_what_it_assigns_to_and_not_after_its_type() -> None:
    code = (
        "import typing\n\nBERTHS: typing.Optional[int] = None\n\n\ndef weigh(ship):\n    return ship.size\n"
    )
    chunks = CodePreprocessor().preprocess_file("harbor.py", code)
    assert [chunk.metadata["name"] for chunk in chunks if chunk.chunk_type is ChunkType.VARIABLE] == [
        "BERTHS"
    ]


@pytest.mark.parametrize("language", [*sorted(GRAMMARS), "text"])
def test_chunks_lie_side_by_side_and_cover_everything_but_blanks(language: str) -> None:
    path, code, _ = SAMPLES.get(language, ("notes.txt", "first é line\n\n\nsecond\n" * 40, ""))
    code = (code + "\n\n") * 3
    data = code.encode()
    chunks = CodePreprocessor().preprocess_file(path, code)
    end = 0
    for chunk in chunks:
        assert chunk.start_byte >= end and not data[end : chunk.start_byte].strip()
        assert data[chunk.start_byte : chunk.end_byte].decode() == chunk.content
        assert data.count(b"\n", 0, chunk.start_byte) + 1 == chunk.start_line
        assert chunk.start_line <= chunk.end_line <= len(code.splitlines())
        end = chunk.end_byte
    assert not data[end:].strip()
    assert len({chunk.id for chunk in chunks}) == len(chunks)


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_quality_is_fair_to_every_language(language: str) -> None:
    """An earlier system asked for 'def ' and so passed only Python."""
    path, code, name = SAMPLES[language]
    chunk = next(c for c in CodePreprocessor().preprocess_file(path, code) if c.metadata["name"] == name)
    assert chunk.metadata["quality"] >= 0.5, chunk.metadata


def test_a_large_class_becomes_its_head_and_its_methods() -> None:
    methods = "".join(
        f"    def step_{n}(self):\n        value = {n}\n        return value\n\n" for n in range(20)
    )
    code = f'class Walker:\n    """Walks."""\n\n    pace = 3\n\n{methods}'
    chunks = CodePreprocessor().preprocess_file("w.py", code)
    assert [chunk.metadata["name"] for chunk in chunks if chunk.chunk_type is ChunkType.METHOD] == [
        f"step_{n}" for n in range(20)
    ]
    assert chunks[0].content.startswith("class Walker")


def test_a_small_class_stays_whole() -> None:
    code = "class Point:\n    def __init__(self, x):\n        self.x = x\n\n    def twice(self):\n        return 2 * self.x\n"
    (chunk,) = CodePreprocessor().preprocess_file("p.py", code)
    assert (chunk.chunk_type, chunk.metadata["name"]) == (ChunkType.CLASS, "Point")


def test_a_header_guard_hides_nothing() -> None:
    body = "".join(
        f"int measure_{n}(int x);\n\nint size_{n}(int x)\n{{\n    return x + {n};\n}}\n\n" for n in range(12)
    )
    chunks = CodePreprocessor().preprocess_file("a.h", f"#ifndef A_H\n#define A_H\n\n{body}#endif\n")
    assert sum(chunk.chunk_type is ChunkType.FUNCTION for chunk in chunks) >= 12


def test_broken_code_still_gives_chunks_and_says_so() -> None:
    code = "def fine(x):\n    return x\n\n\ndef broken(:\n    return ((\n"
    chunks = CodePreprocessor().preprocess_file("b.py", code)
    assert any(chunk.metadata["parse_error"] for chunk in chunks)
    assert any(chunk.metadata["name"] == "fine" for chunk in chunks)


def test_reasons_explain_a_low_score() -> None:
    noise = "x = 1\n" * 40
    (chunk,) = CodePreprocessor().preprocess_code(noise, "text")
    assert chunk.metadata["quality"] < 0.5 and "repetitive" in chunk.metadata["quality_reasons"]


def test_branches_make_code_complex() -> None:
    plain = CodePreprocessor().preprocess_code("def f(x):\n    return x\n", "python")[0]
    twisted = CodePreprocessor().preprocess_code(
        "def f(x):\n" + "".join(f"    if x == {n}:\n        return {n}\n" for n in range(10)), "python"
    )[0]
    assert 0 <= plain.complexity_score < twisted.complexity_score <= 1


def test_dependencies_are_the_imports_a_chunk_uses() -> None:
    code = "import json\nimport os.path\n\n\ndef save(x):\n    return json.dumps(x)\n"
    save = next(c for c in CodePreprocessor().preprocess_file("a.py", code) if c.metadata["name"] == "save")
    assert save.dependencies == ("json",)


@pytest.mark.parametrize(
    ("language", "line"),
    [
        ("python", "value = other\n"),
        ("python", "value: other\n"),
        ("javascript", "value = other;\n"),
        ("go", "var value = other\n"),
        ("python", "value = \n(\n"),
    ],
)
def test_a_file_of_many_statements_is_looked_at_a_few_times(language: str, line: str) -> None:
    """The name of each was read with 64 KB of the file after it: three minutes for a megabyte of short lines."""
    data = Counted((line * 20_000).encode())
    assert split_spans(data, language)
    assert data.looked <= 8 * len(data)


def test_a_name_has_a_hundred_characters_at_most() -> None:
    (chunk,) = CodePreprocessor().preprocess_file(
        "a.py", f"def {'é' * 300}(one, two):\n    return one + two\n"
    )
    assert chunk.metadata["name"] == "é" * 100


def test_code_that_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="not valid Unicode"):
        CodePreprocessor().preprocess_code("x = '\ud800'", "python")


def test_a_file_is_read_from_its_path(tmp_path: Path) -> None:
    file = tmp_path / "greeting.py"
    file.write_text("def greet(name):\n    return f'Grüße, {name}'\n")
    for path in (file, str(file)):
        (chunk,) = CodePreprocessor().preprocess_file(path)
        assert chunk.metadata["name"] == "greet" and "Grüße" in chunk.content
        assert chunk.file_path == str(file) and chunk.language == "python"
    file.write_text("x = 'ü'\n", encoding="utf-16")
    assert "ü" in CodePreprocessor().preprocess_file(file)[0].content


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"x = 1\n" * 100, "longer"), (b"\xff\xfe\xff", "no text")]
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "x.py"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.py") as caught:
        CodePreprocessor(DataConfig(max_file_bytes=500)).preprocess_file(file)
    assert words in caught.value.message
