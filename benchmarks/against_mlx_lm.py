"""One training step at a 0.5B shape against `mlx_lm.lora`'s own step: peak memory beyond the weights, and speed.

    python benchmarks/against_mlx_lm.py [--rounds 3]

Hidden 896, vocabulary 151,936, 8 layers, float32, 4 x 512 tokens, every token a target, the same weights, tokens and
BLAS. Every side of every round is a process of its own, in turn. "lean" computes layers twice and half of the rows at
once; "fast" keeps all layers live. Loss and gradient norm of all sides are written beside, to show the same work.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import click

ROWS, WIDTH = 4, 512
SIDES = ("mlx_lm", "mlx_lm checkpointed", "lean", "fast")


def side(name: str) -> dict[str, Any]:
    """One step of one side in this process."""
    import mlx_gardener  # noqa: F401  # preloads the BLAS for every side  # isort: skip
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.models import qwen2
    from mlx_lm.tuner.trainer import default_loss, grad_checkpoint
    from train_cell import random_batch

    from mlx_gardener.config import LoraConfig
    from mlx_gardener.engine import Engine, Plan
    from mlx_gardener.model.lora import attach_lora, lora_parameters

    mx.random.seed(0)
    model = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2",
            hidden_size=896,
            num_hidden_layers=8,
            intermediate_size=4864,
            num_attention_heads=14,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            vocab_size=151936,
            rope_theta=1e6,
            tie_word_embeddings=True,
        )
    )
    mx.eval(model.parameters())
    model.freeze()
    weight_bytes = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    attach_lora(model, LoraConfig(rank=8, scale=20.0), seed=0)
    weights = lora_parameters(model)
    batch = random_batch(ROWS, WIDTH, 151936)
    mx.reset_peak_memory()
    started = time.perf_counter()
    if name.startswith("mlx_lm"):
        model.train()
        for _, module in model.named_modules():
            if type(module).__name__ == "LoRALinear":
                module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
        if name.endswith("checkpointed"):
            grad_checkpoint(model.layers[0])
        lengths = mx.array([[1, WIDTH - 1]] * ROWS)
        (loss, _), gradients = nn.value_and_grad(model, default_loss)(model, mx.array(batch.tokens), lengths)
        mx.eval(loss, gradients)
        found = float(loss.item())
        norm = float(sum((value * value).sum() for _, value in tree_flatten(gradients)).item()) ** 0.5
    else:
        live = 8 if name == "fast" else 0
        plan = Plan({WIDTH: 2}, 2**33, 0, {}, (), live_layers=live, tail_slice_tokens=64, lanes=2)
        mx.set_cache_limit(512 * 2**20)
        result = Engine(model, plan, dtype=mx.float32).loss_and_gradients(weights, batch, seed=0)
        found = result.loss_sum / result.tokens
        norm = float(sum((value * value).sum() for value in result.gradients.values()).item()) ** 0.5
        norm /= result.tokens
    seconds = time.perf_counter() - started
    return {
        "loss": found,
        "gradient_norm": norm,
        "seconds": seconds,
        "tokens_per_second": ROWS * WIDTH / seconds,
        "peak_beyond_weights_mib": (mx.get_peak_memory() - weight_bytes) / 2**20,
    }


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--side", "only", type=click.Choice(SIDES), hidden=True)
def main(rounds: int, only: str | None) -> None:
    """Run all sides in turn and write the result."""
    if only:
        print(json.dumps(side(only)))
        return
    from machine import describe, save, spread

    machine, found = describe(), {name: [] for name in SIDES}
    for number in range(rounds):
        for name in SIDES:
            done = subprocess.run(
                [sys.executable, __file__, "--side", name], capture_output=True, text=True, check=True
            )
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            one = found[name][-1]
            print(
                f"round {number + 1}, {name}: {one['tokens_per_second']:.0f} tokens/s, "
                f"{one['peak_beyond_weights_mib']:.0f} MiB beyond the weights, loss {one['loss']:.6f}",
                flush=True,
            )
    sides = {
        name: {
            key: spread([one[key] for one in rounds_of])
            for key in ("tokens_per_second", "peak_beyond_weights_mib", "loss", "gradient_norm")
        }
        for name, rounds_of in found.items()
    }

    def median(name: str, key: str) -> float:
        return statistics.median(one[key] for one in found[name])

    best = max(median(name, "tokens_per_second") for name in SIDES[:2])
    ratios = {
        "lean peak / checkpointed peak": median("lean", "peak_beyond_weights_mib")
        / median("mlx_lm checkpointed", "peak_beyond_weights_mib"),
        "lean speed / better mlx_lm": median("lean", "tokens_per_second") / best,
        "fast speed / better mlx_lm": median("fast", "tokens_per_second") / best,
        "fast peak / mlx_lm peak": median("fast", "peak_beyond_weights_mib")
        / median("mlx_lm", "peak_beyond_weights_mib"),
    }
    print(json.dumps(ratios, indent=1))
    print("wrote", save("against_mlx_lm", {"machine": machine, "ratios": ratios, "sides": sides}))


if __name__ == "__main__":
    main()
