"""Ten thousand optimiser updates in one process: does its memory grow?

    python benchmarks/endurance.py [--steps 10000] [--tiny]

The embedded model (with ``--tiny`` a random one of three layers, in a tenth of the time) learns a small repository through
`TrainingPipeline`, with validations and checkpoints on the way, as every training does. After every update the worker
tells its footprint; a line is fitted to these (least squares, the first tenth left out, in which caches fill). Writes
``results/endurance.json`` and ``.svg``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

import mlx_gardener  # noqa: F401  # preloads the BLAS

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import RESULTS, bar, describe, save

from mlx_gardener import TrainingPipeline, load_config
from mlx_gardener.events import StepCompleted, TrainingEnded
from tests.support.models import write_tiny_model, write_tiny_tokenizer
from tests.support.repositories import write_repository

MIB = 2**20


def footprints(steps: int, *, tiny: bool) -> tuple[list[int], str]:
    """(footprint in bytes after every update, how the training ended)."""
    settings = {
        "model": "seedling",
        "min_training_chunks": 5,
        "training_data_quality_threshold": 0.1,
        "training_timeout_minutes": 600,
        "lora.rank": 4,
        "optimizer.tokens_per_update": 64,
        "optimizer.max_steps": steps,
        "optimizer.epochs": 100,
        "data.sequence_lengths": [64],
        "evaluation.patience": 10**6,
        "evaluation.per_epoch": 1,
        "evaluation.tasks": 0,
        "checkpoint_interval_seconds": 5,
        "throttling.low_priority": False,
    }
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLX_GARDENER_HOME"] = f"{scratch}/home"
        repository = write_repository(Path(scratch) / "repository", modules=24)
        if tiny:
            words = Path(scratch) / "tokenizer"
            words.mkdir()
            tokenizer = write_tiny_tokenizer(words, repository)
            settings["model"] = str(write_tiny_model(Path(scratch) / "model", tokenizer))
        pipeline = TrainingPipeline(load_config(environment={}, overrides=settings))
        pipeline.registry.register_project("endurance", repository)
        pipeline.start_training("endurance")
        found, ended, shown = list[int](), "", time.monotonic()
        for event in pipeline.follow("endurance"):
            if isinstance(event, StepCompleted):
                found.append(event.memory_bytes)
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    left = (event.eta_seconds or 0) / 60
                    print(
                        f"step {event.step} of {event.total_steps}: {event.memory_bytes / MIB:.0f} MiB, {left:.0f} min left",
                        flush=True,
                    )
            elif isinstance(event, TrainingEnded):
                ended = f"{event.phase.value}: {event.message}"
    return found, ended


def fitted(values: list[int]) -> dict[str, float]:
    """MiB per 1000 updates with its standard error, and the noise around the line in MiB."""
    first = len(values) // 10
    steps, sizes = np.arange(first, len(values)), np.array(values[first:]) / MIB
    slope, start = np.polyfit(steps, sizes, 1)
    noise = float(np.std(sizes - (slope * steps + start)))
    spread = float(np.std(steps)) * len(steps) ** 0.5
    return {
        "slope_mib_per_1000": float(1000 * slope),
        "standard_error_mib_per_1000": 1000 * noise / spread,
        "noise_mib": noise,
        "growth_mib": float(slope * len(steps)),
        "median_mib": float(np.median(sizes)),
    }


def picture(values: list[int], line: dict[str, float]) -> str:
    """Footprint over updates as SVG."""
    width, height, left, bottom = 640, 220, 60, 30
    step = max(1, len(values) // 1000)
    points = [(at, values[at] / MIB) for at in range(0, len(values), step)]
    most = 1.15 * max(size for _, size in points)
    path = " ".join(
        f"{left + (width - left - 10) * at / len(values):.1f},{height - bottom - (height - bottom - 20) * size / most:.1f}"
        for at, size in points
    )
    style = (
        "text{font:13px system-ui,sans-serif;fill:#222}polyline{fill:none;stroke:#2f855a;stroke-width:1.5}"
        "@media(prefers-color-scheme:dark){text{fill:#eee}polyline{stroke:#48bb78}}"
    )
    said = f"{line['slope_mib_per_1000']:+.3f} MiB per 1000 updates, noise {line['noise_mib']:.1f} MiB"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="Footprint over updates">'
        f'<style>{style}</style><text x="{left}" y="14">Footprint of the worker, MiB: {said}</text>'
        f'<text x="4" y="{height - bottom}">0</text><text x="4" y="24">{most:.0f}</text>'
        f'<text x="{left}" y="{height - 8}">0</text><text x="{width - 70}" y="{height - 8}">{len(values)}</text>'
        f'<polyline points="{path}"/></svg>\n'
    )


@click.command()
@click.option("--steps", default=10_000, show_default=True, type=click.IntRange(min=100))
@click.option(
    "--tiny", is_flag=True, help="Train a random model of three layers instead of the embedded one."
)
def main(steps: int, tiny: bool) -> None:
    """Train and write the result."""
    machine = describe()
    values, ended = footprints(steps, tiny=tiny)
    if len(values) < 20:
        raise click.ClickException(f"only {len(values)} updates were made; {ended}")
    line = fitted(values)
    flat = (
        abs(line["growth_mib"]) <= 2 * line["noise_mib"]
        or abs(line["growth_mib"]) <= 0.01 * line["median_mib"]
    )
    bars = [
        bar(
            f"footprint over {len(values)} updates",
            "its own noise",
            "constant",
            f"{line['growth_mib']:+.1f} MiB in all of {line['median_mib']:.0f} MiB, noise {line['noise_mib']:.1f} MiB; {ended}",
            flat and len(values) == steps,
        )
    ]
    print(bars)
    every = max(1, len(values) // 500)
    result = {
        "machine": machine,
        "model": "tiny" if tiny else "seedling",
        "bars": bars,
        "line": line,
        "every": every,
        "footprints": values[::every],
    }
    (RESULTS / "endurance.svg").write_text(picture(values, line), encoding="utf-8")
    print("wrote", save("endurance", result))


if __name__ == "__main__":
    main()
