"""Ten projects in the queue, and a machine that reboots three times in between: is each trained exactly once?

    python benchmarks/reboots.py [--projects 10] [--reboots 3]

A reboot is SIGKILL for every process of the home at once; after it `queue run` is started again, as at login. A random
model of three layers learns a small repository, with a checkpoint after every update. Writes ``results/reboots.json``.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click

import mlx_gardener  # noqa: F401  # preloads the BLAS

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import bar, describe, save

from mlx_gardener import TrainingPipeline
from tests.support.models import write_tiny_model, write_tiny_tokenizer
from tests.support.repositories import write_repository
from tests.support.trainings import tiny_settings
from tests.survival.reboots import adapters_of, kill_everything, work_through

#: Seconds after which something hangs.
MOST_SECONDS = 1800.0


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + MOST_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise click.ClickException(f"never happened: {what}")
        time.sleep(0.02)


@click.command()
@click.option("--projects", default=10, show_default=True, type=click.IntRange(min=4))
@click.option("--reboots", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=4, show_default=True)
def main(projects: int, reboots: int, seed: int) -> None:
    """Queue, reboot, and write the result."""
    machine, began = describe(), time.monotonic()
    names = [f"project-{number}" for number in range(projects)]
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        os.environ["MLX_GARDENER_HOME"] = str(scratch / "home")
        repository = write_repository(scratch / "repository")
        (scratch / "tokenizer").mkdir()
        tokenizer = write_tiny_tokenizer(scratch / "tokenizer", repository)
        model = write_tiny_model(scratch / "model", tokenizer)
        settings = {"checkpoint_interval_seconds": 1e-6, "evaluation.tasks": 0}
        pipeline = TrainingPipeline(tiny_settings(model, **settings))
        registry = pipeline.registry
        try:
            with mock.patch("mlx_gardener.runs.manager.ensure_runner", lambda registry: False):
                for name in names:  # nobody works on them before all are there
                    registry.register_project(name, repository)
                    pipeline.enqueue_training(name)
            met = work_through(registry, reboots=reboots, choose=random.Random(seed), until=until, tell=print)
            statuses = [registry.get_project(name).status.value for name in names]
            versions = adapters_of(registry, names)
            problems = [problem.message for problem in registry.check()]
        finally:
            kill_everything(registry.home)
    once = sum(found == ["v1"] for found in versions.values())
    done = statuses.count("completed")
    bars = [
        bar(
            f"{projects} queued projects, {reboots} reboots",
            "each trained exactly once",
            "all completed with one adapter, the registry clean",
            f"{done} completed, {once} with one adapter, {len(problems)} problems, {time.monotonic() - began:.0f} s",
            done == once == projects and not problems,
        )
    ]
    print(bars)
    result = {
        "machine": machine,
        "bars": bars,
        "seed": seed,
        "reboots": met,
        "adapters": versions,
        "problems": problems,
    }
    print("wrote", save("reboots", result))


if __name__ == "__main__":
    main()
