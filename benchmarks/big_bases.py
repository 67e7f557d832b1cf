"""Bases larger than the budget: a 7B and a 32B shape at 4 bits, trained within 4 GB of process footprint.

    python benchmarks/big_bases.py DIRECTORY [--only 7b|7b-resident|32b|32b-long] [--rounds 2]

Random weights at the real shapes are written to DIRECTORY (4 and 18 GB) unless they are there. A round is one whole
optimiser step in a process of its own, after the check of the cut; its footprint is sampled every 10 ms and taken from
the kernel's own peak. "7b-resident" holds the same base in memory at 4 bits, for the price of reading it from disk. A step of
"32b-long", with rows of 2,048 tokens, takes hours on two cores: it runs only where it is named.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from machine import bar, describe, save
from shapes import write_shape

GIB = 2**30
LONG = "32b-long"
#: Name: (shape, budget in GB, sequence length in tokens, pins).
CASES: dict[str, tuple[str, float, int, tuple[str, ...]]] = {
    "7b": ("qwen2.5-coder-7b", 4.0, 1024, ()),
    "7b-resident": (
        "qwen2.5-coder-7b",
        16.0,
        1024,
        (
            "engine.base_weights=stored",
            "engine.streamed_layers=0",
            "engine.kept_layers=0",
            "engine.micro_batch_rows=1",
        ),
    ),
    "32b": ("qwen2.5-coder-32b-instruct", 4.0, 512, ("lora.rank=8",)),
    LONG: ("qwen2.5-coder-32b-instruct", 4.0, 2048, ("lora.rank=8",)),
}


def step(name: str, directory: Path) -> dict[str, Any]:
    """One step of one case."""
    shape, budget, width, pins = CASES[name]
    path = write_shape(shape, directory)
    command = [sys.executable, str(Path(__file__).with_name("train_cell.py")), str(path)]
    command += ["--budget", str(budget), "--width", str(width), "--steps", "1"]
    for pin in pins:
        command += ["--set", pin]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bars_of(cases: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the rounds say of the promises."""
    found = []
    for name, rounds in cases.items():
        shape, budget, width, _ = CASES[name]
        if name == "7b-resident" or not rounds:
            continue
        peak = max(one["measured_peak_bytes"] for one in rounds) / GIB
        seconds = sorted(one["seconds"][-1] for one in rounds)
        predicted = rounds[-1]["predicted_peak_bytes"] / GIB
        resident = [one["seconds"][-1] for one in cases.get("7b-resident", [])] if name == "7b" else []
        price = f"; in memory {min(resident):.0f} s" if resident else ""
        found.append(
            bar(
                f"{shape} at 4 bits, rows of {width} tokens",
                f"{budget:g} GB of process footprint",
                "trains",
                f"peak {peak:.2f} GB (predicted {predicted:.2f}), a step of {rounds[0]['rows'] * width} tokens takes "
                f"{' and '.join(f'{one:.0f}' for one in seconds)} s{price}",
                peak <= budget,
            )
        )
    return found


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--only", "names", multiple=True, type=click.Choice(list(CASES)), help="[default: all but 32b-long]"
)
@click.option("--rounds", default=2, show_default=True)
def main(directory: Path, names: tuple[str, ...], rounds: int) -> None:
    """Train a step of every case; rounds are added to the kept ones of cases that do not run now."""
    result_file = Path(__file__).parent / "results" / "big_bases.json"
    kept = json.loads(result_file.read_text())["cases"] if result_file.exists() else {}
    machine = describe()
    chosen = names or tuple(name for name in CASES if name != LONG)
    cases: dict[str, list[dict[str, Any]]] = {
        name: kept.get(name, []) for name in CASES if name not in chosen
    }
    cases |= {name: [] for name in chosen}
    for number in range(rounds):
        for name in chosen:
            cases[name].append(step(name, directory))
            one = cases[name][-1]
            print(
                f"round {number + 1}, {name}: peak {one['measured_peak_bytes'] / GIB:.2f} GB, {one['seconds'][-1]:.0f} s",
                flush=True,
            )
            save("big_bases", {"machine": machine, "bars": bars_of(cases), "cases": cases})
    print(json.dumps(bars_of(cases), indent=1))


if __name__ == "__main__":
    main()
