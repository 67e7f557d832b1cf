"""How many tokens should an update have? The same tokens in few large updates or many small ones, on held-out files.

    python -m benchmarks.update_size [--repository flask --seed 0 ...]

The embedded model on real repositories it never saw (`benchmarks/evidence.py`), the same number of tokens and the same
learning rate each time; what is compared is bits per byte on the files that were held out. About two minutes a cell on
two cores. Nothing here depends on time.
"""

from __future__ import annotations

import json
import os
from itertools import product
from statistics import median
from typing import Any

import click

import mlx_gardener  # noqa: F401  first: the fast BLAS must be opened before mlx is imported
from benchmarks.evidence import SETTINGS, WORK, fetch
from benchmarks.machine import describe, save

TOKENS = 128 * 1024


def cell(repository: str, tokens_per_update: int, seed: int) -> dict[str, Any]:
    """One training and its test: bits per byte of base and adapter, and the change with its interval."""
    from mlx_gardener import train
    from mlx_gardener.config import load_config
    from mlx_gardener.registry import ProjectRegistry

    overrides = {
        **SETTINGS,
        "seed": seed,
        "optimizer.tokens_per_update": tokens_per_update,
        "optimizer.max_steps": TOKENS // tokens_per_update,
        "continue_from": "never",
        "evaluation.arms": ["base", "adapter"],
        "evaluation.tasks": 0,
        "evaluation.time_share": 0.16,  # 40 rows, whatever the size of updates
    }
    name = f"{repository}-{tokens_per_update}-{seed}"
    if not any(project.name == name for project in ProjectRegistry().list_projects()):
        train(fetch(repository)[0], project=name, config=load_config(environment={}, overrides=overrides))
    record = ProjectRegistry().list_adapters(name)[-1]
    manifest = json.loads((record.directory / "manifest.json").read_text(encoding="utf-8"))
    change = next(
        found for found in manifest["evidence"]["comparisons"] if found["metric"] == "bits_per_byte"
    )
    return {
        "repository": repository,
        "tokens_per_update": tokens_per_update,
        "seed": seed,
        "updates": manifest["training"]["steps"],
        "tokens": manifest["training"]["tokens_seen"],
        "change": change["change"],
        "low": change["low"],
        "high": change["high"],
        "files": change["files"],
    }


@click.command()
@click.option("--repository", "repositories", multiple=True, default=("click", "flask"), show_default=True)
@click.option(
    "--tokens", "sizes", multiple=True, type=int, default=(1024, 2048, 4096, 8192), show_default=True
)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), show_default=True)
def main(repositories: tuple[str, ...], sizes: tuple[int, ...], seeds: tuple[int, ...]) -> None:
    """Train and test every cell and write the result."""
    os.environ["MLX_GARDENER_HOME"] = str(WORK.with_name("update_size"))
    machine, cells = describe(), list[dict[str, Any]]()
    for repository, seed, size in product(repositories, seeds, sizes):
        cells.append(cell(repository, size, seed))
        print(f"{repository} {size:5} tokens an update, seed {seed}: {cells[-1]['change']:+.1%}", flush=True)
        medians = {
            of: round(median(one["change"] for one in cells if one["tokens_per_update"] == of), 4)
            for of in dict.fromkeys(one["tokens_per_update"] for one in cells)
        }
        save("update_size", {"machine": machine, "bars": [], "median_change": medians, "cells": cells})


if __name__ == "__main__":
    main()
