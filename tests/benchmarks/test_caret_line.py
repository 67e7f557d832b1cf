"""What `benchmarks/caret_line.py` asks: the served prompt, and the same code in other places."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from mlx_gardener.evaluate.complete import build_prompt, caret_prompt
from mlx_gardener.model import BaseModel, load_base
from tests.support.repositories import write_repository

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def caret_line(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__("caret_line")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("seedling")


def test_carets_are_drawn_within_words_and_elsewhere(caret_line: ModuleType, tmp_path: Path) -> None:
    lines = caret_line.drawn((write_repository(tmp_path / "code"),), 6, seed=3)
    assert [line.in_word for line in lines] == [True, False] * 3
    for line in lines:
        assert (line.above + line.typed + line.rest + line.below) == (
            tmp_path / "code" / line.path
        ).read_text()
        assert line.typed.strip() and line.rest.strip()


def test_the_forms_differ_in_where_the_carets_line_stands(caret_line: ModuleType, base: BaseModel) -> None:
    line = caret_line.Line("a.py", "import math\n\n", "value = math.sq", "rt(2)", "\nprint(value)\n", True)
    tokenizer = base.tokenizer
    forms = caret_line.asked(base, line, 112, 40)
    assert forms["before"] == (build_prompt(tokenizer, line.above + line.typed, line.below, "a.py"), "")
    prompt, begun = forms["before_healed"]
    own = line.typed[: len(line.typed) - len(begun)]
    assert begun and prompt == build_prompt(tokenizer, line.above + own, line.below, "a.py")
    place = caret_prompt(tokenizer, line.above + line.typed, line.below, "a.py")
    assert forms["behind_healed"] == (place.ids, place.begins)


def test_what_greedy_writing_gives_is_right_and_nothing_else(caret_line: ModuleType, base: BaseModel) -> None:
    from mlx_gardener.evaluate.complete import written_ids

    prompt = build_prompt(base.tokenizer, "import math\n\nvalue = math.", "\n", "a.py")
    ids = [token for token, _ in written_ids(base, prompt, max_new_tokens=3)]
    written = base.tokenizer.decode(ids)
    assert base.tokenizer.encode(written) == ids

    def judged(rest: str) -> tuple[bool, float]:
        found: tuple[bool, float] = caret_line.judged(caret_line.Reader(base), base, prompt, "", rest)
        return found

    right, bits = judged(written)
    wrong, more = judged(written + "nosuch")
    assert right and not wrong and 0 < bits < more
