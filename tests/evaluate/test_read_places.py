"""Lines and values of held-out stretches that are read: which, and that those are right which greedy writing gives."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.evaluate.complete import stop_ids, written_ids
from mlx_gardener.evaluate.measure import Bench
from mlx_gardener.evaluate.read_places import (
    ASSERTION,
    CROSS_FILE,
    LINE,
    ReadPlace,
    places_right,
    places_to_read,
)
from mlx_gardener.evaluate.rows import make_windows, plain_rows, rows_with_context
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.platform.kept import KeptValues
from mlx_gardener.retrieval import Retriever, index_of_files
from mlx_gardener.source import scan_repository
from mlx_gardener.source.languages import language_of
from tests.support.engines import engine, plan
from tests.support.repositories import write_linked_repository
from tests.support.trainings import tiny_settings

WIDTH = 160
#: Lines that follow each other: a model that has seen some of them writes the next.
ROUNDS = "        self.value = value\n" * 40


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    place = tmp_path_factory.mktemp("read")
    base = load_base("seedling")
    return Bench(
        base, engine(base, plan(2, WIDTH)), tiny_settings(place), KeptValues(place / "kept"), lambda: None
    )


def written(base: BaseModel, line: ReadPlace, shown: list[int]) -> str:
    """The text that greedy writing gives behind what is shown, the line's end included."""
    found = written_ids(base, shown, max_new_tokens=len(line.tokens) + 4, stops=stop_ids(base.tokenizer))
    return base.tokenizer.decode([token for token, _ in found])


def test_a_line_is_right_where_greedy_writing_gives_it(bench: Bench) -> None:
    tokenizer = bench.base.tokenizer
    excerpts = [
        Excerpt(
            "ships.py", "python", f"import harbor\n\n\nclass Ship:\n    def __init__(self, value):\n{ROUNDS}"
        ),
        Excerpt("read.py", "python", Path(__file__).read_text(encoding="utf-8")),
    ]
    windows = make_windows(excerpts, tokenizer, WIDTH)
    lines = places_to_read(windows, excerpts, tokenizer, {})
    _, likeliest = bench.read(plain_rows(windows, tokenizer, (WIDTH,)), of="")
    right = places_right(lines, likeliest, tokenizer)
    assert sum(right) >= 5 and right.count(False) >= 5
    told = list(zip(lines, right, strict=True))
    some = [[pair for pair in told if pair[1] is wanted][:6] for wanted in (True, False)]
    for line, is_right in (*some[0], *some[1]):
        window = next(
            window for window in windows
            if window.excerpt == line.excerpt and window.start <= line.first < window.end
        )  # fmt: skip
        shown = [*window.header, *window.tokens[window.start : line.first]]
        text, end, _ = written(bench.base, line, shown).partition("\n")
        target = tokenizer.decode(list(line.tokens)).rstrip()
        assert (text.rstrip() == target and bool(end)) is is_right, (text, target)


def test_lines_are_those_that_are_asked_for_with_enough_in_front_in_every_arm(
    bench: Bench, tmp_path: Path
) -> None:
    root = write_linked_repository(tmp_path / "harbor")
    scan = scan_repository(root, bench.config.data, quality_threshold=0.0)
    text = "".join(path.read_text() for path in sorted(root.rglob("use_*.py")))
    long = Excerpt("long.py", "python", f'"""A title."""\n\nimport ports\n{text}')
    tokenizer = bench.base.tokenizer
    windows = make_windows([long], tokenizer, WIDTH)
    assert len(windows) > 3
    lines = places_to_read(windows, [long], tokenizer, {})
    told = [tokenizer.decode(list(line.tokens)) for line in lines]
    assert {line.kinds for line in lines} == {(LINE,)}
    name = re.findall(r"weigh_\w+", "".join(told))[-1]
    lines = places_to_read(windows, [long], tokenizer, {name: frozenset({"ports/elsewhere.py"})})
    assert not any(line.strip().startswith(("from", "import", '"""A title')) for line in told)
    assert all(line.endswith("\n") for line in told)
    crossing = [CROSS_FILE in line.kinds for line in lines]
    assert crossing == [(f"{name}(" in line) for line in told] and any(crossing)
    for line in lines:
        window = next(item for item in windows if item.start <= line.first < item.end)
        assert window.start == 0 or line.first >= window.halves[1][0]
    retriever = Retriever(index_of_files(root, scan.files, name="harbor"), tokenizer, limit_tokens=64)
    for rows in (
        plain_rows(windows, tokenizer, (WIDTH,)),
        rows_with_context(windows, tokenizer, retriever, (WIDTH,)),
    ):
        _, likeliest = bench.read(rows, of="")
        everywhere = {
            start + at: int(index) for (_, start), ids in likeliest.items() for at, index in enumerate(ids)
        }
        assert sorted(everywhere) == list(range(len(windows[0].tokens))), (
            "the label is the place of the first target"
        )
        exact = {(0, line.first): np.array(line.tokens, dtype=np.int32) for line in lines}
        assert all(places_right(lines, exact, tokenizer)), "what stands there is right"
        assert not any(places_right(lines, {}, tokenizer)), "what was not read is not"


def test_the_end_of_a_line_counts_and_what_follows_it_does_not(bench: Bench) -> None:
    tokenizer = bench.base.tokenizer
    spelled = {tokenizer.spelling(index): index for index in range(tokenizer.vocab_size)}
    end, far = spelled[b"\n"], spelled[b"\n\n"]
    total, more = tokenizer.encode("total"), tokenizer.encode(", more")
    line = ReadPlace("a.py", 0, 7, (*total, end), b"\n", (LINE,))

    def right(*ids: int) -> bool:
        return places_right([line], {(0, 7): np.array(ids, dtype=np.int32)}, tokenizer) == [True]

    assert right(*total, end) and right(*total, far), "a blank line behind it is not this line's"
    assert not right(*total, more[0]) and not right(*total[:-1], more[0], end)
    assert not right(*total, tokenizer.vocab_size + 5), "a row of the head that no token has"
    assert not right(*total), "its end was not read"


def test_values_of_assertions_are_read_up_to_what_ends_them(bench: Bench) -> None:
    tokenizer = bench.base.tokenizer
    rows = "\n".join(
        f"    assert ship.weight == {1000 + number}  # kg\n    assert ship.name in names, 'why'\n    ship.sail()"
        for number in range(4)
    )
    text = f"from ships import ship\n\n\ndef test_weight():\n{rows}\n    check(ship, equal=3)\n"
    excerpts = [Excerpt("tests/test_ship.py", "python", text), Excerpt("ship.py", "python", text)]
    windows = make_windows(excerpts, tokenizer, 512)
    places = places_to_read(windows, excerpts, tokenizer, {})
    values = [place for place in places if place.kinds == (ASSERTION,)]
    assert {place.path for place in values} == {"tests/test_ship.py"}, "only tests have assertions"
    told = [tokenizer.decode(list(place.tokens)).strip() for place in values]
    assert [value[:4] for value in told] == ["1000", "1001", "1002", "1003"]
    assert all(value.lstrip("0123456789").strip() in ("", "#") for value in told), told

    def right(place: ReadPlace, *ids: int) -> bool:
        return places_right([place], {(0, place.first): np.array(ids, dtype=np.int32)}, tokenizer) == [True]

    first, *rest, last = values[0].tokens
    assert right(values[0], first, *rest, last)
    assert not right(values[0], first, *rest, tokenizer.encode("5")[0]), "10005 is another value"
    assert not right(values[0], *values[1].tokens)


@pytest.mark.parametrize(
    ("path", "text", "value", "others"),
    [
        (
            "ship_test.go",
            "package ship\n\nfunc TestShip(t *testing.T) {\n\tif got := weigh(); got != wanted {\n\t\tt.Fatal()\n\t}\n}\n",
            " wanted {\n",
            (" wanted && other {\n", " wanted || other {\n", " wanted{}\n"),
        ),
        (
            "test_ship.py",
            "from ships import ship\n\n\ndef test_ship():\n    assert ship.weight == total  # kg\n    ship.sail()\n",
            " total  # tons",
            (" total + 1\n", " total if ship else None\n"),
        ),
    ],
)
def test_a_value_that_goes_on_behind_a_blank_is_another(
    bench: Bench, path: str, text: str, value: str, others: tuple[str, ...]
) -> None:
    tokenizer = bench.base.tokenizer
    excerpts = [Excerpt(path, language_of(path), text)]
    windows = [
        replace(window, end=2 * len(window.tokens)) for window in make_windows(excerpts, tokenizer, 512)
    ]
    (place,) = (
        place for place in places_to_read(windows, excerpts, tokenizer, {}) if place.kinds == (ASSERTION,)
    )
    before = tokenizer.decode(list(windows[0].tokens[: place.first]))

    def right(written: str) -> bool:
        ids = tokenizer.encode(before + written)[place.first :]
        ids += [0] * len(place.tokens)
        return places_right([place], {(0, place.first): np.array(ids, dtype=np.int32)}, tokenizer) == [True]

    assert right(value) and not any(map(right, others))
