"""An evaluation in the terminal: the details below its verdict."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from mlx_gardener.report.story import changes
from mlx_gardener.report.text import counted, safe_text


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
        console.print(
            f"Measured on {counted(work['rows'], 'row')} of unseen code, {counted(work['next_line_tasks'], 'next line')} "
            f"and {counted(work['fim_tasks'], 'span')} ({work['reason']})."
        )
