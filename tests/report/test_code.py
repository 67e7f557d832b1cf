"""Source as coloured HTML: which grammar colours a file, and what is safe to show."""

from __future__ import annotations

from pygments.lexers import find_lexer_class_for_filename

from mlx_gardener.report.code import MOST_CHARACTERS, _lexer_of, highlight_code
from mlx_gardener.source.languages import LANGUAGES


def test_a_file_is_coloured_by_the_grammar_that_pygments_own_search_finds() -> None:
    names = [f"a.b{suffix}" for suffix in LANGUAGES] + [
        "Makefile",
        "CMakeLists.txt",
        "notes.txt",
        "plain",
        ".x",
    ]
    for name in names:
        ours, theirs = _lexer_of(name), find_lexer_class_for_filename(name)
        assert (ours and type(ours)) == theirs, name


def test_code_is_escaped_and_bounded_with_and_without_a_grammar() -> None:
    for path in ("src/a.py", "src/a.unknown"):
        shown = highlight_code("<b>&\x1b[2J = 1\n" * 10_000, path)
        assert "<b>" not in shown and "&lt;" in shown and "\x1b" not in shown
        assert shown.endswith("...") or "..." in shown[-200:]
    assert 'class="y-k"' in highlight_code("def f(): pass", "a.py")
    assert highlight_code("def f(): pass", "a.unknown") == "def f(): pass"
    assert len(highlight_code("x" * (MOST_CHARACTERS + 9), "a.unknown")) == MOST_CHARACTERS + len(" ...")
