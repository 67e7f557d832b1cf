"""A window in blocks: where Zed's tags stand, what an answer writes, and what is made of one."""

from __future__ import annotations

import pytest

from mlx_gardener.dataset.edit_regions import answer_of, tag_places, updated_by, with_tags

#: Windows, the rows with which their blocks begin, and why.
WINDOWS = {
    "a short one": ("a\n" * 5, [0]),
    "a blank line after six": ("a\n" * 6 + "\n" + "b\n" * 6, [0, 7]),
    "no block of fewer than six": ("a\n" * 6 + "\n" + "b\n" * 5, [0]),
    "sixteen lines": ("a\n" * 21, [0, 16]),
    "no bracket and no return begins one": ("a\n" * 16 + "}\n  return;\nb\nc\n", [0, 18]),
    "unless no better line is near": ("a\n" * 16 + "}\n" * 5 + "b\n", [0, 16]),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_a_windows_blocks_begin_where_zeds_do(window: str) -> None:
    text, rows = WINDOWS[window]
    starts = [sum(len(row) + 1 for row in text.split("\n")[:at]) for at in rows]
    assert tag_places(text) == [*starts, len(text)]
    assert tag_places(text.rstrip("\n"))[: len(rows)] == starts
    assert tag_places("") == [0, 0]


LONG = "\n".join(f"line_{at} = {at}" for at in range(21))


@pytest.mark.parametrize(
    ("updated", "begins", "ends"),
    [
        (LONG.replace("line_2 ", "changed "), "<|marker_1|>line_0", "line_15 = 15\n<|marker_2|>"),
        (LONG.replace("line_18 ", "changed "), "<|marker_2|>line_16", "line_20 = 20<|marker_3|>"),
        (LONG.replace("line_2 ", "a ").replace("line_18 ", "b "), "<|marker_1|>line_0", "line_20 = 20<|marker_3|>"),
        (LONG + "\nmore = 1", "<|marker_2|>line_16", "more = 1<|marker_3|>"),
        ("new = 1\n" + LONG, "<|marker_1|>new = 1", "line_15 = 15\n<|marker_2|>"),
        ("", "<|marker_1|><|marker_2|>", "<|marker_3|>"),
        (LONG, "<|marker_2|><|marker_2|>", "<|marker_2|>"),
    ],
    ids=["the first block", "the last", "both", "behind the end", "before the beginning", "nothing left", "no edit"],
)  # fmt: skip
def test_an_answer_writes_the_blocks_that_change_and_is_read_back(
    updated: str, begins: str, ends: str
) -> None:
    caret = LONG.index("line_14")
    answer = answer_of(LONG, updated, caret)
    assert answer.startswith(begins) and answer.endswith(ends)
    assert updated_by(with_tags(LONG, caret), answer) == (LONG, updated)


def test_an_answer_fills_an_empty_window() -> None:
    answer = answer_of("", "new = 1\n", 0)
    assert answer == "<|marker_1|>new = 1\n<|marker_2|>"
    assert updated_by(with_tags("", 0), answer) == ("", "new = 1\n")


def test_what_names_no_two_places_is_no_answer() -> None:
    shown = with_tags(LONG, 0)
    assert shown.startswith("<|marker_1|><|user_cursor|>line_0 = 0\n") and shown.endswith("<|marker_3|>")
    for answer in ("", "line", "<|marker_1|>line", "<|marker_1|>a<|marker_4|>", "<|marker_2|>a<|marker_1|>"):
        assert updated_by(shown, answer) is None
    assert updated_by(shown, "<|marker_1|>a<|user_cursor|>\n<|marker_2|><|marker_3|>") == (LONG, "a\n")
