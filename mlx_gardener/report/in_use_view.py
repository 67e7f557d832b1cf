"""What stayed of completions in use: tables for terminal and page.

In: `evaluate.in_use.InUse`. Out: `story.Table`s, lines of text, and the page with a section more. Cost: nothing to speak of.
"""

from __future__ import annotations

from rich.console import Console

from mlx_gardener.evaluate.in_use import MEASURES, InUse
from mlx_gardener.evaluate.offers import LOOKS
from mlx_gardener.report.model_card import environment
from mlx_gardener.report.story import Table
from mlx_gardener.report.text import counted

#: Where `page_with` puts its section and its line of the contents: before these pieces of ``templates/report.html``.
_BEFORE = '<section>\n<h2 id="words">'
_CONTENTS = "</ul></nav>"
#: What the section says before its tables.
TOLD = (
    "What stayed of the completions that were offered: whether the first line, and what share of all their lines, stood in the "
    "file 1, 10 and 60 minutes later, whoever typed them. Kept are hashes and numbers, no text, on this machine alone."
)


def survival_table(in_use: InUse) -> Table:
    """What each version and its base offered, and what stayed of it."""
    rows = []
    for item in in_use.survival:
        stayed = {one.minutes: one for one in item.stayed}
        cells = [
            f"{found.first_line:.0%} / {found.lines:.0%} ({found.offers:,})"
            if (found := stayed.get(minutes))
            else "-"
            for minutes in LOOKS
        ]
        offered = item.offered
        who = offered.version if offered.arm == "adapter" else f"{offered.version}: base"
        numbers = (f"{offered.offers:,}", f"{offered.files:,}", f"{offered.latency_ms:,.0f} ms")
        rows.append((who, *numbers, *cells))
    columns = ("version", "offered", "files", "median time", *(f"after {minutes} min" for minutes in LOOKS))
    return Table(columns, tuple(rows))


def changes_table(in_use: InUse) -> Table:
    """Adapter against base where chance chose between them."""
    rows = [
        (
            f"{change.version}, {MEASURES[change.measure]} after {change.minutes} min",
            f"{change.base:.1%} of {change.base_offers:,}",
            f"{change.adapter:.1%} of {change.adapter_offers:,}",
            f"{100 * change.change:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})",
            str(change.files),
        )
        for change in in_use.changes
    ]
    columns = ("drawn by chance", "base", "adapter", "adapter against base, points (95 %)", "files of both")
    return Table(columns, tuple(rows))


def show_in_use(console: Console, in_use: InUse) -> None:
    """Print both tables, where there is anything."""
    from rich.table import Table as Shown

    if not in_use.survival:
        return
    offers = sum(item.offered.offers for item in in_use.survival)
    console.print(
        f"\nIn use: {counted(offers, 'completion')} offered. First line stayed / share of lines (offers looked "
        "at; - where that is still to come):"
    )
    for table in (survival_table(in_use), changes_table(in_use)):
        if not table.rows:
            continue
        shown = Shown(box=None, pad_edge=False)
        for at, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if at == 0 else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


def page_with(page: str, in_use: InUse) -> str:
    """The page of a report with a section on use."""
    section = (
        environment()
        .get_template("in_use.html")
        .render(told=TOLD, survival_table=survival_table(in_use), in_use_changes=changes_table(in_use))
    )
    before = _BEFORE if _BEFORE in page else "</main>"
    page = page.replace(_CONTENTS, f'<li><a href="#in-use">In use</a></li>\n{_CONTENTS}', 1)
    return page.replace(before, f"{section}\n{before}", 1)
