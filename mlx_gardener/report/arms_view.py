"""An evaluation in the terminal: the details below its verdict."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from mlx_gardener.report.story import changes
from mlx_gardener.report.text import counted, safe_text

#: Kinds of tasks as they are counted.
_NOUNS = {
    "next_line": "next line",
    "cross_file": "cross-file line",
    "assertion": "assertion",
    "edit": "next edit",
    "quiet": "no-edit window",
    "fim": "span",
}


def show_details(console: Console, evidence: dict[str, Any]) -> None:
    """Print what the arms' differences are and how much was done, of ``Evidence.to_json()``."""
    found = [item for item in changes(evidence) if item.metric == "bits_per_byte"]
    if found:
        console.print(
            "\nChange of bits per byte between the arms, with 95 % intervals (below zero is better):"
        )
    for item in found:
        console.print(
            safe_text(f"  {item.sides}: {item.value} ({item.interval}; {counted(item.files, 'file')})")
        )
    console.print()
    if (sweep := evidence.get("scale_sweep")) is not None:
        console.print(
            f"Strength: {sweep['chosen']:g} times that of the training, which did best on the validation part."
        )
    if work := evidence["work"]:
        asked = [
            counted(work[f"{kind}_tasks"], noun)
            for kind, noun in _NOUNS.items()
            if work.get(f"{kind}_tasks") or kind in ("next_line", "fim")
        ]
        lines = f" with {counted(work['read_lines'], 'line')} to read" if "read_lines" in work else ""
        console.print(
            f"Measured on {counted(work['rows'], 'row')} of unseen code{lines}, {', '.join(asked[:-1])} and {asked[-1]} "
            f"({work['reason']})."
        )
