"""A run as it is watched: on a terminal, in a pipe, as JSON lines and in a log, whatever its text holds."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from mlx_gardener.events import (
    DataPrepared,
    Evaluated,
    Event,
    ProgressChanged,
    StepAdvanced,
    StepCompleted,
    TrainingPhase,
)
from mlx_gardener.report.jsonl import JsonLines
from mlx_gardener.report.live import LiveView, sparkline
from mlx_gardener.report.log_view import LogReader
from mlx_gardener.report.text import parent_told
from tests.report.facts import EVENTS
from tests.support.trainings import until

HOSTILE = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\nnext"


def shown(*, terminal: bool, **options: object) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=terminal, width=100, markup=False, highlight=False, **options
    )  # type: ignore[arg-type]
    with LiveView(console, project=HOSTILE) as view:
        for event in EVENTS:
            view(event)
    return stream.getvalue()


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


def test_a_training_that_goes_on_says_from_what_and_does_not_call_it_the_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary = {
        "languages": {}, "chunks_kept": 9, "files_kept": 2, "train_loss_tokens": 700, "padding_fraction": 0.0,
        "continued_from": {"version": "v1", "updates_done": 12},
    }  # fmt: skip
    events = [DataPrepared(summary), Evaluated(0, 2.0, 0.7, True, "v1")]
    told = "Going on from v1 with the updates that its time limit left, after 12 updates"
    lines = lines_of(events, monkeypatch)
    assert lines[1] == told and lines[2].endswith("0.7000 bits per byte, where v1 ended"), lines
    read = LogReader()
    logged = [
        read(f"2026-01-02 03:04:05,678 INFO mlx_gardener.runs.worker: {json.dumps(event.to_json())}")
        for event in events
    ]
    assert str(logged[0]).endswith(f" to learn from. {told}"), logged
    assert str(logged[1]).endswith("0.7000 bits per byte, where v1 ended"), logged
    changed = {"version": "v2", "changed_files": 1, "changed_share": 0.1, "replayed_files": 1}
    assert parent_told({"continued_from": changed}) == "Going on from v2 with 1 file that changed"
    assert parent_told({"continued_from": None}) == ""


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
