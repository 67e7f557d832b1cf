"""Real code of mixed lengths: loss-bearing tokens a second of ours (packed rows) against `mlx_lm.lora` (padded rows).

    python benchmarks/mixed_lengths.py [--rounds 2]

Documents are the functions and classes of the installed click package, as our scanner cuts them, left to right, every
token a target on both sides: what somebody would write to a JSONL file, a document a line. mlx-lm's own trainer takes
them four at a time, pads each batch to its longest, and learns one pad token a row; ours packs them into rows of 512 and
1,024 tokens. Model: the 0.5B shape with 8 layers in float32. The first iteration of each side is not counted.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

SIDES = ("mlx_lm", "mlx_lm checkpointed", "ours")
ITERATIONS = 6
WIDTHS = (512, 1024)
TOKENS_PER_UPDATE = 4096
BUDGET = 6 * 2**30


def documents() -> list[list[int]]:
    """Token ids of every chunk, at most 1,024 each, in a fixed random order."""
    import random

    import click as package

    from mlx_gardener.config import DataConfig
    from mlx_gardener.model import load_tokenizer, seedling_path
    from mlx_gardener.source import scan_repository

    root = Path(package.__file__).parent
    scan = scan_repository(root, DataConfig(), quality_threshold=0.0)
    tokenizer = load_tokenizer(seedling_path())
    found = []
    for file in scan.files:
        data = (root / file.path).read_bytes()
        for chunk in file.chunks:
            text = data[chunk.start_byte : chunk.end_byte].decode()
            found.append(list(tokenizer.encode(text))[: WIDTHS[-1]])
    random.Random(0).shuffle(found)
    return [tokens for tokens in found if len(tokens) >= 16]


def side(name: str) -> dict[str, Any]:
    """Some iterations of one side in this process."""
    import mlx_gardener  # noqa: F401  # isort: skip
    import mlx.core as mx
    import mlx.optimizers as optimizers
    import numpy as np
    from half_billion import half_billion_shape
    from sides import train_with_mlx_lm, unfreeze_adapters

    from mlx_gardener.config import LoraConfig, OptimizerConfig
    from mlx_gardener.dataset.rows import Document, pack
    from mlx_gardener.engine import Engine, Plan, PredictedParts
    from mlx_gardener.model.lora import attach_lora, lora_parameters
    from mlx_gardener.training.optimizer import make_optimizer

    rows = documents()
    model = half_billion_shape()
    attach_lora(model, LoraConfig(rank=8), seed=0)
    if name.startswith("mlx_lm"):
        unfreeze_adapters(model)
        np.random.seed(0)
        reports = train_with_mlx_lm(
            model,
            rows,
            width=WIDTHS[-1],
            optimizer=optimizers.Adam(learning_rate=1e-5),
            batch_size=4,
            iters=ITERATIONS + 1,
            grad_checkpoint=name.endswith("checkpointed"),
        )[1:]
        seconds = sum(1 / report["iterations_per_second"] for report in reports)
        tokens = sum(report["tokens_per_second"] / report["iterations_per_second"] for report in reports)
        padding = 4 * len(reports)  # one learned pad token a row is no work done
        return {"loss_tokens_per_second": (tokens - padding) / seconds, "loss_tokens": tokens - padding}
    packed = pack(
        [
            Document(
                np.array(tokens, dtype=np.int32),
                np.arange(len(tokens)) > 0,
                len(tokens),
                splittable=False,
            )
            for tokens in rows
        ],
        WIDTHS,
        pad_id=4,
    )
    plan = Plan(
        {512: 4, 1024: 2}, BUDGET, 0, PredictedParts(), (), kept_layers=8, loss_slice_tokens=64, cpu_streams=2
    )
    mx.set_cache_limit(512 * 2**20)
    engine = Engine(model, plan, dtype=mx.float32)
    weights, optimizer = lora_parameters(model), make_optimizer(OptimizerConfig())
    optimizer.init(weights)
    tokens = seconds = 0.0
    for number, batch in enumerate(packed.batches(TOKENS_PER_UPDATE, seed=0)):
        if number == 3:
            break
        started = time.perf_counter()
        result = engine.loss_and_gradients(weights, batch, seed=number)
        gradients = {key: value / result.tokens for key, value in result.gradients.items()}
        weights = optimizer.apply_gradients(gradients, weights)
        mx.eval(weights, optimizer.state)
        if number:
            tokens, seconds = tokens + result.tokens, seconds + time.perf_counter() - started
    return {
        "loss_tokens_per_second": tokens / seconds,
        "loss_tokens": tokens,
        "padding_fraction": packed.padding_tokens / packed.total_tokens,
        "peak_mib": mx.get_peak_memory() / 2**20,
    }


@click.command()
@click.option("--rounds", default=2, show_default=True)
@click.option("--side", "only", type=click.Choice(SIDES), hidden=True)
def main(rounds: int, only: str | None) -> None:
    """Run all sides in turn and write the result."""
    if only:
        print(json.dumps(side(only)))
        return
    from machine import bar, describe, save
    from sides import in_turn, median, spreads

    machine, found = describe(), in_turn(__file__, SIDES, rounds)
    lengths = sorted(len(tokens) for tokens in documents())
    speeds = {name: median(found[name], "loss_tokens_per_second") for name in SIDES}
    ratio = speeds["ours"] / max(speeds["mlx_lm"], speeds["mlx_lm checkpointed"])
    bars = [
        bar(
            "tokens/s on real code of mixed lengths, loss-bearing tokens only",
            "the better of mlx_lm.lora with and without checkpointing",
            ">= 1.5x",
            f"{ratio:.2f}x ({', '.join(f'{name} {speed:.0f}' for name, speed in speeds.items())} tokens/s)",
            ratio >= 1.5,
        )
    ]
    print(json.dumps(bars, indent=1))
    data = {
        "documents": len(lengths),
        "median_tokens": lengths[len(lengths) // 2],
        "most_tokens": lengths[-1],
    }
    result = {"machine": machine, "bars": bars, "data": data, "sides": spreads(found)}
    print("wrote", save("mixed_lengths", result))


if __name__ == "__main__":
    main()
