"""Sides of a comparison, each a process of its own and in turn, so that they share files, BLAS and the state of the machine.

A benchmark with sides is a script with a function ``side(name) -> dict``; it starts itself with ``--side NAME`` for every
side of every round and reads the JSON line that comes out.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from half_billion import random_tokens
from machine import describe, save, spread

from mlx_gardener.dataset import Batch


def in_turn(script: str, names: tuple[str, ...], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What every side of ``script`` reported in every round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            found[name].append(one_side(script, name))
            shown = {key: value for key, value in found[name][-1].items() if isinstance(value, float | int)}
            line = ", ".join(f"{key} {value:.6g}" for key, value in shown.items())
            print(f"round {number + 1} of {rounds}, {name}: {line}", flush=True)
    return found


def one_side(script: str, name: str) -> dict[str, Any]:
    """One side in a process of its own.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run([sys.executable, script, "--side", name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(script).name} --side {name!r} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def median(rounds: list[dict[str, Any]], key: str) -> float:
    """The median over rounds."""
    return statistics.median(one[key] for one in rounds)


def spreads(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Median, minimum and maximum of all figures of all sides."""
    return {
        name: {
            key: spread([one[key] for one in rounds])
            for key, value in rounds[0].items()
            if isinstance(value, float | int) and not isinstance(value, bool)
        }
        for name, rounds in found.items()
    }


def against_references(
    script: str,
    sides: Sequence[str],
    side: Callable[[str], dict[str, Any]],
    row: Callable[[list[dict[str, Any]], list[dict[str, Any]]], dict[str, Any]],
    prepare: Callable[[], None],
) -> click.Command:
    """The command of a script that measures its sides in turn, and writes a table of them beside the machine, under its own name.

    Args:
        side: measures one, in a process of its own.
        row: of the table, from what a side reported and what its reference did, the side named before its comma.
        prepare: what all sides need, once.
    """

    @click.command(help="Run all sides in turn and write the result.")
    @click.option("--rounds", default=2, show_default=True)
    @click.option("--side", "only", type=click.Choice(list(sides)), hidden=True)
    def main(rounds: int, only: str | None) -> None:
        if only:
            print(json.dumps(side(only)))
            return
        prepare()
        name, machine, found = Path(script).stem, describe(), in_turn(script, tuple(sides), rounds)
        table = []
        for one in sides:
            table.append({"side": one, **row(found[one], found[one.partition(",")[0]])})
            print(table[-1])
        print("wrote", save(name, {"machine": machine, name: table, "sides": spreads(found)}))

    return main


def random_batch(rows: int, width: int, vocab: int, *, seed: int = 0) -> Batch:
    """Random tokens; all but the first of a row are targets."""
    import numpy as np

    tokens = random_tokens(rows, width, vocab, seed=seed)
    mask = np.ones((rows, width), dtype=bool)
    mask[:, 0] = False
    ids = np.ones((rows, width), dtype=np.int32)
    return Batch(tokens, mask, ids, int(mask.sum()), 0, mask.sum(axis=1), ("",) * rows)


def unfreeze_adapters(model: Any) -> None:
    """Make adapters the trainable parameters, as mlx_lm.lora does."""
    for _, module in model.named_modules():
        if type(module).__name__ in ("LoRALinear", "LoRASwitchLinear"):
            module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)


def train_with_mlx_lm(
    model: Any, rows: list[list[int]], *, width: int, **settings: Any
) -> list[dict[str, Any]]:
    """mlx-lm's own trainer on ``rows`` (token ids), as `mlx_lm.lora` calls it; its reports, one an iteration."""
    import tempfile

    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.datasets import CacheDataset
    from mlx_lm.tuner.trainer import TrainingArgs, train

    class Rows:
        def __getitem__(self, at: int) -> list[int]:
            return rows[at]

        def __len__(self) -> int:
            return len(rows)

        def process(self, row: list[int]) -> tuple[list[int], int]:
            return row, 0

    reports: list[dict[str, Any]] = []

    class Listener(TrainingCallback):
        def on_train_loss_report(self, report: dict[str, Any]) -> None:
            reports.append(dict(report))

    import contextlib
    import io

    optimizer = settings.pop("optimizer")
    others = {name: settings.pop(name) for name in ("loss", "iterate_batches") if name in settings}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        arguments = TrainingArgs(
            max_seq_length=width,
            steps_per_report=1,
            steps_per_save=10**6,
            adapter_file=f"{scratch}/adapters.safetensors",
            **settings,
        )
        train(model, optimizer, CacheDataset(Rows()), args=arguments, training_callback=Listener(), **others)
    return reports
