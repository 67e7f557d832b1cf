"""Predicted against measured peak memory, and the budget kept, over models, budgets and widths.

    python benchmarks/memory_plan.py [--model seedling --model DIRECTORY ...]

Each cell is a process of its own that loads the model, takes two optimiser steps on random rows of the widest width
as planned, and reports the most memory it ever took. Cells whose budget is refused say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click
from machine import describe, save

CODE = """
import json, sys
import mlx_gardener
import numpy as np
import mlx.core as mx
from mlx_gardener.config import load_config
from mlx_gardener.dataset import Batch
from mlx_gardener.engine import loss_and_gradients, make_plan, model_facts
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.model import choose_model, load_base, resolve_model
from mlx_gardener.model.lora import attach_lora, lora_parameters
from mlx_gardener.platform.footprint import process_peak_footprint_bytes
from mlx_gardener.training.optimizer import make_optimizer

model, budget, width = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
config = load_config(environment={}, overrides={"memory_limit_gb": budget, "data.row_widths": [width]})
path = resolve_model(choose_model(model, 2**62))
try:
    plan = make_plan(model_facts(path), config, config.memory_limit_bytes)
except MemoryBudgetError as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()
mx.set_cache_limit(max(config.memory_limit_bytes - plan.predicted_peak_bytes, 64 * 2**20))
base = load_base(model)
attach_lora(base.model, config.lora, seed=0)
weights, optimizer = lora_parameters(base.model), make_optimizer(config.optimizer)
optimizer.init(weights)
rows = max(plan.rows_of_width[width], config.optimizer.tokens_per_update // width)
tokens = np.random.default_rng(0).integers(7, base.tokenizer.vocab_size - 1, (rows, width)).astype(np.int32)
mask = np.ones((rows, width), dtype=bool)
batch = Batch(tokens, mask, mask.astype(np.int32), int(mask.sum()), 0, mask.sum(1), ("",) * rows)
for step in range(2):
    result = loss_and_gradients(base.model, weights, batch, plan, dtype=base.dtype, seed=step)
    optimizer.learning_rate = mx.array(1e-4)
    weights = optimizer.apply_gradients(result.gradients, weights)
    mx.eval(weights, optimizer.state)
print(json.dumps({"rows": plan.rows_of_width[width], "predicted": plan.predicted_peak_bytes,
                  "measured": process_peak_footprint_bytes()}))
"""


def cell(model: str, budget: float, width: int) -> dict[str, Any]:
    """One process: the plan's prediction and the peak it measured, in bytes."""
    command = [sys.executable, "-c", CODE, model, str(budget), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.option("--model", "models", multiple=True, default=("seedling",), show_default=True)
@click.option(
    "--budget", "budgets", multiple=True, type=float, default=(0.7, 1.0, 1.5, 2.0, 4.0), show_default=True
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
                ratio = found["measured"] / found["predicted"]
                kept = "kept" if found["measured"] <= budget * 2**30 else "EXCEEDED"
                print(
                    f"{model} {budget:4g} GB {width:5} tokens: {found['rows']:3} rows, predicted "
                    f"{found['predicted'] / 2**30:.2f}, measured {found['measured'] / 2**30:.2f} GB ({ratio:.2f}), {kept}"
                )
    trained = [one for one in cells if "refused" not in one]
    summary = {
        "cells": len(cells),
        "refused": len(cells) - len(trained),
        "kept": sum(one["measured"] <= one["budget_gb"] * 2**30 for one in trained),
        "exceeded": sum(one["measured"] > one["budget_gb"] * 2**30 for one in trained),
        "measured_over_predicted": [round(one["measured"] / one["predicted"], 3) for one in trained],
    }
    print(summary)
    print("wrote", save("memory_plan", {"machine": machine, "summary": summary, "cells": cells}))


if __name__ == "__main__":
    main()
