"""What each technique of the engine is worth: tokens a second and peak memory with it switched off, one at a time.

    python benchmarks/ablation.py [--rounds 2]

The 0.5B shape, 8 layers, rank 8. Five settings, each with a reference: *fast* (float32, 4 x 512 tokens, all layers live),
*lean* (the same, all layers computed twice), *long* (as lean, 1 x 2,048 tokens), *small* (a 4-bit base kept at 4 bits,
2 x 256 tokens, streamed from disk) and *cold* (the same, 1 x 64 tokens, from a file that is put out of the system's page
cache before every layer, as a base larger than the machine's memory is: reading then takes about as long as
computing, as a 7B base's layer does on an M4). The sides of a setting do the same work and give the same loss.
"""

from __future__ import annotations

import os
import time
from typing import Any

from quantized import SHAPES
from sides import against_references, median, random_batch

#: Side: (kind of base, rows, width, what the plan has, what is switched off beside the plan).
FAST = {"kept_layers": 8, "loss_slice_tokens": 64, "cpu_streams": 2}
LEAN = {"loss_slice_tokens": 64, "cpu_streams": 2}
LONG = {"loss_slice_tokens": 64, "cpu_streams": 1, "attention_block": 128}
SMALL = {"loss_slice_tokens": 64, "cpu_streams": 2, "dequantize": True, "streamed_layers": 8}
SIDES: dict[str, tuple[str, int, int, int, dict[str, Any], str]] = {
    "fast": ("dense", 4, 512, 2, FAST, ""),
    "fast, one lane": ("dense", 4, 512, 2, FAST | {"cpu_streams": 1}, ""),
    "fast, tail not sliced": ("dense", 4, 512, 2, FAST | {"loss_slice_tokens": 10**6}, ""),
    "fast, layers not live": ("dense", 4, 512, 2, LEAN, ""),
    "fast, not cut (one graph, full logits)": ("dense", 4, 512, 4, FAST, "cut"),
    "fast, no cache of freed buffers": ("dense", 4, 512, 2, FAST, "cache"),
    "lean": ("dense", 4, 512, 2, LEAN, ""),
    "lean, one lane": ("dense", 4, 512, 2, LEAN | {"cpu_streams": 1}, ""),
    "lean, all rows at once": ("dense", 4, 512, 4, LEAN, ""),
    "long": ("dense", 1, 2048, 1, LONG, ""),
    "long, MLX's attention": ("dense", 1, 2048, 1, LONG | {"attention_block": 0}, ""),
    "small": ("4-bit", 2, 256, 2, SMALL, ""),
    "small, MLX's products with quantised weights": ("4-bit", 2, 256, 2, SMALL | {"dequantize": False}, ""),
    "small, no prefetch": ("4-bit", 2, 256, 2, SMALL, "prefetch"),
    "cold": ("4-bit", 1, 64, 1, SMALL | {"cpu_streams": 1}, "page cache"),
    "cold, no prefetch": ("4-bit", 1, 64, 1, SMALL | {"cpu_streams": 1}, "page cache, prefetch"),
    "small, layers in memory": ("4-bit", 2, 256, 2, SMALL | {"streamed_layers": 0}, ""),
    "small, embedding and head on disk too": ("4-bit", 2, 256, 2, SMALL | {"vocabulary_on_disk": True}, ""),
}


def side(name: str) -> dict[str, Any]:
    """Two steps of one side in this process; the second counts."""
    import mlx_gardener  # noqa: F401  # isort: skip
    import mlx.core as mx
    from shapes import write_shape

    from mlx_gardener.config import LoraConfig, load_config
    from mlx_gardener.engine import Plan, PredictedParts, model_facts, prepare_engine
    from mlx_gardener.engine.speed import TWO_CORES
    from mlx_gardener.engine.stream import StreamedWeights
    from mlx_gardener.model import load_base
    from mlx_gardener.model.lora import attach_lora, lora_parameters

    kind, rows, width, at_once, chosen, off = SIDES[name]
    path = write_shape("qwen2.5-coder-0.5b", SHAPES, bits=None if kind == "dense" else 4, layers=8)
    plan = Plan({width: at_once}, 2**34, 0, PredictedParts(), (), layers=8, **chosen)
    mx.set_cache_limit(0 if off == "cache" else 512 * 2**20)
    base = load_base(
        str(path),
        base_weights="dense" if kind == "dense" else "stored",
        unread_layers=plan.streamed_layers,
        unread_vocabulary=plan.vocabulary_on_disk,
    )
    config = load_config(environment={})
    engine = prepare_engine(base, plan, config, facts=model_facts(path), backend=TWO_CORES, warn=print)
    if off == "cut":
        engine.take_whole("to compare")
    if off.endswith("prefetch"):
        at_once_too = StreamedWeights.in_memory
        StreamedWeights.in_memory = lambda self, here, soon: at_once_too(self, here, ())  # type: ignore[method-assign]
    attach_lora(base.model, LoraConfig(rank=8), seed=0)
    weights, batch = lora_parameters(base.model), random_batch(rows, width, 8000)
    before = mx.get_active_memory()
    files = [os.open(file, os.O_RDONLY) for file in path.glob("*.safetensors")]

    def between(_: float) -> None:
        for file in files if off.startswith("page cache") else ():
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    for number in range(2):
        mx.reset_peak_memory()
        started = time.perf_counter()
        result = engine.loss_and_gradients(weights, batch, seed=number, between_segments=between)
        seconds = time.perf_counter() - started
    return {
        "tokens_per_second": rows * width / seconds,
        "peak_beyond_weights_mib": (mx.get_peak_memory() - before) / 2**20,
        "peak_mib": mx.get_peak_memory() / 2**20,
        "loss": result.loss_sum / result.tokens,
    }


def prepare() -> None:
    """Write the model's shape, as floats and quantised."""
    from shapes import write_shape

    for bits in (None, 4):
        write_shape("qwen2.5-coder-0.5b", SHAPES, bits=bits, layers=8)


def row(seen: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """A side's figures beside its reference's."""
    speed, peak = median(seen, "tokens_per_second"), median(seen, "peak_mib")
    return {
        "tokens_per_second": round(speed, 1),
        "speed_ratio": round(speed / median(reference, "tokens_per_second"), 3),
        "peak_mib": round(peak),
        "peak_ratio": round(peak / median(reference, "peak_mib"), 3),
    }


if __name__ == "__main__":
    against_references(__file__, tuple(SIDES), side, row, prepare)()
