"""report.html: one self-contained page about a run, with inline SVG and no scripts; light and dark, phone and desk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from mlx_gardener.events import Event, MemoryMeasured, StepCompleted
from mlx_gardener.report.model_card import environment
from mlx_gardener.report.svg import line_chart, loss_chart

GIB = 1024**3


def render_report_html(facts: dict[str, Any], *, events: Sequence[Event]) -> str:
    """The page.

    Args:
        facts: as for the model card, with the evidence's source texts.
        events: of the run; memory over time is drawn from them.
    """
    return (
        environment()
        .get_template("report.html")
        .render(
            facts, loss_svg=Markup(loss_chart(facts["training"])), memory_svg=Markup(memory_chart(events))
        )
    )


def memory_chart(events: Sequence[Event]) -> str:
    """Process footprint against the budget, in GB over minutes; "" for a run without steps."""
    measured = [event for event in events if isinstance(event, MemoryMeasured)]
    if not measured:
        return ""
    start = next((event for event in events if isinstance(event, StepCompleted)), measured[0]).timestamp
    used = [((event.timestamp - start) / 60, event.footprint_bytes / GIB) for event in measured]
    budget = [(minutes, measured[0].budget_bytes / GIB) for minutes in (used[0][0], used[-1][0])]
    series = [("memory of the process", "#0a7d55", used), ("budget", "#b3261e", budget)]
    return line_chart(series, x_label="minutes", y_label="GB", zero=True)
