"""A plan in the terminal: what the budget is used for, as a table and a bar."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_gardener.engine.planner import Plan
from mlx_gardener.report.text import gigabytes

_PARTS = {
    "weights": "base weights",
    "adapter": "adapter, gradients, optimiser",
    "activations": "activations of one micro-batch",
    "tail": "logits of one micro-batch",
    "runtime": "Python, MLX and data",
}
_STYLES = ("cyan", "green", "yellow", "magenta", "blue")


def show_plan(console: Console, plan: Plan) -> None:
    """Print a plan."""
    table = Table("memory", "predicted", "share", box=None, header_style="bold", pad_edge=False)
    bar = Text()
    for (name, size), style in zip(plan.predicted_parts.items(), _STYLES, strict=True):
        share = size / plan.budget_bytes
        table.add_row(Text(_PARTS[name], style=style), gigabytes(size), f"{share:.1%}")
        bar.append("█" * round(60 * share), style=style)
    free = plan.budget_bytes - plan.predicted_peak_bytes
    table.add_row("left of the budget", gigabytes(free), f"{free / plan.budget_bytes:.1%}")
    bar.append("░" * max(0, 60 - len(bar)))
    console.print()
    console.print(table)
    console.print(bar)
    rows = ", ".join(f"{rows} rows of {width} tokens" for width, rows in plan.rows_of_width.items())
    console.print(
        f"\nAt a time: {rows}. Predicted peak {gigabytes(plan.predicted_peak_bytes)} of {gigabytes(plan.budget_bytes)}."
    )
    for note in plan.notes:
        console.print(f"  {note}")
