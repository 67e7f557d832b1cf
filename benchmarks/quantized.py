"""A 4-bit base on a CPU: our step against `mlx_lm.lora`'s.

    python benchmarks/quantized.py [--rounds 2]

The 0.5B shape at 4 bits in groups of 64, 8 layers, random weights, 2 x 128 tokens, every token a target. mlx-lm
multiplies with quantised weights: on a CPU at about 2 GFLOP/s in float32, which it is given here, and at 0.25 in the
bfloat16 it would take by itself. Ours makes floats of them, once at load ("dense") or block by block in every step
("stored", for when floats do not fit). An iteration of mlx-lm's trainer against an update of ours, the second of two.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click

SIDES = ("mlx_lm", "ours dense", "ours stored")
ROWS, WIDTH = 2, 128
SHAPES = Path(tempfile.gettempdir()) / "mlx-gardener-shapes"


def side(name: str) -> dict[str, Any]:
    """One side in this process: an iteration of mlx-lm's, or two updates of ours, of which the second counts."""
    import mlx_gardener  # noqa: F401  # isort: skip
    import mlx.core as mx
    import mlx.optimizers as optimizers
    from mlx_lm.utils import load_model
    from shapes import write_shape
    from sides import random_batch, train_with_mlx_lm, unfreeze_adapters

    from mlx_gardener.config import LoraConfig, OptimizerConfig
    from mlx_gardener.engine import Engine, Plan, PredictedParts
    from mlx_gardener.model import load_base
    from mlx_gardener.model.lora import attach_lora, lora_parameters
    from mlx_gardener.training.optimizer import make_optimizer

    path = write_shape("qwen2.5-coder-0.5b", SHAPES, bits=4, layers=8)
    batch = random_batch(ROWS, WIDTH, 8000)
    if name == "mlx_lm":
        model, _ = load_model(path)
        model.set_dtype(mx.float32)
        model.freeze()
        attach_lora(model, LoraConfig(rank=8), seed=0)
        unfreeze_adapters(model)
        reports = train_with_mlx_lm(
            model,
            batch.tokens.tolist(),
            width=WIDTH,
            optimizer=optimizers.Adam(learning_rate=1e-5),
            batch_size=ROWS,
            iters=1,
        )
        return {
            "tokens_per_second": ROWS * WIDTH * reports[-1]["iterations_per_second"],
            "loss": reports[0]["train_loss"],
        }
    dense = name.endswith("dense")
    base = load_base(str(path), base_weights="dense" if dense else "stored")
    attach_lora(base.model, LoraConfig(rank=8), seed=0)
    plan = Plan(
        {WIDTH: ROWS},
        2**33,
        0,
        PredictedParts(),
        (),
        kept_layers=8,
        loss_slice_tokens=128,
        cpu_streams=2,
        dequantize=not dense,
    )
    engine = Engine(base.model, plan, dtype=base.dtype)
    weights, optimizer = lora_parameters(base.model), make_optimizer(OptimizerConfig())
    optimizer.init(weights)
    for number in range(2):
        started = time.perf_counter()
        result = engine.loss_and_gradients(weights, batch, seed=number)
        gradients = {key: value / result.tokens for key, value in result.gradients.items()}
        weights = optimizer.apply_gradients(gradients, weights)
        mx.eval(weights, optimizer.state)
        seconds = time.perf_counter() - started
        if not number:
            loss = result.loss_sum / result.tokens
    return {"tokens_per_second": ROWS * WIDTH / seconds, "loss": loss}


@click.command()
@click.option("--rounds", default=2, show_default=True)
@click.option("--side", "only", type=click.Choice(SIDES), hidden=True)
def main(rounds: int, only: str | None) -> None:
    """Run all sides in turn and write the result."""
    if only:
        print(json.dumps(side(only)))
        return
    from machine import bar, describe, save
    from shapes import write_shape
    from sides import in_turn, median, spreads

    write_shape("qwen2.5-coder-0.5b", SHAPES, bits=4, layers=8)
    machine, found = describe(), in_turn(__file__, SIDES, rounds)
    speeds = {name: median(found[name], "tokens_per_second") for name in SIDES}
    dense, stored = speeds["ours dense"] / speeds["mlx_lm"], speeds["ours stored"] / speeds["mlx_lm"]
    bars = [
        bar(
            "tokens/s, 4-bit base on CPU",
            "mlx_lm.lora, computing in float32",
            ">= 10x",
            f"{dense:.1f}x as floats, {stored:.1f}x kept at 4 bits "
            f"({', '.join(f'{name} {speed:.1f}' for name, speed in speeds.items())} tokens/s)",
            dense >= 10,
        )
    ]
    print(json.dumps(bars, indent=1))
    print("wrote", save("quantized", {"machine": machine, "bars": bars, "sides": spreads(found)}))


if __name__ == "__main__":
    main()
