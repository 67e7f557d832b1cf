"""A plan in the terminal: what the budget is used for, what was traded for it, what more memory would buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_gardener.engine.plan import Plan
from mlx_gardener.report.text import gigabytes

#: What `Plan.predicted_parts` are called for people.
PARTS = {
    "weights": "base weights",
    "adapter": "adapter, gradients, optimiser",
    "saved": "hidden states kept for the way back",
    "live": "activations kept instead of recomputed",
    "work": "the layers and logits at work",
    "cache": "freed buffers kept for reuse",
    "runtime": "Python, MLX and data",
    "check": "what the check at load takes beyond all this",
}
#: Their colours in pictures, by the names of `report.svg.COLOURS`.
PART_COLOURS = {
    "weights": "blue",
    "adapter": "green",
    "saved": "yellow",
    "live": "teal",
    "work": "purple",
    "cache": "grey",
    "runtime": "orange",
    "check": "red",
}
#: The terminal's colours of the same parts, in the order of `PredictedParts`.
_STYLES = ("cyan", "green", "yellow", "bright_cyan", "magenta", "bright_black", "blue", "red")


def show_plan(
    console: Console,
    plan: Plan,
    others: Sequence[tuple[int, Plan | None]] = (),
    *,
    longest_row: int = 0,
    most_tokens: int = 0,
    has_speed: bool = True,
) -> None:
    """Print a plan.

    Args:
        others: (budget in bytes, its plan, or None where it trains nothing) to compare with, the least first; of those that
            are the same the least is shown.
        longest_row: tokens of the longest row that trains within the budget; 0 where that was not looked for.
        most_tokens: that the base reads, whatever the budget.
        has_speed: whether the speed is said here; `time_text` says it, too.
    """
    table = Table("memory", "predicted", "share", box=None, header_style="bold", pad_edge=False)
    bar = Text()
    for (name, size), style in zip(asdict(plan.predicted_parts).items(), _STYLES, strict=True):
        if name == "check" and not size:
            continue
        share = size / plan.budget_bytes
        table.add_row(Text(PARTS[name], style=style), gigabytes(size), f"{share:.1%}")
        bar.append("█" * round(60 * share), style=style)
    free = plan.budget_bytes - plan.predicted_peak_bytes
    table.add_row("left of the budget", gigabytes(free), f"{free / plan.budget_bytes:.1%}")
    bar.append("░" * max(0, 60 - len(bar)))
    console.print()
    console.print(table)
    console.print(bar)
    speed = f", about {plan.predicted_tokens_per_second:,.0f} tokens/s ({plan.speed_from or 'measured'})"
    console.print(
        f"\nAt a time: {rows_text(plan)}. Predicted peak {gigabytes(plan.predicted_peak_bytes)} of "
        f"{gigabytes(plan.budget_bytes)}{speed * has_speed}."
    )
    for note in plan.notes:
        console.print(f"  {note}", highlight=False)
    if longest_row:
        limit = ", which is all that the base reads" * (longest_row == most_tokens)
        console.print(
            f"  the longest sequence that trains under this budget: {longest_row:,} tokens{limit}",
            highlight=False,
        )
    rows: dict[tuple[str, ...], int] = {}
    for budget, other in others:
        cells: tuple[str, ...] = ("does not train", "", "", "") if other is None else plan_cells(other)
        if cells != plan_cells(plan):
            rows.setdefault(cells, budget)
    if others and not rows:
        console.print("\nOther budgets near this one would change nothing.")
    if rows:
        compared = Table(
            "budget", "base", "recomputed", "at a time", "tokens/s", box=None, header_style="bold"
        )
        for cells, budget in rows.items():
            compared.add_row(gigabytes(budget), *cells)
        console.print("\nWith other budgets:")
        console.print(compared)


def rows_text(plan: Plan) -> str:
    """``8 rows of 512 tokens, 4 rows of 1024 tokens``."""
    return ", ".join(
        f"{rows} row{'s' if rows > 1 else ''} of {width} tokens" for width, rows in plan.rows_of_width.items()
    )


def recomputed_text(plan: Plan) -> str:
    """``12 of 28``, ``12 of 28, 9 in part``: layers that are recomputed, and those of them that keep their products."""
    recomputed = f"{plan.layers - plan.kept_layers} of {plan.layers}"
    return f"{recomputed}, {plan.kept_products} in part" if plan.kept_products else recomputed


def plan_cells(plan: Plan) -> tuple[str, str, str, str]:
    """A plan in four words: where the base is, layers recomputed, rows at a time, tokens per second."""
    layers = plan.layers
    base = {"dense": "as floats", "stored": "as stored"}[plan.base_weights]
    if plan.streamed_layers:
        base += f", {plan.streamed_layers} of {layers} layers from disk"
    if plan.vocabulary_on_disk:
        base += ", embedding and head too"
    width = max(plan.rows_of_width)
    return (
        base,
        recomputed_text(plan),
        f"{plan.rows_of_width[width]} x {width}",
        f"{plan.predicted_tokens_per_second:,.0f}",
    )
