"""One training step at a 0.5B shape against `mlx_lm.lora`'s own step: peak memory beyond the weights, and speed.

    python benchmarks/against_mlx_lm.py [--rounds 3]

Hidden 896, vocabulary 151,936, 8 layers, float32, 4 x 512 tokens, every token a target, the same weights, tokens and
BLAS. Half of the rows are computed at once. "lean" computes layers twice; "products" keeps the
outputs of all layers' matrix products and computes the rest twice; "fast" keeps all layers live. mlx-lm's step is compiled, as
in its trainer. Each side makes two steps, and the second is timed: in a training all but the first find the buffers of the one
before. Loss and gradient norm of all sides are written beside, to show the same work, and processor seconds, which others' work
on the machine changes little.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click

ROWS, WIDTH = 4, 512
#: Of the plan, by side.
OURS: dict[str, dict[str, int]] = {
    "lean": {"loss_slice_tokens": 32},
    "products": {"kept_products": 8, "loss_slice_tokens": 64},
    "fast": {"kept_layers": 8, "loss_slice_tokens": 128},
}
#: What the planner chooses on this processor, by `engine.attention`: in two thirds of the time.
IN_BLOCKS = {"attention_block": 128, "attention_least": 256}
SIDES = ("mlx_lm", "mlx_lm checkpointed", *OURS)


def side(name: str) -> dict[str, Any]:
    """One step of one side in this process."""
    import mlx_gardener  # noqa: F401  # preloads the BLAS for every side  # isort: skip
    import mlx.core as mx
    import mlx.nn as nn
    from half_billion import half_billion_shape
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.trainer import default_loss, grad_checkpoint
    from sides import random_batch, unfreeze_adapters

    from mlx_gardener.config import LoraConfig
    from mlx_gardener.engine import Engine, Plan, PredictedParts
    from mlx_gardener.model.exponentials import use_in_models
    from mlx_gardener.model.lora import attach_lora, lora_parameters

    model = half_billion_shape()
    weight_bytes = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    attach_lora(model, LoraConfig(rank=8, scale=20.0), seed=0)
    weights = lora_parameters(model)
    batch = random_batch(ROWS, WIDTH, 151936)
    mx.reset_peak_memory()
    step: Callable[[], tuple[float, float]]

    def norm_of(gradients: dict[str, mx.array]) -> float:
        return float(sum((value * value).sum() for value in gradients.values()).item()) ** 0.5

    if name.startswith("mlx_lm"):
        model.train()
        unfreeze_adapters(model)
        if name.endswith("checkpointed"):
            grad_checkpoint(model.layers[0])
        lengths = mx.array([[1, WIDTH - 1]] * ROWS)
        of_model = nn.value_and_grad(model, default_loss)

        @partial(mx.compile, inputs=[model.state], outputs=[model.state])  # as its trainer does
        def pass_through(tokens: mx.array, lengths: mx.array) -> Any:
            return of_model(model, tokens, lengths)

        def step() -> tuple[float, float]:
            (loss, _), gradients = pass_through(mx.array(batch.tokens), lengths)
            mx.eval(loss, gradients)
            return float(loss.item()), norm_of(dict(tree_flatten(gradients)))
    else:
        use_in_models()  # as where a base is loaded
        chosen = {**IN_BLOCKS, **OURS[name]}
        plan = Plan({WIDTH: 2}, 2**33, 0, PredictedParts(), (), cpu_streams=2, **chosen)  # type: ignore[arg-type]
        mx.set_cache_limit(512 * 2**20)
        engine = Engine(model, plan, dtype=mx.float32)

        def step() -> tuple[float, float]:
            result = engine.loss_and_gradients(weights, batch, seed=0)
            return result.loss_sum / result.tokens, norm_of(result.gradients) / result.tokens

    found = []
    for _ in range(2):  # a training makes many: buffers of the one before are there
        started, cpu_before = time.perf_counter(), time.process_time()
        loss, norm = step()
        found.append((time.perf_counter() - started, time.process_time() - cpu_before))
    (first, _), (seconds, processor_seconds) = found
    return {
        "loss": loss,
        "gradient_norm": norm,
        "first_seconds": first,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "tokens_per_second": ROWS * WIDTH / seconds,
        "peak_beyond_weights_mib": (mx.get_peak_memory() - weight_bytes) / 2**20,
    }


def bars_of(speeds: dict[str, float], peaks: dict[str, float]) -> list[dict[str, Any]]:
    """What was aimed at, from tokens/s and MiB beyond the weights by side: medians."""
    from machine import bar

    checkpointed, best = "mlx_lm checkpointed", max(speeds["mlx_lm"], speeds["mlx_lm checkpointed"])
    less, lean = peaks[checkpointed] / peaks["lean"], speeds["lean"] / speeds[checkpointed]
    fast, share = speeds["fast"] / best, peaks["fast"] / peaks[checkpointed]
    shape = "0.5B shape, 4 x 512"
    return [
        bar(
            f"peak minus weights, {shape}",
            "mlx_lm.lora --grad-checkpoint",
            "<= 1/16 at >= 1.3x its speed",
            f"1/{less:.1f} ({peaks['lean']:.0f} MiB against {peaks[checkpointed]:.0f}), at {lean:.2f}x its speed "
            f"({speeds['lean'] / best:.2f}x of the better of mlx_lm's two)",
            less >= 16 and lean >= 1.3,
        ),
        bar(
            f"tokens/s, same work, {shape}",
            "the better of mlx_lm.lora with and without checkpointing",
            ">= 2.2x at half of the peak with checkpointing",
            f"{fast:.2f}x with all layers live, at {share:.2f} of that peak",
            fast >= 2.2 and share <= 0.5,
        ),
    ]


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--side", "only", type=click.Choice(SIDES), hidden=True)
def main(rounds: int, only: str | None) -> None:
    """Run all sides in turn and write the result."""
    if only:
        print(json.dumps(side(only)))
        return
    from machine import describe, save
    from sides import in_turn, median, spreads

    machine, found = describe(), in_turn(__file__, SIDES, rounds)
    bars = bars_of(
        {name: median(found[name], "tokens_per_second") for name in SIDES},
        {name: median(found[name], "peak_beyond_weights_mib") for name in SIDES},
    )
    print(json.dumps(bars, indent=1))
    print("wrote", save("against_mlx_lm", {"machine": machine, "bars": bars, "sides": spreads(found)}))


if __name__ == "__main__":
    main()
