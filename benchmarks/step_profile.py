"""What a training step on a CPU spends its time on: products of matrices, other work, waiting; and what hidden states on disk cost.

    python benchmarks/step_profile.py [--model DIRECTORY or SHAPE:BITS:LAYERS] [--budget 4 --budget 16] [--width 512] [--rounds 3]

The engine is given a BLAS of its own, made here by the C compiler: it counts the processor's time and the operations of every
product and hands it on to the real one. So this sees the products of real steps, forward, again and backward, with nothing
estimated, also beside other work. Streams multiply with one thread each, the one that is counted. Other processor time is
other work: floats made of quantised weights, exponentials, norms, sums. Every step is also taken with its hidden states on
disk, in turn with the plan's own way. Cost: minutes a cell, 1 GB of disk for the shape.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from forward_only import highest_footprint
from machine import bar, describe, save, spread
from memory_plan import path_of
from planned import load_planned
from sides import random_batch

from mlx_gardener.platform import blas

#: At most so much of a step may be other than products of matrices.
MOST_OTHER = 0.15
#: Ways of a step: whether its hidden states wait on disk; None as the plan has it.
WAYS: dict[str, bool | None] = {"as planned": None, "hidden states on disk": True}

_COUNTING_BLAS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <time.h>

typedef void product(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);
static _Atomic unsigned long long nanoseconds, operations;

unsigned long long product_nanoseconds(void) { return nanoseconds; }
unsigned long long product_operations(void) { return operations; }

void cblas_sgemm(int layout, int a_form, int b_form, int rows, int columns, int inner, float scale, const float *a, int a_stride,
                 const float *b, int b_stride, float kept, float *c, int c_stride)
{
    static product *real;
    struct timespec before, after;
    if (!real) real = (product *)dlsym(RTLD_NEXT, "cblas_sgemm");
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    real(layout, a_form, b_form, rows, columns, inner, scale, a, a_stride, b, b_stride, kept, c, c_stride);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    nanoseconds += (after.tv_sec - before.tv_sec) * 1000000000LL + (after.tv_nsec - before.tv_nsec);
    operations += 2ULL * rows * columns * inner;
}
"""


def counting_blas(directory: Path) -> Path:
    """A library in ``directory`` that counts products of matrices and hands them on to the fast BLAS of this process.

    Raises:
        click.ClickException: there is no fast BLAS, or no C compiler.
    """
    real = blas.preload().path
    if real is None:
        raise click.ClickException(f"There is no fast BLAS to be looked at: {blas.state().reason}.")
    source, library = directory / "counting.c", directory / "libcounting.so"
    source.write_text(_COUNTING_BLAS, encoding="utf-8")
    # Linked against the real one, so that whoever opens this finds its other functions too.
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    command += ["-Wl,--no-as-needed", real, f"-Wl,-rpath,{Path(real).parent}", "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise click.ClickException("There is no C compiler (cc); install one.") from error
    if done.returncode:
        raise click.ClickException(f"The counting BLAS cannot be compiled: {done.stderr.strip()}")
    return library


def one_cell(model: str, budget: float, width: int, rounds: int) -> dict[str, Any]:
    """Both ways of a plan's steps in this process, whose BLAS counts; a step of each is not counted."""
    library = ctypes.CDLL(blas.state().path)
    for name in ("product_nanoseconds", "product_operations"):
        getattr(library, name).restype = ctypes.c_ulonglong
    path = Path(path_of(model))
    _, _, engine, weights, vocab = load_planned(path, width, memory_limit_gb=budget)
    planned = engine.plan
    rows = planned.rows_of_width[width]
    if rows < planned.cpu_streams:
        raise click.ClickException(
            f"{rows} rows at once on {planned.cpu_streams} streams: products on several threads are not counted whole. "
            "Choose a smaller --width or a larger --budget."
        )
    batch = random_batch(rows, width, vocab)
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, on_disk in WAYS.items():
            engine.plan = planned if on_disk is None else replace(planned, states_on_disk=on_disk)
            engine.plan.set_limits()
            with highest_footprint() as highest:
                used = resource.getrusage(resource.RUSAGE_SELF)
                products, operations = library.product_nanoseconds(), library.product_operations()
                began = time.perf_counter()
                engine.loss_and_gradients(weights, batch, seed=0)
                seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
            if number == 0:
                continue
            product_seconds = (library.product_nanoseconds() - products) / 1e9
            processor = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
            seen[way].append(
                {
                    "seconds": seconds,
                    "tokens_per_second": rows * width / seconds,
                    "products": product_seconds / processor,
                    "other_work": 1 - product_seconds / processor,
                    "idle": max(0.0, 1 - processor / (seconds * planned.cpu_streams)),
                    "product_gflops": (library.product_operations() - operations) / product_seconds / 1e9,
                    "peak_mb": highest() / 1e6,
                }
            )
            print(f"{way}: {json.dumps(seen[way][-1])}", file=sys.stderr, flush=True)
    return {
        "model": path.name,
        "budget_gb": budget,
        "rows": rows,
        "width": width,
        "plan": {
            name: value for name, value in planned.to_json().items() if not name.startswith("predicted")
        },
        "ways": {
            way: {name: spread([one[name] for one in steps]) for name in steps[0]}
            for way, steps in seen.items()
        },
    }


def bars_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the cells say."""
    found = []
    for cell in cells:
        step, on_disk = (cell["ways"][way] for way in WAYS)
        where = f"{cell['model']}, {cell['rows']} x {cell['width']}, {cell['budget_gb']:g} GB"
        other = step["other_work"]["median"]
        found.append(
            bar(
                f"other work than products of matrices, {where}",
                "the processors' time of a step",
                f"<= {MOST_OTHER:.0%}",
                f"{other:.0%}; of {step['seconds']['median']:.1f} s a step {step['idle']['median']:.0%} idle, "
                f"products at {step['product_gflops']['median']:.0f} GFLOP/s a stream",
                other <= MOST_OTHER,
            )
        )
        found.append(
            bar(
                f"a step with hidden states on disk, {where}",
                "the same step with them in memory",
                "said",
                f"{on_disk['seconds']['median'] / step['seconds']['median']:.2f}x as long, "
                f"at {on_disk['peak_mb']['median'] / step['peak_mb']['median']:.2f} of the peak",
                None,
            )
        )
    return found


@click.command()
@click.option("--model", "models", multiple=True, default=("qwen2.5-coder-1.5b:4:28",), show_default=True)
@click.option("--budget", "budgets", multiple=True, type=float, default=(4.0, 16.0), show_default=True)
@click.option("--width", type=int, default=512, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--cell", hidden=True, help="Measure this one in a process with a counting BLAS.")
@click.option("--out", default="step_profile", show_default=True, help="Name of the result file.")
def main(
    models: tuple[str, ...], budgets: tuple[float, ...], width: int, rounds: int, cell: str | None, out: str
) -> None:
    """Measure every cell and write the result."""
    if cell is not None:
        print(json.dumps(one_cell(cell, budgets[0], width, rounds)))
        return
    machine, cells = describe(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"MLX_GARDENER_BLAS": str(counting_blas(Path(directory)))}
        for model in models:
            for budget in budgets:
                command = [sys.executable, __file__, "--cell", model, "--budget", str(budget)]
                command += ["--width", str(width), "--rounds", str(rounds)]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                cells.append(json.loads(done.stdout.splitlines()[-1]))
                save(out, {"machine": machine, "bars": bars_of(cells), "cells": cells})
    print(json.dumps(bars_of(cells), indent=1))


if __name__ == "__main__":
    main()
