"""Fifty steps of training on real code: our loss curve against mlx-lm's own trainer, its bugs excepted.

    python benchmarks/loss_curve.py

The embedded model and the click package, the same adapters to begin with, the same batches in the same order, Adam at a
constant rate. mlx-lm's `train` runs as it is; its `loss` and `iterate_batches` arguments are given functions that do what
its own should: a mask by token instead of one that learns a pad token a row, and our batches. Ours runs through the
engine under a plan that splits every batch, computes layers twice and slices the tail. One run decides: it is exact work.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

STEPS = 50
TOKENS_PER_UPDATE = 2048
#: Lengths of rows, with how many of each are computed at once.
ROWS_AT_ONCE = {256: 3, 512: 1}
SOURCE = Path(click.__path__[0])
RATE = 2e-4
SIDES = ("mlx_lm", "ours")


def side(name: str) -> dict[str, Any]:
    """The losses of all steps of one side."""
    import mlx_gardener  # noqa: F401  # isort: skip
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optimizers
    from sides import train_with_mlx_lm, unfreeze_adapters

    from mlx_gardener.config import LoraConfig, load_config
    from mlx_gardener.dataset import TrainingDataPreparator
    from mlx_gardener.engine import Engine, Plan, PredictedParts
    from mlx_gardener.model import load_base
    from mlx_gardener.model.lora import attach_lora, lora_parameters
    from mlx_gardener.training.optimizer import make_optimizer

    config = load_config(
        environment={},
        overrides={
            "data.sequence_lengths": list(ROWS_AT_ONCE),
            "optimizer.tokens_per_update": TOKENS_PER_UPDATE,
            "optimizer.name": "adam",
            "optimizer.weight_decay": 0.0,
        },
    )
    base = load_base("seedling")
    with tempfile.TemporaryDirectory() as scratch:
        preparator = TrainingDataPreparator(config, tokenizer=base.tokenizer, cache_dir=Path(scratch))
        data = preparator.prepare(SOURCE)

    def batches() -> Iterator[Any]:
        epoch = 0
        while True:
            yield from data.train.batches(TOKENS_PER_UPDATE, seed=0, epoch=epoch)
            epoch += 1

    attach_lora(base.model, LoraConfig(rank=8), seed=0)
    if name == "ours":
        plan = Plan(
            ROWS_AT_ONCE,
            2**33,
            0,
            PredictedParts(),
            (),
            kept_layers=2,
            loss_slice_tokens=64,
            cpu_streams=2,
        )
        engine = Engine(base.model, plan, dtype=base.dtype)
        weights, optimizer = lora_parameters(base.model), make_optimizer(config.optimizer)
        optimizer.init(weights)
        optimizer.learning_rate = mx.array(RATE)
        losses = []
        for number, batch in zip(range(STEPS), batches(), strict=False):
            result = engine.loss_and_gradients(weights, batch, seed=number)
            losses.append(result.loss_sum / result.tokens)
            gradients = {key: value / result.tokens for key, value in result.gradients.items()}
            weights = optimizer.apply_gradients(gradients, weights)
            mx.eval(weights, optimizer.state)
        return {"losses": losses}
    unfreeze_adapters(base.model)
    mx.disable_compile()  # with a loss of two arrays MLX 0.32.4's compiler fails on the CPU (IndexError)

    def loss(model: nn.Module, tokens: mx.array, mask: mx.array) -> tuple[mx.array, mx.array]:
        logits = model(tokens[:, :-1])
        found = nn.losses.cross_entropy(logits, tokens[:, 1:]) * mask[:, 1:]
        return found.sum() / mask[:, 1:].sum(), mask[:, 1:].sum()

    def iterate_batches(**_: Any) -> Iterator[tuple[mx.array, mx.array]]:
        return ((mx.array(batch.tokens), mx.array(batch.loss_mask).astype(mx.float32)) for batch in batches())

    reports = train_with_mlx_lm(
        base.model,
        [[1, 2]] * 8,
        width=max(ROWS_AT_ONCE),
        optimizer=optimizers.Adam(learning_rate=RATE, bias_correction=True),
        loss=loss,
        iterate_batches=iterate_batches,
        batch_size=4,
        iters=STEPS,
    )
    return {"losses": [report["train_loss"] for report in reports]}


@click.command()
@click.option("--side", "only", type=click.Choice(SIDES), hidden=True)
def main(only: str | None) -> None:
    """Run both sides and write the result."""
    if only:
        print(json.dumps(side(only)))
        return
    from machine import bar, describe, save
    from sides import one_side

    machine = describe()
    curves = {name: one_side(__file__, name)["losses"] for name in SIDES}
    differences = [abs(ours - theirs) for ours, theirs in zip(curves["ours"], curves["mlx_lm"], strict=True)]
    first, last = curves["ours"][0], curves["ours"][-1]
    bars = [
        bar(
            f"loss curve over {STEPS} steps on real code",
            "mlx_lm.lora's, its bugs excepted",
            "equal to 1e-4",
            f"largest difference {max(differences):.1e} nats per token, from {first:.4f} to {last:.4f}",
            max(differences) <= 1e-4,
        )
    ]
    print(json.dumps(bars, indent=1))
    print("wrote", save("loss_curve", {"machine": machine, "bars": bars, "curves": curves}))


if __name__ == "__main__":
    main()
