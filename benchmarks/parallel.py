"""Data parallel: one, two and four processes of this machine learn the same; how far apart they end, and how fast.

    python benchmarks/parallel.py

The embedded model learns the click package through `TrainingPipeline`, by MLX's ring on 127.0.0.1, with dropout on, by SGD
(benchmarks/across_budgets.py says why). Compared are the changes of the weights that the adapters make, B A, by Frobenius norm
over all modules. The processes share this machine's cores, and MLX's ring keeps a core busy while it waits, so that the
speed is no measure of several machines: it is what the exchange costs where nothing can be won.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 6
RANKS = (1, 2, 4)
HERE = "127.0.0.1"


def side(ranks: int, home: Path) -> dict[str, Any]:
    """Train with so many ranks in a home of its own."""
    import click as package

    from mlx_gardener import TrainingPhase, TrainingPipeline
    from mlx_gardener.config import load_config
    from mlx_gardener.events import StepCompleted
    from mlx_gardener.model.lora import load_arrays
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.training.checkpoint import list_checkpoints

    config = load_config(
        environment={},
        overrides={
            "model": "seedling",
            "memory_limit_gb": 1.0,
            "max_training_chunks": 80,
            "data.sequence_lengths": [256],
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 0.02,
            "optimizer.tokens_per_update": 2048,
            "optimizer.max_steps": STEPS,
            "lora.dropout": 0.1,
            "evaluation.per_epoch": 1,
            "evaluation.tasks": 0,
            "parallel.hosts": [HERE] * ranks if ranks > 1 else [],
        },
    )
    pipeline = TrainingPipeline(config, registry=ProjectRegistry(home))
    pipeline.registry.register_project("click", Path(package.__file__).parent)
    pipeline.start_training("click")
    while pipeline.is_training_active("click"):
        progress = pipeline.get_training_progress("click")
        if progress is not None and progress.phase is TrainingPhase.COMPLETING:
            pipeline.cancel_training("click")  # the test of the adapter is no part of this
            break
        time.sleep(0.2)
    end = pipeline.wait_for_training_completion("click")
    steps = [event for event in pipeline.follow("click") if isinstance(event, StepCompleted)]
    record = pipeline.registry.latest_training("click")
    if record is None or len(steps) != STEPS:
        raise SystemExit(f"{ranks} ranks: {end.message}")
    weights = load_arrays(list_checkpoints(record.run_dir / "checkpoints")[-1] / "weights.safetensors")
    later = steps[1:]
    return {
        "weights": weights,
        "losses": [step.loss for step in steps],
        "tokens_per_second": sum(step.tokens for step in later) / sum(step.seconds for step in later),
    }


def main() -> None:
    """Train with all numbers of ranks and write the result."""
    import mlx_gardener  # noqa: F401  # isort: skip
    from across_budgets import difference_of_changes
    from machine import bar, describe, save

    machine, found = describe(), {}
    with tempfile.TemporaryDirectory() as scratch:
        for ranks in RANKS:
            found[ranks] = side(ranks, Path(scratch) / str(ranks))
            print(ranks, found[ranks]["losses"], found[ranks]["tokens_per_second"], flush=True)
    machine["load_after"] = [round(load, 2) for load in os.getloadavg()]
    weights = {ranks: one.pop("weights") for ranks, one in found.items()}
    alone = found[1]
    for ranks, one in found.items():
        one["difference"] = difference_of_changes(weights[ranks], weights[1])
        pairs = zip(one["losses"], alone["losses"], strict=True)
        one["loss_difference"] = max(abs(ours - theirs) for ours, theirs in pairs)
        one["speed_ratio"] = one["tokens_per_second"] / alone["tokens_per_second"]
    loads = f"{machine['load_before'][0]:.0f} and {machine['load_after'][0]:.0f}"
    worst = max(one["difference"] for one in found.values())
    speeds = ", ".join(f"{ranks}: {one['speed_ratio']:.2f}" for ranks, one in found.items())
    bars = [
        bar(
            f"adapters of 1, 2 and 4 ring processes on one machine, {STEPS} updates with dropout",
            "one process",
            "equal within float tolerance (1e-3 of the change)",
            f"changes of the weights at most {worst:.1e} apart",
            worst <= 1e-3,
        ),
        bar(
            "tokens/s of 1, 2 and 4 processes that share the cores of one machine",
            "one process",
            "none: no second machine to measure on",
            f"{speeds}; the machine's load was {loads} before and after: beside other programs, which are no part of "
            "this, more processes get a larger share of the cores",
            None,
        ),
    ]
    print(json.dumps(bars, indent=1))
    result = {"machine": machine, "bars": bars, "by_ranks": {str(ranks): one for ranks, one in found.items()}}
    print("wrote", save("parallel", result))


if __name__ == "__main__":
    main()
