"""Whatever the bytes are, a parser answers with a value or with an error that says what to do next."""

from __future__ import annotations

import json
import random
import tempfile
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from mlx_gardener.dataset.examples import Excerpt, node_span
from mlx_gardener.dataset.tasks import fim_tasks
from mlx_gardener.errors import ModelError
from mlx_gardener.evaluate.metrics import parses
from mlx_gardener.events import PlanChosen
from mlx_gardener.model.tokens import load_tokenizer
from mlx_gardener.platform.untrusted import read_bytes, read_head, read_json
from mlx_gardener.report.live import LiveView
from mlx_gardener.serve.mcp import Tools
from mlx_gardener.source import ChunkType, CodePreprocessor, languages
from mlx_gardener.source.chunks import split_spans
from tests.guard.seeds import seeds
from tests.guard.targets import CUT, TARGETS, allocates_at_most
from tests.support.counted import Counted

#: git is asked a hundred times slower than the others are, and so are servers.
EXAMPLES = {"attributes": 12, "endpoints": 20, "tools": 12}


@pytest.mark.parametrize("name", TARGETS)
def test_usual_and_hostile_examples_are_answered(name: str, tmp_path: Path) -> None:
    for data in seeds(name):
        TARGETS[name](data, tmp_path)


def test_a_defect_behind_an_endpoint_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who asked is told of none, so that the answer alone would not say where it is."""

    def fail(place: Path) -> int:
        raise KeyError("missing")

    monkeypatch.setattr("mlx_gardener.ui.projects.tree_bytes", fail)
    with pytest.raises(KeyError, match="missing"):
        TARGETS["endpoints"](b"GET /ui/api/sizes", tmp_path)


def test_agents_tools_are_asked_and_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    status = Tools.status
    monkeypatch.setattr(Tools, "status", lambda self, project: asked.append(project) or status(self, project))
    for talk in seeds("tools"):
        if b'"status"' in talk:
            TARGETS["tools"](talk, tmp_path)
    assert asked == ["alpha", "alpha"]


def test_a_small_file_takes_little_memory_however_large_it_might_have_been(tmp_path: Path) -> None:
    """Found by the bound of the GGUF target: 128 MB were allocated for every file of JSON."""
    file = tmp_path / "small.json"
    file.write_text('{"a": 1}')
    with allocates_at_most(2**16):
        assert read_json(file) == {"a": 1} and read_head(file, 2**30) == b'{"a": 1}'
    assert read_bytes(file, max_bytes=8) == b'{"a": 1}'
    with pytest.raises(ValueError, match="longer than 7 bytes"):
        read_bytes(file, max_bytes=7)


def test_a_grammar_that_does_not_end_is_done_without() -> None:
    """Found by the fuzzer: Kotlin's grammar took a minute for these 91 bytes."""
    code = (
        "t { ame\n\n\n\n\n\n\n\n\n\n\n--BEGI\n:\n\n*\n\n\n\nN\n\n\n\n\n\n\n\n\n\n\n"
        "\n\n\n\x00\x00\x00\x00\x00\x00\x00\x00f A\ni\n#endi\n\n\n\n\n\n\n\n\n\nspace a a }\n\n\n"
    )
    chunks = CodePreprocessor().preprocess_file("a.kt", code)
    assert {chunk.chunk_type for chunk in chunks} == {ChunkType.BLOCK}
    usual = CodePreprocessor().preprocess_file("a.kt", "fun f(x: Int): Int {\n    return x + 1\n}\n" * 2000)
    assert {chunk.chunk_type for chunk in usual} == {ChunkType.FUNCTION}


def test_a_grammar_that_looks_ahead_to_the_end_of_the_file_is_done_without() -> None:
    """Kotlin's read the rest of the file at each of these words: 45 s for 200 KB, and 25 times that for a megabyte."""
    data = Counted(b"fun area(w: Int): Int {\n    return w\n}\n" + b"<a>\n" * 10_000)
    assert {span.kind for span in split_spans(data, "kotlin")} == {ChunkType.BLOCK}
    assert data.looked <= 10 * 2**20
    usual = Counted(b"fun <R> map(f: (T) -> R): List<R> = items.map { x -> f(x) }\n" * 5_000)
    assert {span.kind for span in split_spans(usual, "kotlin")} == {ChunkType.FUNCTION}


def test_nobody_waits_for_a_grammar_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation waited: for what they cut out of files, and for whatever a model answers."""
    code = "def area(width, height):\n    result = width * height\n    return result\n\n\n" * 5
    excerpt = Excerpt("a.py", "python", code)

    def shared() -> tuple[bool, bool, bool]:
        return (
            parses(code, "python"),
            node_span(code, "python", random.Random(4)) is not None,
            bool(fim_tasks([excerpt], 4, seed=0)),
        )

    assert shared() == (True, True, True)
    monkeypatch.setattr(languages, "FREE_PARSE_TICKS", -len(code))
    assert shared() == (False, False, False)
    assert parses(code, "text"), "without a grammar there is nothing to wait for"


def test_classes_within_classes_without_end_are_read(tmp_path: Path) -> None:
    """Each level was a level of Python's stack, too."""
    code = "namespace a {\nint y;\n" * 3000 + "int x;\n" * 50 + "}\n" * 3000
    assert CodePreprocessor().preprocess_file("deep.cpp", code)


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [
        # Found by the fuzzer: a panic of the tokenizers library's Rust code is not even an Exception.
        ({"vocab": {"a": 1, "b": 4}, "merges": [["a", "b"]]}, "is damaged"),
        ({"vocab": []}, "cannot encode"),
    ],
)
def test_a_damaged_vocabulary_is_a_models_error(
    vocabulary: dict[str, object], reason: str, tmp_path: Path
) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": 4, "content": "</s>", "special": True} | flags
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [end], "model": vocabulary})
    )
    with pytest.raises(ModelError, match=reason):
        load_tokenizer(tmp_path).encode("def f(x):")


def test_a_plan_from_elsewhere_cannot_draw_in_the_terminal() -> None:
    """Found by the fuzzer: the widths are keys of the journal's JSON, so they are text."""
    shown = StringIO()
    plan = {
        "rows_of_width": {"64\x7f\x1b[2J": 1},
        "predicted_peak_bytes": 1,
        "budget_bytes": 2,
        "notes": ["\x1b]0;n"],
    }
    with LiveView(Console(file=shown, force_terminal=False), project="one") as view:
        view(PlanChosen(plan))
    assert "1 row of 64" in shown.getvalue() and not {"\x7f", "\x1b"} & set(shown.getvalue())


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_answered(name: str, tmp_path: Path) -> None:
    known = seeds(name)

    @st.composite
    def broken(draw: st.DrawFn) -> bytes:
        """A known input with a stretch of it replaced, doubled or taken from another."""
        base, other = draw(st.sampled_from(known))[:5000], draw(st.sampled_from(known))[:5000]
        start, length = draw(st.integers(0, len(base))), draw(st.integers(0, 40))
        at = draw(st.integers(0, len(other)))
        new = draw(
            st.one_of(
                st.binary(max_size=40),
                st.just(other[at : at + draw(st.integers(0, 200))]),
                st.sampled_from(
                    (b"null", b"-1", b"1e999", b"NaN", b'"\\ud800"', b"[]", b"{}", b"9" * 5000, CUT, b"\0")
                ),
            )
        )
        return base[:start] + new + base[start + length :]

    @settings(
        max_examples=EXAMPLES.get(name, 75),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(broken(), st.binary(max_size=300)))
    def answered(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
            TARGETS[name](data, Path(directory))

    answered()
