"""Answers by language and kind: whom an adapter helps, and what to do where it does not."""

from __future__ import annotations

from typing import Any

from mlx_gardener.evaluate.compare import _groups
from mlx_gardener.evaluate.measure import Scores
from mlx_gardener.report.groups import groups_table


def scores(python: list[float], go: list[float], spans: list[float] | None = None) -> Scores:
    """Of ten Python files and ten Go files a next line each, and of the Go files a span."""
    files = [f"a{number}.py" for number in range(10)] + [f"b{number}.go" for number in range(10)]
    values = {"next_line_exact": [*python, *go]} | ({} if spans is None else {"fim_exact": spans})
    return Scores(values, {"next_line_exact": files, "fim_exact": files[10:]})


def test_answers_are_told_by_language_and_kind() -> None:
    base = scores([0.0] * 10, [0.0, 1.0] * 5, [0.0] * 10)
    adapter = scores([1.0] * 10, [0.0, 1.0] * 5, [0.0] * 10)
    found = {
        (group.language, group.kind): group for group in _groups({"base": base, "adapter": adapter}, seed=0)
    }
    assert set(found) == {("python", "next_line"), ("go", "next_line"), ("go", "fim")}
    better = found["python", "next_line"]
    assert (better.tasks, better.files, better.change) == (10, 10, 1.0)
    assert better.low > 0 and better.exact == {"base": 0.0, "adapter": 1.0}
    same = found["go", "next_line"]
    assert (same.change, same.low, same.high) == (0.0, -0.3, 0.3), "nothing differed in ten files"


def test_an_arm_that_was_asked_less_is_left_out() -> None:
    both = {name: scores([0.0] * 10, [0.0] * 10, [0.0] * 10) for name in ("base", "adapter")}
    found = _groups({**both, "base_bm25": scores([1.0] * 10, [1.0] * 10)}, seed=0)
    assert {group.kind: "base_bm25" in group.exact for group in found} == {"next_line": True, "fim": False}


def test_the_table_says_what_to_do_where_it_does_not_help() -> None:
    def group(
        language: str,
        base: float,
        adapter: float,
        bm25: float,
        low: float,
        high: float,
        tasks: int = 40,
        kind: str = "next_line",
    ) -> dict[str, Any]:
        exact = {"base": base, "base_bm25": bm25, "adapter": adapter}
        change = {"change": adapter - base, "low": low, "high": high}
        return {
            "language": language,
            "kind": kind,
            "tasks": tasks,
            "files": 9,
            "exact": exact,
            **change,
        }

    groups = [
        group("python", 0.1, 0.4, 0.2, 0.2, 0.4),
        group("go", 0.2, 0.2, 0.5, -0.1, 0.1),
        group("rust", 0.3, 0.1, 0.3, -0.3, -0.1),
        group("ruby", 0.0, 0.0, 0.0, 0.0, 0.0),
        group("java", 0.2, 0.2, 0.1, -0.1, 0.1),
        group("c", 0.2, 0.2, 0.1, -0.1, 0.1, tasks=5),
        group("c", 0.2, 0.2, 0.1, -0.1, 0.1, tasks=5, kind="read_line"),
    ]
    table = groups_table({"groups": groups})
    assert [row[-1] for row in table.rows] == [
        "",
        "not told apart: retrieval does most",
        "worse: retrieval only",
        "none is right: a larger base",
        "not told apart: more steps, or a larger base",
        "too few tasks to say: eval --thorough",
        "too few to say",
    ]
    assert table.rows[3][-2] == "+0.0 (-33.3 to +33.3)", "never from nothing to nothing"
    assert table.rows[0][:4] == ("python, next line", "40 in 9", "10.0%", "20.0%")
    assert groups_table({}).rows == ()
