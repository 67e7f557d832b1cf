"""Prompts for one completion: of long texts only what is shown becomes tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mlx_gardener.errors import DataError
from mlx_gardener.evaluate.complete import (
    build_prompt,
    complete,
    edge_tokens,
    typed_breaks,
    whole_characters,
    written_ids,
)
from mlx_gardener.model import load_base, load_tokenizer, seedling_path


def test_no_more_of_a_text_becomes_tokens_than_is_shown() -> None:
    encode, read = load_tokenizer(seedling_path()).encode, list[int]()

    def reading(text: str) -> list[int]:
        read.append(len(text))
        return encode(text)

    code = "".join(f"def area_{number}(width):\n    return width * {number}\n\n" for number in range(2000))
    whole = encode(code)
    assert edge_tokens(reading, code, 640, last=True) == whole[-640:]
    assert edge_tokens(reading, code, 192, last=False) == whole[:192]
    assert len(read) == 2 and max(read) < 6000
    assert edge_tokens(reading, code, 0, last=True) == []
    assert edge_tokens(reading, "x = 1\n", 640, last=True) == encode("x = 1\n")
    blanks = " " * 500_000  # tokens of many characters: more is read, and not all of it
    assert edge_tokens(reading, blanks, 640, last=True) == encode(blanks[-64_000:])[-640:]
    assert max(read) == 4 * 5120


def test_what_is_shown_begins_with_the_same_line_while_somebody_types() -> None:
    tokenizer = load_tokenizer(seedling_path())
    code = "".join(f"def area_{number}(width):\n    return width * {number}\n\n\n" for number in range(400))
    typed = code + "".join(f"\n\ndef volume_{number}(width, height):\n    pass\n" for number in range(8))
    rows = [
        build_prompt(tokenizer, typed[:end], None, "", prefix_tokens=400)
        for end in range(len(code), len(typed) + 1)
    ]
    assert all(300 <= len(row) <= 400 for row in rows)
    assert all(typed[:end].endswith(tokenizer.decode(row)) for end, row in enumerate(rows, len(code)))
    begins = [tuple(row[:32]) for row in rows]
    changes = sum(one != other for one, other in itertools.pairwise(begins))
    assert 1 <= changes <= len(rows) // 40  # the window would have moved with nearly every token
    whole = build_prompt(tokenizer, code[:600], None, "")
    assert whole == tokenizer.encode(code[:600])  # what fits is shown whole
    one_line = "x" * 9000
    assert build_prompt(tokenizer, one_line, None, "", prefix_tokens=100) == tokenizer.encode(one_line)[-100:]


def test_line_breaks_that_were_typed_are_left_to_the_model_and_not_given_again(tiny_model_dir: Path) -> None:
    """As next lines of evidence are asked: a newline and the indentation after it are often one token."""
    base = load_base(str(tiny_model_dir))
    tokenizer, code = base.tokenizer, "def area(width):"

    def written(prefix: str, path: str, begins: tuple[int, ...] = ()) -> str:
        prompt = build_prompt(tokenizer, prefix, None, path)
        ids = [token for token, _ in written_ids(base, prompt, max_new_tokens=8, begins=begins)]
        assert not begins or ids[0] in begins
        return tokenizer.decode(ids)

    begun = written(code, "a.py", tokenizer.line_breaks)
    breaks = len(begun) - len(begun.lstrip("\n"))
    assert breaks >= 1 and not written(code, "a.py").startswith("\n"), "else it shows nothing"
    for typed in (1, 2, 5):
        text = complete(base, code + "\n" * typed, path="a.py", max_new_tokens=8)
        assert text == whole_characters(begun[min(typed, breaks) :])
    as_written = complete(base, f"{code}\n", max_new_tokens=8)
    assert as_written == whole_characters(written(f"{code}\n", "")), "a prompt alone is taken as it is"
    assert typed_breaks(f"{code}\n", "rest", "a.py") == typed_breaks(f"{code}\r\n", None, "a.py") == 0


def test_half_a_surrogate_pair_is_read_as_the_server_reads_it(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    whole = complete(base, "x\ufffd = ", "\ufffd", path="a\ufffd.py", max_new_tokens=4)
    assert complete(base, "x\ud83d = ", "\ude00", path="a\udcff.py", max_new_tokens=4) == whole


def test_nothing_to_go_on_from_is_an_error_with_a_next_step(tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match="nothing to go on with") as refused:
        complete(load_base(str(tiny_model_dir)), "", max_new_tokens=4)
    assert refused.value.next_step
