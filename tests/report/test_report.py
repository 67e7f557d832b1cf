"""What people look at: on a terminal, in a pipe, with hostile text, as a page and in a notebook."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.engine import make_plan, model_facts
from mlx_gardener.engine.bases import Base
from mlx_gardener.engine.speed import TWO_CORES
from mlx_gardener.events import (
    Evaluated,
    Event,
    ProgressChanged,
    StepAdvanced,
    StepCompleted,
    TrainingPhase,
)
from mlx_gardener.model import seedling_path
from mlx_gardener.report import render_model_card, render_report_html
from mlx_gardener.report.evidence_view import show_evidence
from mlx_gardener.report.jsonl import JsonLines
from mlx_gardener.report.live import LiveView, sparkline
from mlx_gardener.report.log_view import LogReader
from mlx_gardener.report.models_view import count_text, show_bases
from mlx_gardener.report.plan_view import show_plan
from mlx_gardener.report.recipe import all_settings, train_command
from mlx_gardener.report.story import (
    best_and_worst,
    changes,
    directory_gains,
    guards,
    kept,
    kept_step,
    language_gains,
    remarks,
)
from mlx_gardener.report.svg import COLOURS, labelled, line_chart, loss_chart, ticks
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
from tests.report.facts import EVENTS, EVIDENCE, METRICS, full_events, full_evidence, full_facts
from tests.support.trainings import until

HOSTILE = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\nnext"
SUMMARY = {
    "chunks_kept": 10, "files_kept": 3, "train_loss_tokens": 1000, "padding_fraction": 0.01, "test_bytes": 99,
    "languages": {"python": {"files": 3, "chunks": 10, "bytes": 999}}, "dropped": {"binary": {"unit": "files", "count": 2}},
}  # fmt: skip
FACTS = {
    "project": "demo",
    "version": "v1",
    "base_model": "seedling",
    "config": TrainingConfig().model_dump(mode="json"),
    "data": {"data_sha256": "ab" * 32, "commit": None, "file_list_sha256": "", "summary": SUMMARY},
    "metrics": METRICS,
    "evidence": EVIDENCE,
    "training": {
        "steps": 20, "total_steps": 20, "best_step": 20, "stopped_because": "all updates done",
        "train_losses": [3.0, 2.0], "validation": [{"step": 0, "loss": 3.0}, {"step": 2, "loss": 2.5}],
    },
    "plan": {},
}  # fmt: skip


def shown(*, terminal: bool, **options: object) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=terminal, width=100, markup=False, highlight=False, **options
    )  # type: ignore[arg-type]
    with LiveView(console, project=HOSTILE) as view:
        for event in EVENTS:
            view(event)
    return stream.getvalue()


def test_an_earlier_interval_from_nothing_to_nothing_is_shown_as_far_as_it_goes() -> None:
    same = {
        "arm": "adapter",
        "against": "base",
        "metric": "next_line_exact",
        "change": 0.0,
        "low": 0.0,
        "high": 0.0,
    }
    (found,) = changes({"comparisons": [{**same, "files": 12, "tasks": 40, "unit": "points"}]})
    assert found.interval == "-25.0 to +25.0" and found.better is None


def test_a_pipe_gets_plain_lines() -> None:
    text = shown(terminal=False)
    assert "\x1b" not in text and "\x07" not in text
    assert "Step 1 of 20: loss 3.000" in text and "Step 20 of 20" in text and "100 %  Done" in text
    assert "Validation at step 20" in text and "2.00 GB of 4.00 GB" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_it_is_said_when_other_updates_fit_than_were_foretold(terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, markup=False, highlight=False)
    step = StepCompleted(1, 55, 0.1, 3.0, 100, 1e-3, 0.4, 20.0, 9.0, 2**30, 2**31, 2**32, 90.0)
    with LiveView(console, project="demo") as view:
        view(Evaluated(0, 2.0, 0.7, True))
        for number, total in ((1, 55), (2, 54), (3, 52), (4, 49), (5, 48), (6, 60)):
            view(replace(step, step=number, total_steps=total))
    told = [line for line in stream.getvalue().splitlines() if "fit now" in line]
    assert len(told) == 2, told
    assert "Time: 49 updates fit now, not 55: one takes longer than foretold." in told[0]
    assert "Time: 60 updates fit now, not 49: one takes less long than foretold." in told[1]
    assert "Validation at step 0: loss 2.0000, 0.7000 bits per byte, the base alone" in stream.getvalue()


def test_a_terminal_gets_a_picture_and_hostile_text_cannot_steer_it() -> None:
    text = shown(terminal=True)
    assert "█" in text and "peak memory" in text and "tokens/s" in text
    assert "\x1b]0;" not in text and "\x07" not in text and "\x1b[2J" not in text
    assert "\\x1b[2J" in text, "it is shown, spelled out"


def panel(view: LiveView) -> str:
    """What the panel shows now, as text."""
    console = Console(file=io.StringIO(), width=100, markup=False)
    with console.capture() as got:
        console.print(view.render())
    return got.get()


def test_the_panel_counts_on_between_updates() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, markup=False)
    now = time.time()
    step = StepCompleted(3, 20, 0.1, 3.0, 100, 1e-3, 0.4, 20.0, 9.0, 2**30, 2**31, 2**32, 7230.0)
    with LiveView(console, project="demo") as view:
        view(ProgressChanged(TrainingPhase.INITIALIZING, 0.0, "Choosing", timestamp=now - 4000))
        view(replace(step, timestamp=now - 3600))
        part = "Step 4 of 20, 50% of it done"
        view(StepAdvanced("Step", 4, 20, 0.5, 1000.0, timestamp=now - 600))
        view(ProgressChanged(TrainingPhase.TRAINING, 47.0, part, {"share": 0.5}, timestamp=now - 600))
        shown = panel(view)
        assert "after 1 h 06 min" in shown and "1 h 00 min of training" in shown, shown
        assert re.search(r"50% of it done, about 6 min (40|3\d) s left for this step", shown), shown
        view(
            ProgressChanged(
                TrainingPhase.COMPLETING, 91.0, "Measuring", {"eta_seconds": 900.0}, timestamp=now - 300
            )
        )
        view(Evaluated(4, 1.0, 0.5, True))
        again = ProgressChanged(TrainingPhase.COMPLETING, 91.0, "Measuring", {"eta_seconds": 900.0})
        view(again)  # a sign of life says nothing new
        assert re.search(r"Measuring, about (10 min|9 min 5\d s) left for this", panel(view)), panel(view)
        view(ProgressChanged(TrainingPhase.COMPLETED, 100.0, "Done", timestamp=now - 40))
        assert "left for this" not in panel(view) and "after 1 h 06 min" in panel(view)


def test_the_panel_is_drawn_again_while_a_run_says_nothing() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, markup=False)
    with LiveView(console, project="demo") as view:
        view(ProgressChanged(TrainingPhase.STARTING_TRAINING, 30.0, "Trying", {"eta_seconds": 50.0}))
        until(
            lambda: len(set(re.findall(r"about (\d+) s left for this", stream.getvalue()))) > 1,
            "a second that passed",
        )


def lines_of(events: list[Event], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a log gets of events that come as slowly as it wants them."""
    monkeypatch.setattr("mlx_gardener.report.live._PLAIN_SECONDS", 0.0)
    stream = io.StringIO()
    with LiveView(Console(file=stream, width=100, markup=False), project="demo") as view:
        for event in events:
            view(event)
    return stream.getvalue().splitlines()


def test_a_part_of_a_step_has_one_shape_and_no_second_of_none_left(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    for share, left in ((0.67, 102.0), (0.69, 95.0), (1.0, 0.2)):
        events += [
            StepAdvanced("Step", 1, 3, share, left),
            ProgressChanged(TrainingPhase.TRAINING, 51.0, f"Step 1 of 3, {share:.0%} of it done"),
        ]
    lines = lines_of(events, monkeypatch)
    assert len(lines) == 3 and all(line.startswith(" 51 %  Step 1 of 3, ") for line in lines[1:]), lines
    assert re.search(r"69% of it done, about 1 min 3\d s left for this step$", lines[1]), lines
    assert lines[2].endswith("100% of it done"), lines
    last = StepCompleted(3, 3, 1.0, 2.0, 100, 1e-3, 0.4, 20.0, 9.0, 2**30, 2**31, 2**32, 0.0)
    assert "left" not in lines_of([last], monkeypatch)[0]


def test_the_choice_of_a_base_is_said_once_however_often_a_run_says_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = [
        ProgressChanged(TrainingPhase.INITIALIZING, 5.0, message)
        for message in ("Choosing the base model", "Base model: a/b (named)", "Passed over: c/d (too slow)")
    ]
    lines = lines_of([*said, said[2], said[2], *said], monkeypatch)
    assert sum("Base model:" in line for line in lines) == 1 == sum("Passed over:" in line for line in lines)


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


def test_a_log_counts_the_same_thing_once() -> None:
    read = LogReader()

    def line(message: str) -> str | None:
        event = ProgressChanged(TrainingPhase.INITIALIZING, 5.0, message)
        return read(f"2026-01-02 03:04:05,678 INFO mlx_gardener.runs.worker: {json.dumps(event.to_json())}")

    counted_up = [
        line(f"Reading index: {done} of 97 MB, {9 - done // 10} s left") for done in (0, 33, 81, 97)
    ]
    assert counted_up[0] is not None and counted_up[1:] == [None, None, None]
    assert line("Base model: index (as asked)") is not None
    assert [line(f"Step {step} of 3, loss {step}.5") is not None for step in (1, 2)] == [True, True]


def test_a_line_that_says_the_same_again_says_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_gardener.report.live._PLAIN_SECONDS", 0.0)
    stream, now = io.StringIO(), time.time()
    with LiveView(Console(file=stream, width=100, markup=False), project="demo") as view:
        for message, ago in (("Choosing", 200), ("Choosing", 100), ("Choosing", 50), ("Reading", 20)):
            view(ProgressChanged(TrainingPhase.INITIALIZING, 0.0, message, timestamp=now - ago))
    first, again, once_more, other = stream.getvalue().splitlines()
    assert first == "  0 %  Choosing" and other == "  0 %  Reading"
    assert again.startswith("  0 %  Choosing, 3 min 2") and once_more.endswith(" so far")


def test_no_color_is_honoured() -> None:
    text = shown(terminal=True, no_color=True)
    assert "\x1b[32m" not in text and "█" in text


@pytest.mark.parametrize("width", [20, 40, 200])
def test_every_width_of_terminal_is_survived(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, markup=False)
    with LiveView(console, project="demo") as view:
        for event in EVENTS:
            view(event)
        with console.capture() as captured:
            console.print(view.render())
    lines = Text.from_ansi(captured.get()).plain.splitlines()
    assert len(lines) > 3 and max(cell_len(line) for line in lines) <= width


def test_json_lines_are_the_events() -> None:
    import json

    stream = io.StringIO()
    lines = JsonLines(stream)
    for event in EVENTS:
        lines(event)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        event.to_json() for event in EVENTS
    ]


def test_a_sparkline_rises_and_falls_with_its_values() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0] * 3, 10) == "▁▁▁" and sparkline([], 5) == ""
    assert len(sparkline(list(map(float, range(1000))), 40)) == 40


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


class _Checker(HTMLParser):
    """Counts open tags and collects what a page would fetch or run."""

    VOID = ("meta", "br", "line", "polyline", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe"):
            self.foreign.append(tag)
        self.foreign += [
            f"{name}={value}"
            for name, value in attrs
            if (name in ("src", "href", "srcset") and not (value or "").startswith("#"))
            or name.startswith("on")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # closed where it opens

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_whole_page_that_runs_and_fetches_nothing() -> None:
    page = render_report_html(FACTS, events=EVENTS)
    checker = _Checker()
    checker.feed(page)
    assert checker.open == [] and checker.foreign == []
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<svg") == 3, "intervals, loss and memory"
    assert "color-scheme: light dark" in page and 'name="viewport"' in page


def test_the_whole_story_is_told_and_nothing_of_it_can_steer_or_run() -> None:
    page = render_report_html(full_facts(), events=full_events())
    checker = _Checker()
    checker.feed(page)
    assert checker.open == [] and checker.foreign == []
    assert (
        page.startswith("<!doctype html>")
        and "<script" not in page
        and "\x1b" not in page
        and "\u202e" not in page
    )
    for told in (
        "It helped.", "adapter + retrieval", "1.1502", "✗ failed", "Retrieval alone did better in &#34;next line exactly right&#34;",
        "about 31 like these are needed", "1.25 was chosen", "planned peak", "hidden states kept for the way back",
        "AWS Access Key", "settings.py:3", "Where the adapter gained most", "Where it lost most", "By language", "By directory",
        "--set lora.rank=8", "--seed 3", "ab" * 32, "12" * 32, "mlx 0.32.4", "6 of 24 layers are read from disk",
    ):  # fmt: skip
        assert told in page, told
    first_screen = ("It helped.", "how well a model predicts code", "What to do now", "<nav", "<h2")
    assert sorted(first_screen, key=page.index) == list(first_screen), (
        "the verdict comes first, in plain words"
    )
    assert '<span class="y-k">class</span>' in page, "code has syntax colour"
    assert page.count("<title>") > 6 and page.count("<caption>") > 6 and "<th scope=" in page


def test_every_part_that_is_missing_is_left_out() -> None:
    for part in ("arms", "comparisons", "guards", "power", "answers_power", "scale_sweep", "samples"):
        facts = full_facts()
        del facts["evidence"][part]
        told = "It helped." if part != "comparisons" else "its answers were not compared."
        assert told in render_report_html(facts, events=[]), part
    for part in ("power", "scale_sweep"):
        facts = full_facts()
        facts["evidence"][part] = None
        assert "It helped." in render_report_html(facts, events=full_events()), part
    facts = full_facts()
    for part in ("scan", "base", "versions", "plan"):
        del facts[part]
    page = render_report_html(facts, events=[])
    assert "AWS Access Key" not in page and "left of the budget" not in page and "17 chunks" in page


def test_gains_are_weighted_by_bytes_and_grouped_where_paths_differ() -> None:
    evidence = {
        "files": [
            {"path": "a/b/c/x.py", "language": "python", "bytes": 300, "base_bits_per_byte": 1.0, "adapter_bits_per_byte": 0.5},
            {"path": "a/b/c/y.py", "language": "python", "bytes": 100, "base_bits_per_byte": 1.0, "adapter_bits_per_byte": 1.5},
            {"path": "a/b/d/z.go", "language": "go", "bytes": 50, "base_bits_per_byte": 2.0, "adapter_bits_per_byte": 2.0},
        ]
    }  # fmt: skip
    python, go = language_gains(evidence)
    assert (python.name, python.files, python.base, python.adapter) == ("python", 2, 1.0, 0.75)
    assert python.change == pytest.approx(-0.25) and go.change == 0.0
    assert [gain.name for gain in directory_gains(evidence)] == ["a/b/c/", "a/b/d/"]
    many = [
        {"path": f"d{n}/x", "bytes": 10, "base_bits_per_byte": 1, "adapter_bits_per_byte": 1}
        for n in range(40)
    ]
    found = directory_gains({"files": many})
    assert found[-1].name == "others" and sum(gain.files for gain in found) == 40


def test_best_and_worst_are_what_gained_and_lost_most() -> None:
    samples = [{"path": "x", "gain": gain} for gain in (0.1, -0.5, 0.9, 0.0, 0.004, -0.001, -0.1)]
    (best, gained), (worst, lost) = best_and_worst({"samples": samples})
    assert (best, [item["gain"] for item in gained]) == ("Where the adapter gained most", [0.9, 0.1])
    assert (worst, [item["gain"] for item in lost]) == ("Where it lost most", [-0.5, -0.1])


def test_a_losing_comparison_is_said_whichever_side_is_named_first() -> None:
    def said(arm: str, against: str, low: float, high: float) -> list[str]:
        item = {"arm": arm, "against": against, "metric": "bits_per_byte", "change": (low + high) / 2}
        return remarks({"comparisons": [{**item, "low": low, "high": high, "unit": "relative"}]})

    assert said("adapter", "base_bm25", 0.01, 0.1) and said("base_bm25", "adapter", -0.1, -0.01)
    assert not said("adapter", "base_bm25", -0.1, -0.01) and not said("base_bm25", "adapter", 0.01, 0.1)
    assert said("adapter", "control", -0.1, 0.1) and said("control", "adapter", -0.1, 0.1)
    assert not said("adapter", "control", -0.2, -0.1) and not said("control", "adapter", 0.1, 0.2)


def test_the_command_names_what_is_not_the_default_and_no_place_of_this_machine() -> None:
    overrides = {"model": "/home/someone/models/tiny", "data.exclude": ["a b/*"], "memory_limit_gb": 2}
    config = load_config(environment={}, overrides=overrides).model_dump(mode="json")
    command = train_command(config, "tiny", "web")
    assert (
        command
        == "mlx-gardener train . --project web --model tiny --budget 2.0 --set 'data.exclude=[\"a b/*\"]'"
    )
    assert "/home" not in str(all_settings(config, "tiny"))


def contrast(one: str, other: str) -> float:
    """Of two colours, by WCAG 2.2 (relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_colour_of_text_has_enough_contrast() -> None:
    for fallback, light, dark in COLOURS.values():
        assert min(contrast(light, "#ffffff"), contrast(light, "#f6f8fa")) >= 4.5, light
        assert min(contrast(dark, "#0d1117"), contrast(dark, "#161b22")) >= 4.5, dark
        assert min(contrast(fallback, "#ffffff"), contrast(fallback, "#111111")) >= 3.0, "lines, not text"
    assert contrast("#57606a", "#f6f8fa") >= 4.5 and contrast("#9198a1", "#161b22") >= 4.5


def test_the_model_card_says_what_it_is_and_how_to_load_it() -> None:
    card = render_model_card(FACTS)
    assert card.startswith("---\nbase_model: seedling") and "--adapter-path mlx" in card
    assert "1.5000 | 1.2000" in card
    assert "**It predicts your code better; its answers were not compared.**" in card
    assert "alert(1)" not in card, "no source text and no file names in the card"
    full = render_model_card({**FACTS, "evidence": full_evidence()})
    assert (
        "| on code it never saw | base | base + retrieval | adapter | adapter + retrieval | control |\n|---|"
        in full
    )
    assert "- adapter against control, bits per byte: -22.5% (95 % interval -27.0% to -13.0%)." in full
    assert (
        "A guard failed, `report.html` says why: Training files are not known by heart" in full
        and "not forgotten" not in full
    )
    assert "owned" not in full


def test_ticks_are_round_and_few() -> None:
    assert ticks(0, 4.2) == [0, 1, 2, 3, 4] and ticks(1.0, 1.0) == [1.0] and ticks(0, float("nan")) == [0]
    for low, high in ((0, 1e-9), (-3.3, 1234.5), (7.77, 7.78)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 5 and all(low - 1e-9 <= at <= high + 1e-9 for at in found)


def test_a_chart_without_points_is_empty() -> None:
    assert line_chart([("a", "red", [])], title="", x_label="x", y_label="y") == ""


def test_noisy_updates_stand_behind_their_mean() -> None:
    def chart(losses: list[float]) -> str:
        return loss_chart(
            {"train_losses": losses, "validation": [{"step": 0, "loss": 3.0}, {"step": 9, "loss": 2.0}]}
        )

    few, many = chart([3.0, 2.0, 2.5]), chart([3.0, 1.0] * 20)
    assert few.count("<polyline") == 2 and ">training<" in few
    assert many.count("<polyline") == 3 and ">each update<" in many and ">mean of 4<" in many
    means = re.findall(r'points="([^"]+)"', many)[1].split()
    assert len({point.split(",")[1] for point in means}) == 1, "the mean of 3 and 1 is 2 wherever it stands"


def test_a_result_displays_itself_in_a_notebook() -> None:
    from mlx_gardener.api import TrainingResult

    html = TrainingResult("<b>", "v1", Path("x"), METRICS, EVIDENCE, FACTS["training"])._repr_html_()  # type: ignore[arg-type]
    assert "<svg" in html and "&lt;b&gt;" in html and "1.2000" in html


def test_the_first_screen_says_what_it_means_and_what_to_do() -> None:
    for verdict, told in (
        ("promote", "mlx-gardener complete demo src/core/basket.py:7"),
        ("inconclusive", "--fresh --epochs 6 --timeout 0"),
        ("reject", "mlx-gardener show demo"),
        ("unmeasured", "mlx-gardener eval demo"),
    ):
        facts = full_facts()
        facts["evidence"] |= {"verdict": verdict, "guards": []}
        if verdict == "inconclusive":
            facts["evidence"]["metrics"]["bits_per_byte_change_high"] = 0.1
        page = render_report_html(facts, events=[])
        first = page[page.index("<main>") : page.index("<nav")]
        assert "What to do now" in first and told in first, verdict


def test_the_words_of_the_evidence_are_explained() -> None:
    page = render_report_html(full_facts(), events=[])
    terms = re.findall(r"<dt>(.*?)</dt>", page)
    for word in ("bits per byte", "retrieval (BM25)", "control", "F1", "base", "adapter"):
        assert word in terms


def test_the_times_and_what_was_cut_off_are_on_the_page() -> None:
    facts = full_facts()
    facts["evidence"]["notes"] = ["Not measured, as the time was over: spans."]
    facts["training"] |= {
        "stopped_because": "the time limit, after 120 of 512 updates",
        "time_plan": {
            "limit_seconds": 1800.0, "used_seconds": 70.0, "training_seconds": 1325.0, "evidence_seconds": 390.0,
            "updates": 120, "all_updates": 512, "steps_per_epoch": 171, "validations": 4, "validation_tokens": 4000,
            "pace": {"update_seconds": 10.2, "forward_tokens_per_second": 250.0, "source": "as the last updates took"},
        },
    }  # fmt: skip
    page = render_report_html(facts, events=[])
    for told in (
        "as the time was over: spans", "22 min 05 s for training", "120 of 512 updates fit", "--timeout 0", "eval demo",
    ):  # fmt: skip
        assert told in page, told


def test_what_chance_may_explain_gets_no_tick() -> None:
    fell = {"name": "parse_ok", "passed": True, "measured": -0.167, "limit": 0.05, "reason": "it fell"}
    states = [
        guard.state
        for guard in guards(
            {
                "guards": [
                    fell,
                    {**fell, "measured": None},
                    {**fell, "measured": 0.1},
                    {**fell, "passed": False},
                ]
            }
        )
    ]
    assert states == ["unclear", "unclear", "passed", "failed"]
    assert guards({"guards": [fell]})[0].reason == "It fell."
    for change, low, state in (
        (0.0, -1.0, "unclear"),
        (0.05, -0.06, "unclear"),
        (0.0, 0.0, "passed"),
        (0.1, -0.04, "passed"),
    ):
        interval = {
            "metric": "fim_parse_ok", "arm": "adapter", "against": "base", "change": change, "low": low, "high": 1.0,
        }  # fmt: skip
        shown = guards({"guards": [{**fell, "measured": change}], "comparisons": [interval]})
        assert shown[0].state == state, interval


def test_the_numbers_of_an_axis_differ() -> None:
    for low, high in ((1.23401, 1.23409), (12_340.0, 12_345.0), (0.0, 1e-6), (-0.2, 0.3), (1e6, 1e6 + 3)):
        labels = [label for _, label in labelled(ticks(low, high))]
        assert len(set(labels)) == len(labels) > 1, labels
    assert [label for _, label in labelled([-0.1, 0.0, 0.1], times=100, sign="+")] == ["-10", "0", "+10"]


def test_a_bar_is_as_long_as_its_change() -> None:
    def lengths(*adapters: float) -> list[float]:
        facts = full_facts()
        facts["evidence"]["files"] = [
            {"path": f"d{at}/x.py", "language": "python", "bytes": 10, "base_bits_per_byte": 1.0, "adapter_bits_per_byte": bits}
            for at, bits in enumerate(adapters)
        ]  # fmt: skip
        page = render_report_html(facts, events=[])
        by_directory = page[page.index("By directory") :]
        return [float(found) for found in re.findall(r'y="2" width="([\d.]+)" height="8"', by_directory)]

    assert lengths(0.999, 0.999) == [0.5, 0.5], (
        "a tenth of a per cent is a hundredth of the ten that fill a side"
    )
    small, large = lengths(0.98, 0.82)
    assert large == pytest.approx(9 * small, abs=0.5)


def test_the_page_says_which_state_of_the_training_is_the_adapter() -> None:
    """As `Standing.adapter` decides: the best that was validated, or the last where time ran out before it could be."""
    points = [{"step": step, "loss": 2.0, "bits_per_byte": 1.0} for step in (0, 4, 8)]
    for steps, best, validated, at, told in (
        (8, 8, 3, 8, "after update 8, where the validation part went best."),
        (3, 0, 1, 3, "after update 3, the last one: the time was over before it could be validated"),
        (6, 4, 2, 6, "after update 6, the last one: the time was over"),
        (11, 4, 3, 4, "after update 4, where the validation part went best; what came after update 8 was not validated"),
        (8, 0, 3, 0, "as it was before the first: it changes nothing"),
    ):  # fmt: skip
        training = {"steps": steps, "best_step": best, "validation": points[:validated]}
        assert kept_step(training) == at and told in kept(training)
    facts = full_facts()
    facts["training"] |= {"steps": 3, "best_step": 0, "validation": points[:1]}
    assert "after update 3, the last one" in render_report_html(facts, events=[])
    assert "after update 3, the last one" in render_model_card(facts)


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
