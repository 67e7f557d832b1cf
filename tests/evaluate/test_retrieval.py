"""Retrieval: what fits is found, what is asked is never shown, and rows with context have the same targets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.dataset.tasks import continuation_places, fim_tasks
from mlx_gardener.evaluate.compare import _comparisons
from mlx_gardener.evaluate.measure import ArmResult, Scores
from mlx_gardener.evaluate.metrics import parses
from mlx_gardener.evaluate.retrieval import Retriever, retrieval_helps
from mlx_gardener.evaluate.rows import draw_windows, make_windows, plain_rows, rows_with_context
from mlx_gardener.model import CodeTokenizer, load_tokenizer
from mlx_gardener.retrieval import index_of_chunks
from tests.support.indexes import CHUNKS


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> CodeTokenizer:
    return load_tokenizer(tiny_tokenizer_dir)


def test_nothing_that_is_asked_for_is_part_of_the_query(tokenizer: CodeTokenizer) -> None:
    """The rows' contexts are the same whatever stands in the rows' own targets."""
    retriever = Retriever(index_of_chunks(CHUNKS), tokenizer, limit_tokens=200)
    seen: list[str] = []
    context = retriever.context
    retriever.context = lambda path, before, **more: (seen.append(before), context(path, before, **more))[1]  # type: ignore[method-assign]
    text = "".join(f"value_{n} = {n}\n" for n in range(80))
    windows = make_windows([Excerpt("a.py", "python", text)], tokenizer, 128)
    rows_with_context(windows, tokenizer, retriever, (64, 128))
    assert seen[0] == "" and len(seen) == 2 * len(windows)
    place = 0
    for before, (window, half) in zip(seen, [(w, h) for w in windows for h in (0, 1)], strict=True):
        middle = window.start + (window.end - window.start + 1) // 2
        place = window.start if half == 0 else middle
        assert tokenizer.decode(list(window.tokens[:place])).endswith(before)


def test_rows_with_context_have_the_same_targets_as_plain_ones(tokenizer: CodeTokenizer) -> None:
    text = "".join(f"def height_{n}(hour):\n    return TideTable({n}).height_at(hour)\n" for n in range(40))
    excerpts = [Excerpt("a.py", "python", text), Excerpt("b.py", "python", text[:200])]
    windows = make_windows(excerpts, tokenizer, 128)
    plain = plain_rows(windows, tokenizer, (64, 128))
    rich = rows_with_context(
        windows, tokenizer, Retriever(index_of_chunks(CHUNKS), tokenizer, limit_tokens=96), (64, 128)
    )
    assert plain.source_bytes == rich.source_bytes == len(text.encode()) + len(text[:200].encode())
    assert plain.loss_tokens == rich.loss_tokens and rich.total_tokens > plain.total_tokens


def test_drawn_windows_come_from_every_file(tokenizer: CodeTokenizer) -> None:
    excerpts = [Excerpt(f"{n}.py", "python", f"value = {n}\n" * 60) for n in range(5)]
    windows = make_windows(excerpts, tokenizer, 64)
    drawn = draw_windows(windows, 7, seed=1)
    assert len(drawn) == 7 and {window.path for window in drawn} == {f"{n}.py" for n in range(5)}
    assert drawn == draw_windows(windows, 7, seed=1) and draw_windows(windows, 10_000, seed=1) == windows


def test_spans_are_syntax_nodes_of_files_that_parse() -> None:
    text = "".join(f"def area_{n}(width, height):\n    return width * height + {n}\n\n" for n in range(20))
    excerpts = [Excerpt("a.py", "python", text), Excerpt("b.py", "python", "def broken(:\n    pass\n" * 20)]
    tasks = fim_tasks(excerpts, 10, seed=2)
    assert len(tasks) == 10 and {task.path for task in tasks} == {"a.py"}
    assert all(task.prefix + task.target + task.suffix == text for task in tasks)
    assert tasks == fim_tasks(excerpts, 10, seed=2)
    assert parses(text, "python") and not parses(text + "def (", "python")


def test_places_to_continue_have_lines_before_and_enough_after() -> None:
    text = "line of text\n" * 30
    places = continuation_places([Excerpt("a.txt", "text", text)], 8, least_rest=100, seed=0)
    assert len(places) == 8
    assert all(place.prefix + place.rest == text and place.rest.startswith("\n") for place in places)
    assert all(place.prefix.count("\n") >= 2 and len(place.rest) >= 100 for place in places)


FILES = [f"{at}.py" for at in range(12)]


def arms(adapter: float, both: float, answers: tuple[float, float] | None = None) -> dict[str, Any]:
    """Evidence as earlier versions wrote it, without a comparison of the adapter's two arms."""
    told: list[dict[str, Any]] = [
        {"name": "adapter", "metrics": {"bits_per_byte": adapter}},
        {"name": "adapter_bm25", "metrics": {"bits_per_byte": both}},
    ]
    for arm, exact in zip(told, answers or (), strict=False):
        arm["metrics"] |= {"next_line_exact": exact, "answers_exact": exact}
    return {"arms": told, "comparisons": []}


def compared(bits: list[float], answers: list[float]) -> dict[str, Any]:
    """Evidence of twelve files: what retrieval changes in the adapter's loss and answers (0.5 each without it), file by file."""
    losses = {"base": [2.0] * 12, "adapter": [1.0] * 12, "adapter_bm25": [1 + change for change in bits]}
    right = {"base": [0.5] * 12, "adapter": [0.5] * 12, "adapter_bm25": [0.5 + change for change in answers]}
    results = {arm: ArmResult(losses=dict(zip(FILES, found, strict=True))) for arm, found in losses.items()}
    scores = {arm: Scores({"answers_exact": found}, {"answers_exact": FILES}) for arm, found in right.items()}
    made, _ = _comparisons(results, scores, FILES, seed=0)
    found = arms(1.0, 1 + sum(bits) / 12, (0.5, 0.5 + sum(answers) / 12))
    return found | {"comparisons": [asdict(item) for item in made]}


def test_both_arms_of_the_adapter_are_compared_by_bits_and_by_answers() -> None:
    found = compared([-0.1, -0.2] * 6, [0.1, 0.3] * 6)["comparisons"]
    pairs = {(item["arm"], item["against"], item["metric"]): item for item in found}
    bits, answers = (
        pairs["adapter_bm25", "adapter", metric] for metric in ("bits_per_byte", "answers_exact")
    )
    assert bits["change"] == -0.15 and bits["low"] < bits["high"] < 0 and bits["unit"] == "relative"
    assert answers["change"] == 0.2 and 0 < answers["low"] < answers["high"] and answers["unit"] == "points"
    others = {("adapter", "base"), ("adapter_bm25", "base")}
    assert {pair[:2] for pair in pairs} == {*others, ("adapter_bm25", "adapter")}, (
        "nothing of what is not there"
    )


def test_only_what_chance_does_not_explain_turns_retrieval_on_or_off() -> None:
    none, fewer, more, mixed = [0.0] * 12, [-0.1, -0.2] * 6, [0.1, 0.2] * 6, [-0.3, 0.3] * 6
    one_lost = [-0.5, *none[1:]]
    assert retrieval_helps(compared(fewer, mixed)) == (True, "-15.0% bits per byte in its evidence")
    assert retrieval_helps(compared(fewer, one_lost))[0], "one answer of twelve is a coin"
    assert retrieval_helps(compared(fewer, fewer)) == (
        False,
        "-15.0% bits per byte in its evidence, and worse answers",
    )
    unclear = retrieval_helps(compared([-0.3, 0.2] * 6, mixed))
    assert unclear == (False, "-5.0% bits per byte in its evidence, which chance explains as well")
    assert retrieval_helps(compared([-0.3, 0.2] * 6, more))[0], "better answers"
    assert not retrieval_helps(compared(more, mixed))[0] and not retrieval_helps(compared(more, more))[0]


def test_evidence_of_earlier_versions_is_decided_by_its_bits() -> None:
    assert retrieval_helps(arms(1.2, 1.1)) == (True, "-8.3% bits per byte in its evidence")
    assert retrieval_helps(arms(1.2, 1.1, (0.5, 0.45)))[0], "how sure that is was not recorded"
    assert not retrieval_helps(arms(1.1, 1.2))[0] and not retrieval_helps(arms(1.1, 1.1))[0]


def test_without_those_arms_nothing_speaks_for_it() -> None:
    for evidence in ({}, {"arms": []}, {"arms": arms(1.2, 1.1)["arms"][:1]}):
        assert retrieval_helps(evidence) == (False, "its evidence has no arm of the adapter with retrieval")
    assert retrieval_helps(arms(1.2, 1.1), with_adapter=False)[0] is False
