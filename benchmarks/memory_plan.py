"""Predicted against measured peak memory, and the budget kept, over models, budgets and widths.

    python benchmarks/memory_plan.py [--model seedling --model DIRECTORY ...]

Each cell is a process of its own that loads the model, checks the cut and takes two optimiser steps on random rows as
planned, and reports the most memory it ever took. Cells whose budget is refused say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from machine import describe, save


def cell(model: str, budget: float, width: int) -> dict[str, Any]:
    """One process: the plan's prediction and the peak it measured, in bytes."""
    script = Path(__file__).with_name("train_cell.py")
    command = [sys.executable, str(script), model, "--budget", str(budget), "--width", str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.option("--model", "models", multiple=True, default=("seedling",), show_default=True)
@click.option(
    "--budget", "budgets", multiple=True, type=float, default=(0.3, 0.5, 0.7, 1.0, 2.0), show_default=True
)
@click.option("--width", "widths", multiple=True, type=int, default=(256, 512, 1024), show_default=True)
def main(models: tuple[str, ...], budgets: tuple[float, ...], widths: tuple[int, ...]) -> None:
    """Measure every cell and write the result."""
    machine, cells = describe(), []
    for model in models:
        for budget in budgets:
            for width in widths:
                found = {"model": model, "budget_gb": budget, "width": width, **cell(model, budget, width)}
                cells.append(found)
                if "refused" in found:
                    print(f"{model} {budget:4g} GB {width:5} tokens: refused")
                    continue
                ratio = found["measured_peak_bytes"] / found["predicted_peak_bytes"]
                kept = "kept" if found["measured_peak_bytes"] <= budget * 2**30 else "EXCEEDED"
                print(
                    f"{model} {budget:4g} GB {width:5} tokens: {found['rows_at_once']:3} rows, predicted "
                    f"{found['predicted_peak_bytes'] / 2**30:.2f}, measured {found['measured_peak_bytes'] / 2**30:.2f} GB "
                    f"({ratio:.2f}), {kept}"
                )
    trained = [one for one in cells if "refused" not in one]
    summary = {
        "cells": len(cells),
        "refused": len(cells) - len(trained),
        "kept": sum(one["measured_peak_bytes"] <= one["budget_gb"] * 2**30 for one in trained),
        "exceeded": sum(one["measured_peak_bytes"] > one["budget_gb"] * 2**30 for one in trained),
        "measured_over_predicted": [
            round(one["measured_peak_bytes"] / one["predicted_peak_bytes"], 3) for one in trained
        ],
    }
    print(summary)
    print("wrote", save("memory_plan", {"machine": machine, "summary": summary, "cells": cells}))


if __name__ == "__main__":
    main()
