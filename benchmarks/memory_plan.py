"""Predicted against measured peak memory, and the budget kept, over models, budgets and widths.

    python benchmarks/memory_plan.py [--model seedling --model SHAPE:BITS:LAYERS ...] [--busy 0 --busy 2]

A model is ``seedling``, a directory, or a recorded shape with random weights (``qwen2.5-coder-0.5b:4:24``). Each cell is a process
of its own that loads the model, checks the cut and takes optimiser steps on random rows as planned, and reports the
most memory it ever took; another process watches it every 20 ms, and ``--busy`` lets loops work beside it. A cell whose budget
is refused is trained again with the least budget that the refusal names. What is compared is the prediction that a memory
dry run corrected (`engine.dry_run`), and beside it the formula's alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import click
from machine import bar, describe, save
from outside import Outside, busy
from quantized import SHAPES
from shapes import write_shape

MODELS = (
    "seedling",
    "qwen2.5-coder-0.5b:4:24",
    "qwen2.5-coder-1.5b:4:6",
    "starcoder2-3b:4:4",
    "gemma-3-1b-it:16:6",
    "granite-3.1-2b-instruct:8:4",
)

#: A refusal names the least budget; a cell that is still refused after so many of them counts as refused.
MOST_REFUSALS = 3


def cell(model: str, budget: float, width: int, steps: int, loops: int, *settings: str) -> dict[str, Any]:
    """One process, with busy loops beside it: the plan's prediction, and its peak in bytes by its own and outside eyes.

    ``settings`` are a training's, as ``KEY=VALUE``.
    """
    script = Path(__file__).with_name("train_cell.py")
    command = [sys.executable, str(script), model, "--budget", str(budget), "--width", str(width)]
    command += [word for setting in settings for word in ("--set", setting)]
    with busy(loops), tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(
            [*command, "--steps", str(steps)], stdout=subprocess.PIPE, stderr=told, text=True
        )
        with Outside(process.pid) as outside:
            printed = process.communicate()[0]
        if process.returncode:
            told.seek(0)
            raise RuntimeError(f"{model} {budget} GB, {width} tokens failed:\n{told.read()[-2000:]}")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    if "measured_peak_bytes" in found:
        found["measured_peak_bytes"] = max(found["measured_peak_bytes"], outside.highest)
    return found | {"busy_loops": loops}


def summary(machine: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The result: bars over all trained cells, and the cells."""
    models = len({one["model"] for one in cells})
    trained = [one for one in cells if "refused" not in one]
    ratios = [round(one["measured_peak_bytes"] / one["predicted_peak_bytes"], 3) for one in trained]
    by_formula = [round(one["measured_peak_bytes"] / one["formula_peak_bytes"], 3) for one in trained]
    kept_cells = sum(one["measured_peak_bytes"] <= one["budget_gb"] * 2**30 for one in trained)
    close = sum(0.9 <= ratio <= 1.1 for ratio in ratios)
    bars = [
        bar(
            f"budget kept, {models} models x budgets x lengths",
            "footprint <= budget",
            "100 % of cells; refused before training with the least budget that can",
            f"{kept_cells} of {len(trained)} trained cells; {len(cells) - len(trained)} refused, "
            f"{sum(one.get('least', False) for one in trained)} of them trained with the least budget named",
            kept_cells == len(trained),
        ),
        bar(
            "predicted peak, after the dry run",
            "measured peak",
            "within 10 %",
            f"{close} of {len(trained)} cells; measured / predicted {min(ratios):.2f} to {max(ratios):.2f}; by the "
            f"formula alone, before loading, {sum(0.9 <= ratio <= 1.1 for ratio in by_formula)} cells, "
            f"{min(by_formula):.2f} to {max(by_formula):.2f}",
            close == len(trained),
        ),
    ]
    return {
        "machine": machine,
        "bars": bars,
        "measured_over_predicted": ratios,
        "measured_over_formula": by_formula,
        "cells": cells,
    }


def path_of(model: str) -> str:
    """What a cell loads: a name, or the directory of a random model of this shape, written if need be."""
    shape = model.split(":")
    if len(shape) != 3:
        return model
    bits = None if shape[1] == "16" else int(shape[1])
    return str(write_shape(shape[0], SHAPES, bits=bits, layers=int(shape[2])))


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True)
@click.option("--budget", "budgets", multiple=True, type=float, default=(0.5, 1.0, 3.0), show_default=True)
@click.option("--width", "widths", multiple=True, type=int, default=(256, 1024), show_default=True)
@click.option(
    "--steps", default=2, show_default=True, help="The second keeps the best adapter beside its own."
)
@click.option(
    "--busy", "loads", multiple=True, type=int, default=(0,), show_default=True, help="Busy loops beside."
)
@click.option("--out", default="memory_plan", show_default=True, help="Name of the result file.")
def main(
    models: tuple[str, ...],
    budgets: tuple[float, ...],
    widths: tuple[int, ...],
    steps: int,
    loads: tuple[int, ...],
    out: str,
) -> None:
    """Measure every cell and write the result."""
    machine, cells = describe(), list[dict[str, Any]]()
    trained_with_least: set[tuple[str, int]] = set()
    paths = {model: path_of(model) for model in models}
    for loops, width, model, budget in product(loads, widths, models, budgets):
        found = {
            "model": model,
            "budget_gb": budget,
            "width": width,
            **cell(paths[model], budget, width, steps, loops),
        }
        cells.append(found)
        for _ in range(MOST_REFUSALS):  # by the formula, then perhaps by the dry run, which knows better
            if "refused" not in found:
                break
            print(
                f"{model} {found['budget_gb']:4g} GB {width:5} tokens: refused, {found['next_step']}",
                flush=True,
            )
            least = re.search(r"--budget ([\d.]+)", found["next_step"])
            if least is None or (model, width) in trained_with_least:
                break
            found = {"model": model, "budget_gb": float(least[1]), "width": width, "least": True}
            found |= cell(paths[model], float(least[1]), width, steps, loops)
            cells.append(found)
        if "refused" in found:
            continue
        if found.get("least"):
            trained_with_least.add((model, width))
        ratio = found["measured_peak_bytes"] / found["predicted_peak_bytes"]
        kept = "kept" if found["measured_peak_bytes"] <= found["budget_gb"] * 2**30 else "EXCEEDED"
        print(
            f"{model} {found['budget_gb']:4g} GB {width:5} tokens: {found['rows_at_once']:3} rows, predicted "
            f"{found['predicted_peak_bytes'] / 2**30:.2f}, measured {found['measured_peak_bytes'] / 2**30:.2f} GB "
            f"({ratio:.2f}), {kept}",
            flush=True,
        )
        save(out, summary(machine, cells))  # also of the cells so far, as all take long
    print(json.dumps(summary(machine, cells)["bars"], indent=1))


if __name__ == "__main__":
    main()
