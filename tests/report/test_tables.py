"""What commands show in a terminal: bases, plans, evidence, and numbers as people say them."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from mlx_gardener.config import load_config
from mlx_gardener.engine import make_plan, model_facts
from mlx_gardener.engine.bases import Base
from mlx_gardener.engine.speed import TWO_CORES
from mlx_gardener.model import seedling_path
from mlx_gardener.report.evidence_view import show_evidence
from mlx_gardener.report.models_view import count_text, show_bases
from mlx_gardener.report.plan_view import show_plan
from mlx_gardener.report.text import (
    about,
    counted,
    duration,
    edits_told,
    file_size,
    pace,
    safe_lines,
    safe_text,
    share_of_one,
)
from tests.report.facts import EVIDENCE, full_evidence


def test_names_of_bases_are_whole_on_every_width() -> None:
    """They are to be typed."""
    names = [
        "lmstudio:somebody-community/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        "index:SmolLM2-135M-Instruct-Q4_1",
    ]
    bases = [
        Base(name, "LM Studio", Path("/x"), parameters=1_500_000_000, quantisation="Q4_K_M", licence="apache-2.0",
             has_fim=True, fits=True, peak_bytes=2**31, update_seconds=170.0)
        for name in names
    ]  # fmt: skip
    for width in (40, 80, 200):
        stream = io.StringIO()
        show_bases(Console(file=stream, width=width, markup=False), bases, 2**32)
        told = stream.getvalue()
        assert all(name in told for name in names), told
        assert " ".join(told.split()).count("2 min 50 s") == 2 and "FIM" in told


def test_budgets_that_change_nothing_are_not_listed() -> None:
    facts, config = model_facts(seedling_path()), load_config(environment={})

    def shown_with(*gigabytes: float) -> str:
        made = [make_plan(facts, config, int(size * 2**30), TWO_CORES) for size in gigabytes]
        stream = io.StringIO()
        others = [(int(size * 2**30), plan) for size, plan in zip(gigabytes, made, strict=True)][1:]
        show_plan(Console(file=stream, width=100, markup=False), made[0], [*others, (2**20, None)])
        return stream.getvalue().partition("With other budgets:")[2]

    rows = [line for line in shown_with(4, 3, 5, 6, 8).splitlines() if "GB" in line]
    assert len(rows) == len({line.partition("GB")[2] for line in rows}) == 1 and "does not train" in rows[0]


def test_the_longest_sequence_says_where_the_base_and_not_the_budget_ends_it() -> None:
    facts, config = model_facts(seedling_path()), load_config(environment={})
    plan = make_plan(facts, config, 4 * 2**30, TWO_CORES)

    def told(longest: int) -> str:
        stream = io.StringIO()
        console = Console(file=stream, width=120, markup=False)
        show_plan(console, plan, longest_row=longest, most_tokens=facts.max_tokens)
        return stream.getvalue()

    assert "2,048 tokens, which is all that the base reads" in told(facts.max_tokens)
    assert "1,024 tokens\n" in told(1024)


def test_control_characters_are_spelled_out() -> None:
    assert safe_text("a\x1b[31mb\nc\u202ed\ud800") == "a\\x1b[31mb\\nc\\u202ed\\ud800"
    assert safe_lines("a\n\tb\x07") == "a\n    b\\x07"


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(value) for value in (5, 185, 7800, None)] == [
        "5 s",
        "3 min 05 s",
        "2 h 10 min",
        "unknown",
    ]


def test_evidence_is_shown_without_steering_the_terminal() -> None:
    stream = io.StringIO()
    show_evidence(Console(file=stream, width=100, markup=False), EVIDENCE)
    text = stream.getvalue()
    assert (
        "predicts your code better; its answers were not compared." in text
        and "1.2000" in text
        and "20.0%" in text
        and "\x1b" not in text
    )


def test_all_arms_guards_and_the_best_and_worst_are_shown_in_the_terminal() -> None:
    stream = io.StringIO()
    show_evidence(Console(file=stream, width=120, markup=False), full_evidence())
    text = stream.getvalue()
    for told in (
        "retrieval",
        "control",
        "1.5544",
        "✗ failed: Training files are not known by heart.",
        "? unclear: Filled spans still parse.",
        "Where the adapter gained most",
        "Where it lost most",
        "about 31 like these",
    ):
        assert told in text, told
    assert "\x1b" not in text and "harbor.js" not in text, "one best and one worst sample"


def test_numbers_that_are_foretold_and_paces_read_as_people_say_them() -> None:
    assert [about(count) for count in (7, 2048, 812_345, 999_900, 1_849_000, 22_000_000)] == [
        "7", "2,000", "810,000", "1.0 million", "1.8 million", "22 million",
    ]  # fmt: skip
    assert [pace(seconds) for seconds in (1e-6, 0.042, 7.51, 75, 170)] == [
        "under 0.1 ms", "0.042 s", "7.5 s", "1 min 15 s", "2 min 50 s",
    ]  # fmt: skip
    assert [share_of_one(share) for share in (0.47, 0.0037, 0.00001)] == ["47 %", "0.4 %", "under 0.1 %"]
    assert count_text(110_000_000_000) == "110B" and count_text(1_540_000_000) == "1.5B"


def test_counts_and_sizes_read_as_people_say_them() -> None:
    assert [counted(count, "chunk") for count in (0, 1, 2, 1234)] == [
        "0 chunks", "1 chunk", "2 chunks", "1,234 chunks",
    ]  # fmt: skip
    assert counted(1, "files") == "1 file"
    assert [file_size(size) for size in (0, 40, 4_200, 999_600, 1_500_000)] == [
        "0 B", "40 B", "4 kB", "1.0 MB", "1.5 MB",
    ]  # fmt: skip


def test_a_history_that_gave_no_next_edits_says_what_was_left_out() -> None:
    found = {"examples": 0, "commits": 12, "commits_used": 0, "no_edit_due": 0, "left_out": {}}
    assert edits_told({"edits": found}) == ", no next edits (nothing to learn from in 12 past commits)"
    left_out = {"by machines": 2, "examples that show held-out lines": 24}
    told = edits_told({"edits": found | {"left_out": left_out}})
    assert told.endswith("; left out: 2 by machines, 24 examples that show held-out lines)")
    some = found | {"examples": 3, "commits_used": 2, "no_edit_due": 1}
    assert edits_told({"edits": some}) == ", with 3 next edits of 2 commits (1 where none is due)"
