"""Prompts for one completion: of long texts only what is shown becomes tokens."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from mlx_gardener.errors import DataError
from mlx_gardener.evaluate.complete import (
    Beginning,
    build_prompt,
    caret_prompt,
    complete,
    edge_tokens,
    written_ids,
)
from mlx_gardener.evaluate.generate import generate_many
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


@pytest.mark.parametrize("suffix", [None, "\n\n\nprint(area(2, 3))\n"])
def test_what_is_proposed_stays_proposed_while_somebody_types_it(suffix: str | None) -> None:
    """Tokens end where words do: a prompt that ended within one was none that training showed, and its answers were others."""
    base = load_base("seedling")
    tokenizer, code, path = (
        base.tokenizer,
        'import math\n\n\ndef area(width, height):\n    """Of a rectangle."""\n',
        "a.py",
    )
    proposed = complete(base, code, suffix, path=path, max_new_tokens=12)
    assert len(proposed) > 16, "else it shows nothing"
    first = tokenizer.spelling(tokenizer.encode(proposed)[0]).decode()
    within = 0
    for end in range(0, len(proposed) - 4, 3):
        typed = proposed[:end]
        place = caret_prompt(tokenizer, code + typed, suffix, path)
        assert (code + typed).endswith(place.begins)
        found = complete(base, code + typed, suffix, path=path, max_new_tokens=12)
        if end < len(first) or tokenizer.encode(typed + place.begins)[0] in place.ids[-12:]:
            assert (typed + found).startswith(proposed[: len(typed + found)]), (typed, found)
            within += 1
    assert within > 2


def test_where_the_carets_line_stands_and_what_is_left_to_the_model() -> None:
    tokenizer = load_tokenizer(seedling_path())
    marks = tokenizer.markers
    assert marks is not None and marks.middle is not None
    above, typed, below = "import math\n\n", "value = math.sq", "\nprint(value)\n"
    span = caret_prompt(tokenizer, above + typed, below, "a.py")
    own = typed[: len(typed) - len(span.begins)]
    assert span.begins and typed.endswith(span.begins)
    assert span.ids == build_prompt(tokenizer, above, below, "a.py") + tokenizer.encode(own)
    # A key changes the end of the prompt alone.
    more = caret_prompt(tokenizer, f"{above}{typed}rt(", below, "a.py")
    assert more.ids[: span.ids.index(marks.middle) + 1] == span.ids[: span.ids.index(marks.middle) + 1]
    # At the beginning of a line all is as training shows it.
    whole = caret_prompt(tokenizer, above, below, "a.py")
    assert (whole.ids, whole.begins) == (build_prompt(tokenizer, above, below, "a.py"), "")
    # Left to right the words of the lines above count, too: a line break and the indentation behind it are often one token.
    line = caret_prompt(tokenizer, "def area(width):\n", None, "a.py")
    assert line.begins.endswith("\n") and line.ids == build_prompt(
        tokenizer, "def area(width):\n"[: -len(line.begins)], None, "a.py"
    )
    # Neither a text that says nothing of its file nor a word without end is touched.
    assert caret_prompt(tokenizer, "value = math.sq", None, "").begins == ""
    assert caret_prompt(tokenizer, f"x = {'a' * 500}", None, "a.py").begins == ""
    assert caret_prompt(tokenizer, f"x = {'a b' * 500}", below, "a.py").ids[-1] == marks.middle


def test_tokens_that_only_repeat_what_was_typed_do_not_count() -> None:
    base = load_base("seedling")
    tokenizer = base.tokenizer
    begins = "configuration_of_everything"
    prompt = build_prompt(tokenizer, "value = ", None, "a.py")
    ids = [token for token, _ in written_ids(base, prompt, max_new_tokens=3, begins=begins)]
    text = tokenizer.decode(ids)
    assert text.startswith(begins) and len(ids) > 4
    beyond = [at for at in range(len(ids)) if len(tokenizer.decode(ids[: at + 1])) > len(begins)]
    assert len(beyond) == 3
    together = generate_many(base, [prompt, prompt], max_new_tokens=3, begins=[begins, ""])
    assert list(together[0].ids) == ids and together[0].text == text[len(begins) :]
    assert list(together[1].ids) == [token for token, _ in written_ids(base, prompt, max_new_tokens=3)]
    asked: list[str] = []
    complete(
        base,
        "x = 日本語テキ",
        "\n",
        path="a.py",
        max_new_tokens=3,
        is_enough=lambda text: asked.append(text) is True,
    )
    assert 0 < len(asked) <= 3 and all(asked)


@pytest.mark.parametrize(
    "word", ["'😀", " '👨\u200d👩\u200d👧", "日本語テキ", "ﬁ", "naïve", "\u2028x", "é" * 40, "cafe\u0301"]
)
def test_a_character_that_tokens_hold_parts_of_is_written_whole(word: str) -> None:
    """Whatever of the tokens that may come next is chosen: behind the first part of a character any token could follow."""
    tokenizer = load_tokenizer(seedling_path())
    choose = random.Random(word)
    for _ in range(20):
        beginning, ids = Beginning(tokenizer, word), list[int]()
        while beginning.ids:
            ids.append(choose.choice(beginning.ids))
            beginning.take(ids[-1])
        assert b"".join(map(tokenizer.spelling, ids)).startswith(word.encode())
    base = load_base("seedling")
    place = caret_prompt(tokenizer, f"x ={word}", "\n", "a.py")
    found = [token for token, _ in written_ids(base, place.ids, max_new_tokens=2, begins=place.begins)]
    assert tokenizer.decode(found).startswith(place.begins)


def test_no_token_is_none_also_where_a_word_was_begun() -> None:
    """An editor that only lets a server read ahead asks so."""
    base = load_base("seedling")
    place = caret_prompt(base.tokenizer, "import math\n\nvalue = math.sq", "\n", "a.py")
    assert place.begins
    assert list(written_ids(base, place.ids, max_new_tokens=0, begins=place.begins)) == []
    assert complete(base, "value = math.sq", "\n", path="a.py", max_new_tokens=0) == ""


def test_half_a_surrogate_pair_is_read_as_the_server_reads_it(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    whole = complete(base, "x\ufffd = ", "\ufffd", path="a\ufffd.py", max_new_tokens=4)
    assert complete(base, "x\ud83d = ", "\ude00", path="a\udcff.py", max_new_tokens=4) == whole


def test_nothing_to_go_on_from_is_an_error_with_a_next_step(tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match="nothing to go on with") as refused:
        complete(load_base(str(tiny_model_dir)), "", max_new_tokens=4)
    assert refused.value.next_step
