"""Base models in the terminal: which one was chosen and what was passed over, and all that are on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlx_gardener.platform.sizes import GIB
from mlx_gardener.report.text import pace, safe_text

if TYPE_CHECKING:
    from mlx_gardener.engine.bases import Base
    from mlx_gardener.model import ModelChoice

_YES_NO = {True: "yes", False: "no", None: "?"}


def show_choice(console: Console, choice: ModelChoice) -> None:
    """Print which base was chosen and why, and what was passed over; at most four lines, which may wrap."""
    for line in choice.lines:
        console.print(Text(safe_text(line)), highlight=False)


def show_bases(console: Console, bases: Sequence[Base], budget_bytes: int) -> None:
    """Print a table of those that can be trained on, and below it why the others cannot."""
    usable = [base for base in bases if base.why_not is None]
    titles = (
        "model",
        "in",
        "weights",
        "as",
        "licence",
        "FIM",
        f"fits {budget_bytes / GIB:g} GB",
        "1,024 tokens",
    )
    rows = [
        [
            safe_text(text)
            for text in (
                base.name,
                base.store,
                count_text(base.parameters),
                base.quantisation or "?",
                base.licence or "?",
                _YES_NO[base.has_fim],
                fit_text(base),
                "" if base.update_seconds is None else pace(base.update_seconds),
            )
        ]
        for base in usable
    ]
    if rows:
        _show_rows(console, titles, rows)
    others = [base for base in bases if base.why_not is not None]
    if others:
        console.print(("\n" if usable else "") + "Not to be trained on:", style="bold")
        for base in others:
            console.print(Text(safe_text(f"{base.name}: {base.why_not}")), highlight=False, soft_wrap=True)


def _show_rows(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; where that is too wide, a line with the name, whole, as it is to be typed, and what is told of it below."""
    columns = [max(map(cell_len, column)) for column in zip(titles, *rows, strict=True)]
    if sum(columns) + 2 * (len(columns) - 1) <= console.width:
        table = Table(*titles, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    for name, store, *told in rows:
        console.print(Text(name, style="bold"), soft_wrap=True)
        more = ", ".join(f"{title} {text}" for title, text in zip(titles[2:], told, strict=True) if text)
        console.print(Padding(Text(f"in {store}, {more}"), (0, 0, 0, 2)))


def count_text(count: int | None) -> str:
    """A number of weights as people say it: ``135M``, ``1.5B``."""
    if count is None:
        return "?"
    if count >= 995e6:
        return f"{count / 1e9:.2g}B" if count < 99.5e9 else f"{count / 1e9:,.0f}B"
    return f"{count / 1e6:.3g}M"


def fit_text(base: Base) -> str:
    """``yes, 3.4 GB`` or ``no, needs 5.12``; of a GGUF file as it will be when it is read."""
    if base.fits:
        return f"yes, {(base.peak_bytes or 0) / GIB:.1f}"
    return f"no, needs {(base.least_budget_bytes or 0) / GIB:.2f}"
