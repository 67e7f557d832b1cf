"""What a step costs without the freed buffers that a plan keeps for reuse: both ways of the same plan, in turn.

    python benchmarks/kept_buffers.py [--model DIRECTORY or SHAPE:BITS:LAYERS] [--budget 4 --budget 2] [--width 512] [--rounds 3]

Every base is planned, loaded and tried as a training does. Then steps on the same rows take turns, with the buffers kept and given
back at once; before each the other way's are given back, and one step is not counted. Beside the clock stands the processor's time,
which says more on a busy machine, and the system's share of it, as clearing fresh memory is the system's work.
Cost: a few steps a cell, minutes.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from forward_only import highest_footprint
from machine import bar, describe, save, spread
from memory_plan import path_of
from planned import load_planned
from sides import random_batch

WAYS = {"kept": True, "given back": False}


def one_cell(model: str, budget: float, width: int, rounds: int) -> dict[str, Any]:
    """Both ways on one base within one budget; seconds and page faults per token, bytes at most."""
    from mlx_gardener.engine.predict import CACHE_SHARE

    _, _, engine, weights, vocab = load_planned(Path(path_of(model)), width, memory_limit_gb=budget)
    planned = engine.plan
    rows = planned.rows_of_width[width]
    batch = random_batch(rows, width, vocab)
    few = int(CACHE_SHARE * planned.predicted_parts.work)  # as a plan has that has no room for more
    without = replace(planned, keeps_buffers=False, cache_bytes=few)
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, keeps in WAYS.items():
            engine.plan = planned if keeps else without
            engine.plan.set_limits()
            engine.loss_and_gradients(weights, batch, seed=0)
            with highest_footprint() as highest:
                before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
                engine.loss_and_gradients(weights, batch, seed=0)
                clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
            user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
            tokens = rows * width
            seen[way].append(
                {
                    "clock_ms_a_token": 1000 * clock / tokens,
                    "processor_ms_a_token": 1000 * (user + system) / tokens,
                    "system_ms_a_token": 1000 * system / tokens,
                    "page_faults_a_token": (after.ru_minflt - before.ru_minflt) / tokens,
                    "peak_mb": highest() / 1e6,
                }
            )
    sides = {
        way: {name: spread([one[name] for one in steps]) for name in steps[0]} for way, steps in seen.items()
    }
    ratio = {
        name: round(sides["given back"][name]["median"] / sides["kept"][name]["median"], 3)
        for name in ("clock_ms_a_token", "processor_ms_a_token", "peak_mb")
    }
    shown = {"rows": rows, "kept_layers": planned.kept_layers, "kept_products": planned.kept_products}
    shown |= {"keeps_buffers": planned.keeps_buffers, "foretold_peak_mb": planned.predicted_peak_bytes / 1e6}
    return {
        "model": Path(model).name,
        "budget_gb": budget,
        "width": width,
        "plan": shown,
        "sides": sides,
        "ratio": ratio,
    }


@click.command()
@click.option("--model", "models", multiple=True, default=("smollm2-135m:16:30",), show_default=True)
@click.option("--budget", "budgets", multiple=True, type=float, default=(4.0, 2.0), show_default=True)
@click.option("--width", "widths", multiple=True, type=int, default=(512,), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", default="kept_buffers", show_default=True, help="Name of the result file.")
def main(
    models: tuple[str, ...], budgets: tuple[float, ...], widths: tuple[int, ...], rounds: int, out: str
) -> None:
    """Measure every cell and write the result."""
    machine, cells = describe(), list[dict[str, Any]]()
    for model in models:
        for budget in budgets:
            for width in widths:
                cells.append(one_cell(model, budget, width, rounds))
                print(json.dumps(cells[-1]["ratio"]), flush=True)
    times = [cell["ratio"]["clock_ms_a_token"] for cell in cells]
    work = [cell["ratio"]["processor_ms_a_token"] for cell in cells]
    result = {
        "machine": machine,
        "bars": [
            bar(
                "a step without kept buffers, on the clock",
                "the same step with them",
                "longer",
                f"{min(times):.2f}x to {max(times):.2f}x; of processor time {min(work):.2f}x to {max(work):.2f}x",
                min(times) > 1,
            )
        ],
        "cells": cells,
    }
    save(out, result)


if __name__ == "__main__":
    main()
