"""A run in the terminal while it happens: phase, loss curve, speed, memory against the budget, time left.

On a terminal one panel is redrawn, and its clocks go on also while a run says nothing; elsewhere (a pipe, a log) plain
lines are printed, a step line at most every few seconds. What a repository or model named is escaped before it is shown.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlx_gardener.events import (
    CheckpointWritten,
    DataPrepared,
    Evaluated,
    Event,
    PlanChosen,
    ProgressChanged,
    StepAdvanced,
    StepCompleted,
    TimePlanned,
    TrainingEnded,
    TrainingPhase,
    WarningRaised,
)
from mlx_gardener.report.text import counted, duration, edits_told, gigabytes, parent_told, safe_text
from mlx_gardener.report.time_view import time_line

_BARS = "▁▂▃▄▅▆▇█"
#: In a log: least seconds between two lines. A run gives a sign of life every five seconds, also within a slow segment of a
#: large base; less than that, or a sign that comes early is passed over and the silence lasts ten seconds.
_PLAIN_SECONDS = 4.0
#: What a run does in each phase, in words.
PHASES = {
    TrainingPhase.INITIALIZING: "choosing a model",
    TrainingPhase.PREPARING_DATA: "reading the repository",
    TrainingPhase.STARTING_TRAINING: "loading the model",
    TrainingPhase.TRAINING: "training",
    TrainingPhase.COMPLETING: "measuring and saving",
}


def make_console(*, stderr: bool = False) -> Console:
    """The console all commands print to; honours NO_COLOR and pipes, never reads markup in data."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def sparkline(values: list[float], width: int) -> str:
    """``values`` as a line of blocks, the last one to the right; more values than ``width`` are averaged."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    if len(values) > width:
        edges = [round(at * len(values) / width) for at in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    return "".join(_BARS[min(7, int((value - low) / spread * 8))] for value in values)


@dataclass
class RunSoFar:
    """What a view shows of a run: the latest of each event, and all losses in nats per token."""

    progress: ProgressChanged = field(
        default_factory=lambda: ProgressChanged(TrainingPhase.INITIALIZING, 0.0, "Starting")
    )
    step: StepCompleted | None = None
    losses: list[float] = field(default_factory=list)
    evaluation: Evaluated | None = None
    #: The part of an update or validation that is under way, where it is a slow one.
    part: StepAdvanced | None = None
    began: float | None = None

    def take(self, event: Event) -> None:
        """Take in an event; others than these change nothing."""
        if self.began is None:
            self.began = event.timestamp
        if isinstance(event, ProgressChanged):
            before = self.progress
            if (event.message, _left(event)) == (before.message, _left(before)):
                # Told again as a sign of life: what was left then is less by now.
                event = replace(event, timestamp=before.timestamp)
            self.progress = event
        elif isinstance(event, StepAdvanced):
            self.part = event
        elif isinstance(event, StepCompleted):
            self.step, self.part = event, None
            self.losses.append(event.loss)
        elif isinstance(event, Evaluated):
            self.evaluation, self.part = event, None

    def seconds(self, now: float) -> float:
        """How long the run has gone on at ``now``, seconds since the epoch."""
        return now - (now if self.began is None else self.began)

    def training_left(self, now: float) -> float | None:
        """Seconds of training left, as the last update saw it; None where nobody knows."""
        return None if self.step is None else _at(self.step.eta_seconds, self.step.timestamp, now)

    def part_left(self, now: float) -> float | None:
        """Seconds left of what the progress tells of: an update, a validation, a dry run, a measurement."""
        if self.part is not None:
            return _at(self.part.eta_seconds, self.part.timestamp, now)
        if self.progress.phase is TrainingPhase.TRAINING or self.progress.phase.is_final:
            return None
        return _at(_left(self.progress), self.progress.timestamp, now)

    def part_left_text(self, now: float) -> str:
        """``, about 1 min 42 s left for this step``; "" where nobody knows, or no second is left."""
        left = self.part_left(now)
        if left is None or left < 1:
            return ""
        what = "this" if self.part is None else f"this {self.part.activity.lower()}"
        return f", about {duration(left)} left for {what}"


def _left(event: ProgressChanged) -> float | None:
    eta = event.details.get("eta_seconds")
    return eta if isinstance(eta, int | float) else None


def _at(eta: float | None, timestamp: float, now: float) -> float | None:
    return None if eta is None else max(0.0, eta - max(0.0, now - timestamp))


class LiveView:
    """An event subscriber that draws; use as a context manager.

    Args:
        console: where to draw.
        project: shown in the title.
    """

    def __init__(self, console: Console, *, project: str) -> None:
        self.console = console
        self.project = safe_text(project)
        self._run = RunSoFar()
        self._printed_at = 0.0
        self._printed_phase: TrainingPhase | None = None
        self._said = ""
        self._bases: set[str] = (
            set()
        )  # what was said of the choice of a base: a run that begins again says it again
        self._plan: dict[str, Any] = {}
        self._total: int | None = None
        self._live = (
            Live(get_renderable=self.render, console=console, refresh_per_second=8, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            if self._run.losses:
                self.console.print(self.render())  # the last picture stays

    def __call__(self, event: Event) -> None:
        """Take in an event and show what is new."""
        self._run.take(event)
        self._print(event)

    def _print(self, event: Event) -> None:
        """What is worth a line of its own, above the panel or in a log."""
        if isinstance(event, DataPrepared):
            self._line(_data_line(event))
            if told := parent_told(event.summary):
                self._line(told)
        elif isinstance(event, PlanChosen):
            self._print_plan(event.plan)
        elif isinstance(event, TimePlanned):
            self._total = event.plan["updates"]
            self._line(time_line(event.plan))
        elif isinstance(event, WarningRaised):
            self._line(f"Warning: {event.message}", style="yellow")
        elif isinstance(event, Evaluated):
            self._line(
                f"Validation at step {event.step}: loss {event.loss:.4f}, {event.bits_per_byte:.4f} bits per byte"
                f"{validation_remark(event)}"
            )
        elif isinstance(event, ProgressChanged) and event.phase is not self._printed_phase:
            self._printed_phase = event.phase
            if not event.phase.is_final:
                self._said = f"{event.progress_percent:3.0f} %  {event.message}"
                self._line(self._said)
        elif isinstance(event, StepCompleted):
            self._print_total(event)
            if self._live is not None:
                return
            if event.step in (1, event.total_steps) or time.monotonic() - self._printed_at >= _PLAIN_SECONDS:
                self._printed_at = time.monotonic()
                self._line(_step_line(event))
        elif isinstance(event, TrainingEnded) and event.phase is TrainingPhase.COMPLETED:
            self._line("100 %  Done")
        elif isinstance(event, ProgressChanged) and event.message.startswith(("Base model:", "Passed over:")):
            if event.message not in self._bases:
                self._bases.add(event.message)
                self._line(event.message)
        elif self._live is None and isinstance(event, ProgressChanged) and self._is_news(event):
            self._printed_at = time.monotonic()
            left = self._run.part_left_text(time.time())
            said, self._said = self._said, f"{event.progress_percent:3.0f} %  {event.message}{left}"
            so_far = "" if said != self._said else f", {duration(self._run.seconds(time.time()))} so far"
            self._line(self._said + so_far)
        elif isinstance(event, CheckpointWritten):
            return

    def _is_news(self, event: ProgressChanged) -> bool:
        """Whether a log wants a line about it: something new, or a sign of life where updates have had no line of their own."""
        silent = time.monotonic() - self._printed_at
        return not event.phase.is_final and silent >= _PLAIN_SECONDS

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(safe_text(text), style=style), soft_wrap=True)

    def _print_total(self, event: StepCompleted) -> None:
        """That other updates fit into the limit than were said, where it is a tenth or more of them."""
        total, before = event.total_steps, self._total
        if before is None or abs(total - before) >= max(1, before / 10):
            self._total = total
            if before is not None:
                how = "longer" if total < before else "less long"
                self._line(
                    f"Time: {counted(total, 'update')} fit now, not {before:,}: one takes {how} than foretold."
                )

    def _print_plan(self, plan: dict[str, Any]) -> None:
        """The first plan whole; of one that takes its place, as after the dry run, what is other."""
        rows = rows_line(plan["rows_of_width"])
        memory = f"{gigabytes(plan['predicted_peak_bytes'])} of {gigabytes(plan['budget_bytes'])}"
        before, self._plan = self._plan, plan
        if not before:
            self._line(f"Plan: {rows} at a time, a peak of about {memory}")
        elif before["rows_of_width"] == plan["rows_of_width"]:
            self._line(f"Plan corrected: a peak of about {memory}")
        else:
            self._line(f"Plan corrected: {rows} at a time, a peak of about {memory}")
        for note in plan["notes"]:
            if note not in before.get("notes", ()):
                self._line(f"  {note}")

    def render(self) -> RenderableType:
        """The panel as it stands now."""
        now = self._run.progress.timestamp if self._run.progress.phase.is_final else time.time()
        width = max(30, min(self.console.width - 4, 100))
        message = self._run.progress.message + self._run.part_left_text(now)
        phase = PHASES.get(self._run.progress.phase, self._run.progress.phase.value)
        bar = Table.grid()  # alone, rich's bar ends without a line, and what follows it is not seen
        bar.add_row(ProgressBar(total=100, completed=self._run.progress.progress_percent, width=width))
        parts: list[RenderableType] = [
            Text.assemble(
                (phase, "bold"),
                f"  {self._run.progress.progress_percent:.0f} %  after {duration(self._run.seconds(now))}",
            ),
            bar,
            Text(safe_text(message), no_wrap=True, overflow="ellipsis", style="dim"),
        ]
        if self._run.step is not None:
            parts.append(self._figures(self._run.step, width, now))
        return Panel(Group(*parts), title=Text(f"mlx-gardener: {self.project}"), width=width + 4)

    def _figures(self, step: StepCompleted, width: int, now: float) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(no_wrap=True)
        room = max(10, width - 34)
        table.add_row(
            "loss",
            Text.assemble((sparkline(self._run.losses, room), "green"), f"  {step.loss:.3f} nats/token"),
        )
        if self._run.evaluation is not None:
            table.add_row("validation", f"{self._run.evaluation.bits_per_byte:.4f} bits per byte")
        used = step.peak_bytes / max(1, step.budget_bytes)
        bar = ProgressBar(
            total=1.0, completed=min(1.0, used), width=room, complete_style="red" if used > 1 else "cyan"
        )
        grid = Table.grid(padding=(0, 2))
        grid.add_row(bar, f"{gigabytes(step.peak_bytes)} of {gigabytes(step.budget_bytes)}")
        table.add_row("peak memory", grid)
        table.add_row("speed", f"{step.tokens_per_second:,.0f} tokens/s learned from")
        table.add_row(
            "time left",
            f"{duration(self._run.training_left(now))} of training  (step {step.step} of {step.total_steps})",
        )
        return table


def validation_remark(event: Evaluated) -> str:
    """What a validation is worth a word for: what the training began with, or the best one so far."""
    if event.step == 0:
        return f", where {event.goes_on_from} ended" if event.goes_on_from else ", the base alone"
    return ", the best so far" if event.is_best else ""


def rows_line(rows_of_width: dict[str, int]) -> str:
    """``4 rows of 512 or 2 of 1,024 tokens``."""
    parts = []
    for width, rows in rows_of_width.items():
        shown = f"{int(width):,}" if str(width).isdecimal() else str(width)  # a journal says what it likes
        parts.append(f"{counted(rows, 'row')} of {shown}")
    return " or ".join(parts) + " tokens"


def _data_line(event: DataPrepared) -> str:
    found = event.summary
    languages = ", ".join(
        name for name, _ in sorted(found["languages"].items(), key=lambda item: -item[1]["bytes"])[:3]
    )
    return (
        f"Data: {counted(found['chunks_kept'], 'chunk')} of {counted(found['files_kept'], 'file')} ({languages}), "
        f"{counted(found['train_loss_tokens'], 'token')} to learn from{edits_told(found)}, {found['padding_fraction']:.1%} padding"
    )


def _step_line(event: StepCompleted) -> str:
    left = (
        f", {duration(event.eta_seconds)} of training left"
        if event.eta_seconds is not None and event.eta_seconds >= 1
        else ""
    )
    return (
        f"Step {event.step} of {event.total_steps}: loss {event.loss:.3f}, {event.tokens_per_second:,.0f} tokens/s, "
        f"peak memory {gigabytes(event.peak_bytes)} of {gigabytes(event.budget_bytes)}{left}"
    )
