"""One training step of one model under one budget, in this process: peak footprint, speed, and what was predicted.

    python benchmarks/train_cell.py MODEL --budget GB --width TOKENS [--set engine.kept_layers=0 ...]

Other benchmarks start it as a process of its own, so that its peak is its own. Prints one line of JSON. With
``--documents FILE`` (JSON: ``documents``, lists of token ids) it trains ``--passes`` over these, packed into rows, instead
of random tokens.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import repeat
from operator import truediv
from pathlib import Path
from typing import Any

import click
import numpy as np
from sides import random_batch

import mlx_gardener  # noqa: F401  # preloads the BLAS
from mlx_gardener.config import load_config, parse_value
from mlx_gardener.dataset import Batch
from mlx_gardener.dataset.rows import Document, pack
from mlx_gardener.engine import load_engine, make_plan, measured_backend, model_facts
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.model import choose_model, resolve_model
from mlx_gardener.model.lora import attach_lora, lora_parameters
from mlx_gardener.platform.footprint import process_footprint_bytes, process_peak_footprint_bytes
from mlx_gardener.training.optimizer import make_optimizer


def packed_batches(file: Path, width: int, tokens_per_update: int, passes: int) -> list[Batch]:
    """The batches of ``passes`` over the documents of ``file``, packed; all tokens but a document's first are targets."""
    documents = [
        Document(np.array(tokens, dtype=np.int32), np.arange(len(tokens)) > 0, 0, splittable=False)
        for tokens in json.loads(file.read_text(encoding="utf-8"))["documents"]
    ]
    rows = pack(documents, (width,), pad_id=0)
    return [
        batch for epoch in range(passes) for batch in rows.batches(tokens_per_update, seed=0, epoch=epoch)
    ]


@click.command()
@click.argument("model")
@click.option("--budget", type=float, default=4.0)
@click.option("--width", type=int, default=512)
@click.option("--rows", type=int, help="Rows of the batch. [default: as many as are computed at once]")
@click.option("--steps", type=int, default=2)
@click.option("--documents", type=click.Path(exists=True, path_type=Path), help="Train on these instead.")
@click.option("--passes", type=int, default=2, help="Passes over --documents, which replace --steps.")
@click.option(
    "--seconds", "limit", type=float, default=1e9, help="Begin no step that would end later than this."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
def main(
    model: str,
    budget: float,
    width: int,
    rows: int | None,
    steps: int,
    documents: Path | None,
    passes: int,
    limit: float,
    settings: tuple[str, ...],
) -> None:
    """Train and report."""
    began = time.monotonic()
    import mlx.core as mx

    chosen: dict[str, Any] = {"memory_limit_gb": budget, "data.sequence_lengths": [width]}
    chosen |= {key: parse_value(value) for key, _, value in (item.partition("=") for item in settings)}
    config = load_config(environment={}, overrides=chosen)
    path = resolve_model(choose_model(model))
    facts, backend = model_facts(path), measured_backend()
    try:
        plan = make_plan(facts, config, config.memory_limit_bytes, backend)
    except MemoryBudgetError as error:
        print(json.dumps({"refused": str(error), "next_step": error.next_step}))
        return
    print(plan, file=sys.stderr, flush=True)
    formula = plan
    loads: list[str] = []

    def tell(share: float, message: str) -> None:
        loads.extend([message] if message.startswith("Loading") else [])
        print(message, file=sys.stderr, flush=True)

    began_check = time.perf_counter()
    try:
        base, engine = load_engine(
            model,
            plan,
            config,
            facts=facts,
            backend=backend,
            warn=lambda text: print(text, file=sys.stderr),
            tell=tell,
        )
    except MemoryBudgetError as error:
        print(json.dumps({"refused": str(error), "next_step": error.next_step, "loaded": True}))
        return
    check_seconds = time.perf_counter() - began_check
    checked = process_peak_footprint_bytes()
    print(f"after the check {checked / 2**30:.2f} GB at most", file=sys.stderr, flush=True)
    engine.plan.set_limits()
    attach_lora(base.model, config.lora, seed=0)
    weights, optimizer = lora_parameters(base.model), make_optimizer(config.optimizer)
    optimizer.init(weights)
    mx.eval(weights, optimizer.state)
    best = dict(weights)  # as the training loop keeps it
    samples: list[tuple[int, int, int]] = []  # footprint, MLX's active and cached bytes
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            samples.append((process_footprint_bytes(), mx.get_active_memory(), mx.get_cache_memory()))

    threading.Thread(target=watch, daemon=True).start()
    at_once = engine.plan.rows_of_width[width]
    batches: Iterator[Batch] = repeat(
        random_batch(rows or at_once, width, min(facts.vocab, base.tokenizer.vocab_size)), steps
    )
    one_pass: dict[str, int] = {}
    if documents is not None:
        packed = packed_batches(documents, width, config.optimizer.tokens_per_update, passes)
        batches, count_of_pass = iter(packed), len(packed) // passes
        one_pass = {
            "first_steps": 0,
            "steps_per_pass": count_of_pass,
            "positions_per_pass": sum(batch.tokens.size for batch in packed[:count_of_pass]),
            "loss_tokens_per_pass": sum(batch.loss_tokens for batch in packed[:count_of_pass]),
        }
    seconds, losses, positions, clock = [], [], [], []
    segments = [0]

    def count(_: float) -> None:
        segments[0] += 1
        if sys.stderr.isatty() or segments[0] % 20 == 0:
            print(f"segment {segments[0]}", file=sys.stderr, flush=True)

    for step, batch in enumerate(batches):
        clock.append(time.time())
        started = time.perf_counter()
        result = engine.loss_and_gradients(weights, batch, seed=step, between_segments=count)
        losses.append(result.loss_sum / result.tokens)
        optimizer.learning_rate = mx.array(1e-4)
        weights = optimizer.apply_gradients(
            {name: value / result.tokens for name, value in result.gradients.items()}, weights
        )
        mx.eval(weights, optimizer.state)
        seconds.append(time.perf_counter() - started)
        positions.append(batch.tokens.size)
        print(f"step {step + 1}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
        if time.monotonic() - began + seconds[-1] > limit:
            break
    done.set()
    assert best.keys() == weights.keys()
    print(
        json.dumps(
            {
                "rows_at_once": at_once,
                "rows": len(batch.tokens),
                "predicted_peak_bytes": engine.plan.predicted_peak_bytes,
                "formula_peak_bytes": formula.predicted_peak_bytes,
                "formula_parts": asdict(formula.predicted_parts),
                "check_seconds": round(check_seconds, 2),
                "predicted_parts": asdict(engine.plan.predicted_parts),
                "measured_peak_bytes": max(process_peak_footprint_bytes(), max(samples)[0]),
                "checked_peak_bytes": checked,
                "at_peak_bytes": dict(zip(("footprint", "active", "cache"), max(samples), strict=True)),
                "loads": len(loads),
                "peak_active_bytes": mx.get_peak_memory(),
                "seconds": [round(value, 3) for value in seconds],
                "positions": positions,
                **one_pass,
                "tokens_per_second": round(max(map(truediv, positions, seconds)), 2),
                "measured_from": clock[min(1, len(clock) - 1)],
                "measured_to": time.time(),
                "predicted_tokens_per_second": round(engine.plan.predicted_tokens_per_second, 2),
                "losses": losses,
                "whole_because": engine.whole_because,
                "plan": {
                    name: value
                    for name, value in engine.plan.to_json().items()
                    if not name.startswith("predicted")
                },
            }
        )
    )


if __name__ == "__main__":
    main()
