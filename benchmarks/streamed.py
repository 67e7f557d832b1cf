"""The price of reading the base from disk: the same steps with the base in memory, streamed, and wholly on disk.

    python benchmarks/streamed.py [--rounds 2]

The 0.5B shape with all 24 layers in bfloat16 on disk, float32 in memory, which fits either way; 4 x 512 tokens, all layers
computed twice on every side, so that only the place of the weights differs. "without prefetch" reads a segment when it
is needed instead of while the one before computes. The files are in the system's page cache, but for the "cold" sides, where
it is asked to forget them all the time, as where a base does not fit in the machine's memory.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from quantized import SHAPES

SIDES = (
    "in memory",
    "streamed",
    "streamed without prefetch",
    "embedding and head on disk too",
    "streamed cold",
    "streamed cold without prefetch",
)
ROWS, WIDTH = 4, 512


@contextmanager
def forgotten(directory: Path) -> Iterator[None]:
    """While this lasts the system's page cache is asked every 10 ms to forget the weight files of ``directory``."""
    files = [os.open(file, os.O_RDONLY) for file in directory.glob("*.safetensors")]
    done = threading.Event()

    def forget() -> None:
        while not done.wait(0.01):
            for file in files:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    thread = threading.Thread(target=forget, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for file in files:
            os.close(file)


def side(name: str) -> dict[str, Any]:
    """Two steps of one side in this process; the second counts."""
    import mlx_gardener  # noqa: F401  # isort: skip
    import mlx.core as mx
    from shapes import write_shape
    from sides import random_batch

    from mlx_gardener.config import LoraConfig, load_config
    from mlx_gardener.engine import Plan, PredictedParts, model_facts, prepare_engine
    from mlx_gardener.engine.speed import TWO_CORES
    from mlx_gardener.engine.stream import StreamedWeights
    from mlx_gardener.model import load_base
    from mlx_gardener.model.lora import attach_lora, lora_parameters
    from mlx_gardener.platform.footprint import process_peak_footprint_bytes

    path = write_shape("qwen2.5-coder-0.5b", SHAPES, bits=None)
    streamed = 0 if name == "in memory" else 24
    on_disk = name.startswith("embedding")
    base = load_base(str(path), unread_layers=streamed, unread_vocabulary=on_disk)
    plan = Plan(
        {WIDTH: ROWS},
        2**33,
        0,
        PredictedParts(),
        (),
        loss_slice_tokens=64,
        cpu_streams=2,
        streamed_layers=streamed,
        vocabulary_on_disk=on_disk,
        layers=24,
    )
    mx.set_cache_limit(256 * 2**20)
    config = load_config(environment={})
    engine = prepare_engine(base, plan, config, facts=model_facts(path), backend=TWO_CORES, warn=print)
    if name.endswith("without prefetch"):
        at_once = StreamedWeights.in_memory
        StreamedWeights.in_memory = lambda self, here, soon: at_once(self, here, ())  # type: ignore[method-assign]
    attach_lora(base.model, LoraConfig(rank=8), seed=0)
    weights = lora_parameters(base.model)
    batch = random_batch(ROWS, WIDTH, 8000)
    before = read_bytes()
    with forgotten(path) if "cold" in name else nullcontext():
        for number in range(2):
            started = time.perf_counter()
            result = engine.loss_and_gradients(weights, batch, seed=number)
            seconds = time.perf_counter() - started
    return {
        "tokens_per_second": ROWS * WIDTH / seconds,
        "peak_footprint_mib": process_peak_footprint_bytes() / 2**20,
        "read_from_disk_mib": (read_bytes() - before) / 2**20,
        "loss": result.loss_sum / result.tokens,
    }


def read_bytes() -> int:
    """Bytes that this process had read from disks, not from the page cache (Linux; 0 elsewhere)."""
    try:
        return int(Path("/proc/self/io").read_text().split("\nread_bytes: ")[1].split()[0])
    except OSError:
        return 0


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

    write_shape("qwen2.5-coder-0.5b", SHAPES, bits=None)
    machine, found = describe(), in_turn(__file__, SIDES, rounds)
    speeds = {name: median(found[name], "tokens_per_second") for name in SIDES}
    peaks = {name: median(found[name], "peak_footprint_mib") for name in SIDES}
    ratio = speeds["streamed"] / speeds["in memory"]
    bars = [
        bar(
            "streamed vs resident, a base that fits (0.5B, 24 layers)",
            "ourselves",
            ">= 0.9x",
            f"{ratio:.2f}x in {peaks['streamed']:.0f} MiB instead of {peaks['in memory']:.0f}; "
            f"{speeds[SIDES[2]] / speeds['in memory']:.2f}x without prefetch; "
            f"{speeds[SIDES[4]] / speeds['in memory']:.2f}x where the page cache forgets, "
            f"{speeds[SIDES[5]] / speeds['in memory']:.2f}x so without prefetch; "
            f"{speeds[SIDES[3]] / speeds['in memory']:.2f}x in {peaks[SIDES[3]]:.0f} MiB with embedding and head on disk",
            ratio >= 0.9,
        )
    ]
    print(json.dumps(bars, indent=1))
    print("wrote", save("streamed", {"machine": machine, "bars": bars, "sides": spreads(found)}))


if __name__ == "__main__":
    main()
