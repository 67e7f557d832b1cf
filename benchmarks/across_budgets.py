"""The budget changes the speed, never the result: adapters trained under different budgets, and from disk, compared.

    python benchmarks/across_budgets.py

The embedded model learns the click package for 24 updates through the same loop as `mlx-gardener train`, under the
plans that the planner makes for each budget, with dropout on. Compared are the losses, and the changes of the weights that
the adapters make after the last update, B A, by Frobenius norm over all modules. The optimiser is SGD, whose steps are as
near to each other as the gradients. AdamW divides a gradient by its own size, so an entry whose gradient is nothing but
rounding takes full steps in any direction: how far two trainings drift apart by that is measured beside it.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click

STEPS, TOKENS_PER_UPDATE = 24, 2048
#: Budget in GB, and pins.
CASES: dict[str, tuple[float, dict[str, Any]]] = {
    "4 GB": (4.0, {}),
    "1 GB": (1.0, {}),
    "0.5 GB": (0.5, {}),
    "0.4 GB": (0.4, {}),
    "1 GB, layers from disk": (1.0, {"engine.streamed_layers": 64}),
    "1 GB, all from disk": (1.0, {"engine.streamed_layers": 64, "engine.vocabulary_on_disk": True}),
}
#: The two that differ most, by the default optimiser: what its division makes of roundings.
ADAM = {f"{name}, AdamW": CASES[name] for name in ("4 GB", "1 GB, all from disk")}


def side(
    name: str, steps: int = STEPS, source: str | None = None, tokens: int = TOKENS_PER_UPDATE
) -> dict[str, Any]:
    """Train on ``source`` (click, unless given) under one budget; the adapter is written to a file."""
    import mlx_gardener  # noqa: F401  # isort: skip
    import mlx.core as mx

    from mlx_gardener.config import load_config
    from mlx_gardener.dataset import TrainingDataPreparator
    from mlx_gardener.engine import make_plan, measured_backend, model_facts, prepare_engine
    from mlx_gardener.model import load_base, seedling_path
    from mlx_gardener.model.lora import load_arrays
    from mlx_gardener.platform.footprint import process_peak_footprint_bytes
    from mlx_gardener.training import train
    from mlx_gardener.training.checkpoint import list_checkpoints

    budget, pins = (CASES | ADAM)[name]
    config = load_config(
        environment={},
        overrides={
            "memory_limit_gb": budget,
            "data.sequence_lengths": [256, 512],
            "optimizer.tokens_per_update": tokens,
            "optimizer.max_steps": steps,
            "evaluation.per_epoch": 1,
            "lora.dropout": 0.1,
            **({} if name in ADAM else {"optimizer.name": "sgd", "optimizer.learning_rate": 0.02}),
            **pins,
        },
    )
    facts, backend = model_facts(seedling_path()), measured_backend()
    plan = make_plan(facts, config, config.memory_limit_bytes, backend)
    mx.set_cache_limit(plan.cache_bytes)
    base = load_base(
        "seedling",
        base_weights=plan.base_weights,
        unread_layers=plan.streamed_layers,
        unread_vocabulary=plan.vocabulary_on_disk,
    )
    with tempfile.TemporaryDirectory() as scratch:
        data = TrainingDataPreparator(
            config, tokenizer=base.tokenizer, cache_dir=Path(scratch) / "cache"
        ).prepare(Path(source or click.__path__[0]))
        engine = prepare_engine(base, plan, config, facts=facts, backend=backend, warn=print)
        started = time.perf_counter()
        outcome = train(
            base,
            data,
            config,
            engine,
            publish=lambda event: None,
            interrupt=lambda: None,
            checkpoint_dir=Path(scratch) / "checkpoints",
            resume=False,
        )
        last = list_checkpoints(Path(scratch) / "checkpoints")[-1]
        weights = load_arrays(last / "weights.safetensors")
    path = Path(tempfile.gettempdir()) / f"across-budgets-{[*CASES, *ADAM].index(name)}.safetensors"
    mx.save_safetensors(str(path), weights)
    rows = ", ".join(f"{rows} x {width}" for width, rows in engine.plan.rows_of_width.items())
    return {
        "adapter": str(path),
        "seconds": time.perf_counter() - started,
        "peak_footprint_mib": process_peak_footprint_bytes() / 2**20,
        "final_loss": outcome.state.train_losses[-1],
        "best_step": outcome.state.best_step,
        "plan": f"{rows}, {plan.kept_layers} live, {plan.streamed_layers} streamed",
    }


def difference_of_changes(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """How far two adapters' changes of the weights, B A of every module, lie apart: a share of the expected ones' norm."""
    import mlx.core as mx

    def changes(adapter: dict[str, Any]) -> dict[str, Any]:
        modules = sorted(name.removesuffix(".lora_a") for name in adapter if name.endswith(".lora_a"))
        return {name: adapter[f"{name}.lora_a"] @ adapter[f"{name}.lora_b"] for name in modules}

    ours, theirs = changes(found), changes(expected)
    apart = sum(float(mx.square(ours[name] - theirs[name]).sum().item()) for name in theirs)
    whole = sum(float(mx.square(value).sum().item()) for value in theirs.values())
    return (apart / whole) ** 0.5


@click.command()
@click.option("--side", "only", type=click.Choice([*CASES, *ADAM]), hidden=True)
@click.option("--steps", default=STEPS, hidden=True)
@click.option("--source", hidden=True)
@click.option("--tokens", default=TOKENS_PER_UPDATE, hidden=True)
def main(only: str | None, steps: int, source: str | None, tokens: int) -> None:
    """Train under all budgets and write the result."""
    if only:
        print(json.dumps(side(only, steps, source, tokens)))
        return
    import mlx_gardener  # noqa: F401  # isort: skip
    from machine import bar, describe, save
    from sides import one_side

    from mlx_gardener.model.lora import load_arrays

    machine, found = describe(), {}
    for name in (*CASES, *ADAM):
        found[name] = one_side(__file__, name)
        print(name, found[name], flush=True)
    adapters = {name: load_arrays(Path(one.pop("adapter"))) for name, one in found.items()}
    for cases in (CASES, ADAM):
        first = next(iter(cases))
        for name in cases:
            found[name]["difference"] = difference_of_changes(adapters[name], adapters[first])
            found[name]["loss_difference"] = abs(found[name]["final_loss"] - found[first]["final_loss"])
    worst, drift = (max(found[name]["difference"] for name in cases) for cases in (CASES, ADAM))
    losses, adam = (max(found[name]["loss_difference"] for name in cases) for cases in (CASES, ADAM))
    peaks = [found[name]["peak_footprint_mib"] for name in CASES]
    bars = [
        bar(
            f"adapters across budgets, {STEPS} updates with dropout ({', '.join(CASES)})",
            "each other",
            "equal within float tolerance (1e-3 of the change)",
            f"by SGD, changes of the weights at most {worst:.1e} apart, last losses {losses:.1e}; by AdamW, which divides "
            f"roundings by their own size, {drift:.1e} and {adam:.1e}. Peaks {min(peaks):.0f} to {max(peaks):.0f} MiB",
            worst <= 1e-3,
        )
    ]
    print(json.dumps(bars, indent=1))
    print("wrote", save("across_budgets", {"machine": machine, "bars": bars, "cases": found}))


if __name__ == "__main__":
    main()
