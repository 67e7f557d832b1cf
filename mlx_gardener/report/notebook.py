"""A run in a notebook: a display that is updated while it goes on, and how its result shows itself afterwards.

Both are plain HTML that follows a light or dark notebook; no widgets and no scripts, so that they are still there when
the notebook is opened elsewhere. IPython is only touched where a kernel is running. Cost: an update of two kilobytes, at
most twice a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from markupsafe import Markup, escape

from mlx_gardener.errors import AdapterError
from mlx_gardener.events import (
    Event,
    ProgressChanged,
    StepCompleted,
    TrainingEnded,
    TrainingPhase,
    WarningRaised,
)
from mlx_gardener.report.html import data_parts, evidence_parts, run_parts, styles
from mlx_gardener.report.live import PHASES, RunSoFar
from mlx_gardener.report.model_card import environment
from mlx_gardener.report.recipe import About
from mlx_gardener.report.svg import colour, thinned
from mlx_gardener.report.text import duration, gigabytes, safe_text

_UPDATE_SECONDS = 0.5


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, which shows HTML; never imports IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class Shown(Protocol):
    """What `result_html` shows of a training: its adapter, and how that was made (`mlx_gardener.api.TrainingResult`)."""

    @property
    def project(self) -> str: ...
    @property
    def adapter_version(self) -> str: ...
    @property
    def directory(self) -> Path: ...
    @property
    def evidence(self) -> dict[str, Any]: ...
    @property
    def training(self) -> dict[str, Any]: ...
    @property
    def events(self) -> Sequence[Event]: ...


def result_html(result: Shown) -> str:
    """A block of HTML for ``_repr_html_``; plan and data are read from the adapter's manifest, where it still is."""
    from mlx_gardener.adapter.manifest import read_manifest

    try:
        manifest: dict[str, Any] = read_manifest(result.directory)
    except AdapterError:
        manifest = {}  # removed meanwhile: what the result itself holds can be shown all the same
    facts = {
        "project": result.project,
        "version": result.adapter_version,
        "evidence": result.evidence,
        "training": result.training,
        "plan": manifest.get("plan") or {},
        "data": manifest.get("data") or {},
    }
    about = About.of(manifest, result.project)
    parts = evidence_parts(result.evidence, about=about, training=result.training) | run_parts(
        facts, result.events
    )
    if facts["data"]:
        parts |= data_parts(facts)
    return environment().get_template("notebook.html").render(facts, **parts, **styles(".mlx-gardener"))


class NotebookView:
    """An event subscriber that draws into one output of a notebook's cell; use as a context manager, in a kernel.

    Args:
        project: shown in the title.
    """

    def __init__(self, *, project: str) -> None:
        self.project = safe_text(project)
        self._run = RunSoFar()
        self._warnings: list[str] = []
        self._handle: Any = None
        self._drawn_at = 0.0

    def __enter__(self) -> NotebookView:
        from IPython.display import HTML, display

        self._handle = display(HTML(self.render()), display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()  # the last picture stays

    def __call__(self, event: Event) -> None:
        """Take in an event, and draw what is new if the last drawing is a while ago."""
        self._run.take(event)
        if isinstance(event, WarningRaised):
            self._warnings.append(safe_text(event.message))
        elif isinstance(event, TrainingEnded):
            percent = 100.0 if event.phase is TrainingPhase.COMPLETED else self._run.progress.progress_percent
            self._run.progress = ProgressChanged(event.phase, percent, event.message)
        if time.monotonic() - self._drawn_at >= _UPDATE_SECONDS:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML

        self._drawn_at = time.monotonic()
        self._handle.update(HTML(self.render()))

    def render(self) -> str:
        """The picture as it stands now, as HTML."""
        progress = self._run.progress
        phase = PHASES.get(progress.phase, progress.phase.value)
        percent, left = progress.progress_percent, self._run.part_left_text(time.time())
        lines = [
            f"<b>mlx-gardener: {escape(self.project)}</b> {phase}, {percent:.0f} %",
            _bar(percent / 100, "blue", f"{percent:.0f} % of the run"),
            escape(safe_text(progress.message + left)),
        ]
        if self._run.step is not None:
            lines += self._figures(self._run.step)
        lines += [f"Warning: {escape(warning)}" for warning in self._warnings[-3:]]
        body = "".join(f"<div>{one}</div>" for one in lines)
        return f'<div class="mlx-gardener-live" style="max-width:44rem;line-height:1.6">{body}</div>'

    def _figures(self, step: StepCompleted) -> list[str]:
        used = step.peak_bytes / max(1, step.budget_bytes)
        memory = f"{gigabytes(step.peak_bytes)} of {gigabytes(step.budget_bytes)}"
        left_seconds = self._run.training_left(time.time())
        is_told = left_seconds is not None and left_seconds >= 1 and not self._run.progress.phase.is_final
        left = f"; {duration(left_seconds)} of training left" if is_told else ""
        lines = [
            f"loss {step.loss:.3f} nats/token {_sparkline(self._run.losses)}",
            f"peak memory {memory} {_bar(used, 'red' if used > 1 else 'green', memory)}",
            f"update {step.step} of {step.total_steps}, {step.tokens_per_second:,.0f} tokens/s{left}",
        ]
        if self._run.evaluation is not None:
            lines.insert(1, f"validation {self._run.evaluation.bits_per_byte:.4f} bits per byte")
        return lines


def _bar(share: float, shade: str, title: str) -> Markup:
    """A share of a whole as a bar."""
    width = 200 * min(1.0, max(0.0, share))
    return Markup(
        '<svg viewBox="0 0 200 10" width="200" height="10" role="img" style="vertical-align:middle">'
        f"<title>{escape(title)}</title>"
        f'<rect width="{width:.1f}" height="10" style="fill:{colour(shade)}"/>'
        '<rect x=".5" y=".5" width="199" height="9" fill="none" stroke="currentColor" opacity=".5"/></svg>'
    )


def _sparkline(losses: Sequence[float]) -> Markup:
    """Losses as a small line, the latest to the right."""
    points = thinned(list(enumerate(losses)))
    if len(points) < 2:
        return Markup("")
    low, high = min(y for _, y in points), max(y for _, y in points)
    last = points[-1][0] or 1
    path = " ".join(
        f"{200 * x / last:.1f},{22 - 20 * (y - low) / ((high - low) or 1):.1f}" for x, y in points
    )
    title = f"loss from {losses[0]:.3f} to {losses[-1]:.3f}"
    return Markup(
        '<svg viewBox="0 0 200 24" width="200" height="24" role="img" style="vertical-align:middle">'
        f'<title>{title}</title><polyline points="{path}" fill="none" stroke-width="1.5" '
        f'style="stroke:{colour("green")}"/></svg>'
    )
