"""Training, measuring and answering on the same base under the same budget: tokens per second of each.

    python benchmarks/forward_only.py --model PATH_OF_A_BASE [--model ANOTHER] [--budget GB]

Every base is planned, loaded and tried as a training does. Then the sides take turns: a training step on one update's
rows, the losses of the same rows, answers to prompts of various lengths cut from them. CPU seconds per token stand beside
the tokens per second, since they say more on a busy machine; the peak is the process's footprint during each side.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from planned import load_planned

SIDES = ("training", "forward", "reading prompts and writing")


@contextmanager
def highest_footprint() -> Iterator[Callable[[], int]]:
    """The highest footprint of the process while this lasts, looked at every 10 ms."""
    from mlx_gardener.platform.footprint import process_footprint_bytes

    seen, done = [process_footprint_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen[0] = max(seen[0], process_footprint_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: seen[0]
    finally:
        done.set()
        thread.join()


def one_base(
    path: Path,
    settings: dict[str, Any],
    *,
    width: int,
    rows: int | None,
    prompts: int,
    new_tokens: int,
    rounds: int,
) -> dict[str, Any]:
    """All sides on one base, in turn."""
    from machine import spread
    from sides import random_batch

    from mlx_gardener.evaluate.generate import generate_many

    config, base, engine, weights, vocab = load_planned(path, width, **settings)
    engine.plan.set_limits()
    rows = rows or max(1, config.optimizer.tokens_per_update // width)
    batch = random_batch(rows, width, vocab)
    # Lengths from a quarter of a row to all of it.
    lengths = [width // 4 + (3 * width // 4) * number // max(1, prompts - 1) for number in range(prompts)]
    asked = [
        batch.tokens[number % len(batch.tokens), :length].tolist() for number, length in enumerate(lengths)
    ]

    def answer() -> int:
        found = generate_many(base, asked, max_new_tokens=new_tokens, engine=engine)
        return sum(lengths) + sum(len(one.ids) for one in found)

    def step() -> int:
        engine.loss_and_gradients(weights, batch, seed=0)
        return int(batch.tokens.size)

    def measure() -> int:
        engine.row_losses(batch)
        return int(batch.tokens.size)

    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side, work in zip(SIDES, (step, measure, answer), strict=True):
            with highest_footprint() as highest:
                began, cpu = time.perf_counter(), time.process_time()
                tokens = work()
                seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
            figures = {
                "tokens_per_second": tokens / seconds,
                "cpu_milliseconds_per_token": 1000 * cpu_seconds / tokens,
                "peak_gib": highest() / 2**30,
            }
            found[side].append(figures)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"{path.name}, round {number + 1} of {rounds}, {side}: {shown}", flush=True)
    return {
        "model": path.name,
        "settings": settings,
        "width": width,
        "rows": rows,
        "prompts": prompts,
        "new_tokens": new_tokens,
        "plan": engine.plan.to_json(),
        "sides": {
            side: {name: spread([one[name] for one in figures]) for name in figures[0]}
            for side, figures in found.items()
        },
    }


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--budget", default=4.0, show_default=True, help="GB.")
@click.option("--width", default=512, show_default=True, help="Tokens of a row.")
@click.option("--rows", type=int, help="Rows of a step. [default: those of an update]")
@click.option("--prompts", default=16, show_default=True)
@click.option("--new-tokens", default=16, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--set", "pinned", multiple=True, metavar="KEY=VALUE", help="A setting, as of train.")
def main(models: tuple[Path, ...], budget: float, pinned: tuple[str, ...], **sizes: Any) -> None:
    """Measure every base and write the result."""
    from machine import bar, describe, save

    from mlx_gardener.config import parse_value

    settings: dict[str, Any] = {"memory_limit_gb": budget}
    settings |= {key: parse_value(value) for key, _, value in (item.partition("=") for item in pinned)}
    machine = describe()
    found = [one_base(path, settings, **sizes) for path in models]
    bars = []
    for one in found:
        training, forward = (
            one["sides"][side]["tokens_per_second"]["median"] for side in ("training", "forward")
        )
        peak = max(side["peak_gib"]["max"] for side in one["sides"].values())
        bars += [
            bar(
                f"tokens/s forward, {one['model']}",
                "training step",
                ">= 2.5x",
                f"{forward / training:.2f}x ({forward:.1f} of {training:.1f})",
                forward / training >= 2.5,
            ),
            bar(
                f"peak of any side, {one['model']}",
                "budget",
                f"<= {budget} GB",
                f"{peak:.2f} GB",
                peak <= budget,
            ),
        ]
    print(json.dumps(bars, indent=1))
    print("wrote", save("forward_only", {"machine": machine, "bars": bars, "bases": found}))


if __name__ == "__main__":
    main()
