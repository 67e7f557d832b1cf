"""How a result shows itself in a notebook: verdict, figures and the loss curve."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from mlx_gardener.report.svg import loss_chart

if TYPE_CHECKING:
    from mlx_gardener.api import TrainingResult


def result_html(result: TrainingResult) -> str:
    """A small HTML block for ``_repr_html_``."""
    metrics = result.metrics
    rows = "".join(
        f"<tr><td>{title}</td><td>{metrics['base_' + name]:.4f}</td><td>{metrics['adapter_' + name]:.4f}</td></tr>"
        for title, name in (
            ("bits per byte", "bits_per_byte"),
            ("next line exactly right", "next_line_exact"),
        )
        if "base_" + name in metrics
    )
    return (
        f"<h4>{escape(result.project)} {escape(result.adapter_version)}: {escape(result.evidence['verdict'])}</h4>"
        f"<p>{escape(result.evidence['reason'])}</p>"
        f"<table><tr><th>on code it never saw</th><th>base</th><th>adapter</th></tr>{rows}</table>"
        f"{loss_chart(result.training)}"
    )
