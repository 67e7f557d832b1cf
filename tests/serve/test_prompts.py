"""Requests as prompts: holes in markers, and the room that what was typed of a word takes."""

from __future__ import annotations

from typing import cast

import pytest

from mlx_gardener.evaluate.complete import caret_prompt
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.serve.generation import Limits
from mlx_gardener.serve.indexes import Lookup
from mlx_gardener.serve.prompts import raw_prompts
from mlx_gardener.serve.worker import BadRequestError

PREFIX, SUFFIX = "import math\n\nvalue = math.sq", "\nprint(value)\n"
#: Several prompts have no code of the repository in front: nothing is looked up.
NONE = cast(Lookup, None)


def test_a_hole_is_the_same_prompt_whatever_is_asked_with_it() -> None:
    base = load_base("seedling")
    hole, plain = _hole(base), "value = math.sq"
    expected = caret_prompt(base.tokenizer, PREFIX, SUFFIX, "")
    assert expected.begins
    first, second, third = raw_prompts([hole, plain, hole], base, 512, Limits(8), NONE)
    assert first == third == expected
    assert (second.ids, second.begins) == (base.tokenizer.encode(plain), "")


def test_what_was_typed_of_a_word_has_room_beside_the_answer() -> None:
    base = load_base("seedling")
    own = caret_prompt(base.tokenizer, PREFIX, SUFFIX, "")
    takes = len(own.ids) + len(base.tokenizer.encode(own.begins))
    assert raw_prompts([_hole(base), "x"], base, takes + 8, Limits(8), NONE)[0] == own
    with pytest.raises(BadRequestError, match="are possible together"):
        raw_prompts([_hole(base), "x"], base, takes + 7, Limits(8), NONE)


def _hole(base: BaseModel) -> str:
    marks = base.tokenizer.markers
    assert marks is not None and marks.middle is not None
    first, second, third = (
        base.tokenizer.decode([mark]) for mark in (marks.prefix, marks.suffix, marks.middle)
    )
    return f"{first}{PREFIX}{second}{SUFFIX}{third}"
