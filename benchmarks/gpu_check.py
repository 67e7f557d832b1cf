"""Whether the engine does on this machine's GPU what it does on a CPU, in under eight minutes.

    scripts/gpu-check [--quick] [--minutes 8]

In turn, each in a process of its own that may fail or die without ending the others:

1. *gradients*: of small models of some kinds, by every way the engine has (whole, recomputed, products kept, in tiles, attention in
   blocks, hidden states on disk), on the GPU against the CPU's whole graph;
2. *budget*: real shapes with random weights at 4 bits take steps under budgets; footprint against budget and against forecast;
3. *speed*: loss-bearing tokens a second of mlx_gardener and of `mlx_lm.lora` with and without checkpointing, same documents.

Writes ``results/gpu_check-BACKEND-DATE.json`` after every part. Ends with 1 where a gradient is wrong, a budget was broken, or
a part failed; parts that the time did not reach are named. ``--quick`` takes the embedded model and short rows: under a
minute of a CPU with `--minutes 2`, which is how a test sees that the script works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from machine import describe, save
from own_code import own_documents
from quantized import SHAPES
from shapes import write_shape

from mlx_gardener.model import load_tokenizer, seedling_path

HERE = Path(__file__).parent
#: Share of its largest entry by which a gradient may differ: GPUs multiply float32 in fewer bits (TF32 has ten).
TOLERANCE = 2e-2
#: Ways of a step, by the plan's fields, on models of four layers and rows of 48 tokens.
WAYS: dict[str, dict[str, Any]] = {
    "recomputed": {},
    "activations kept": {"kept_layers": 4},
    "products kept": {"kept_products": 4, "attention_block": 16},
    "tiles": {"tile_tokens": 20, "attention_block": 16},
    "hidden states on disk": {"states_on_disk": True},
}
KINDS = ("llama", "qwen2", "gemma3_text", "qwen3_moe")
#: (shape, budget in GB, tokens of a row)
CELLS = (
    ("qwen2.5-coder-0.5b", 2.0, 512),
    ("qwen2.5-coder-1.5b", 4.0, 2048),
    ("qwen2.5-coder-1.5b", 4.0, 8192),
)
SPEED_SHAPE, SPEED_WIDTH, SPEED_BUDGET = "qwen2.5-coder-0.5b", 512, 4.0


def gradients() -> dict[str, Any]:
    """For every kind and way the largest difference from the CPU's whole graph, as a share of the largest entry."""
    import mlx.core as mx
    import numpy as np

    sys.path.insert(0, str(HERE.parent))
    from mlx_gardener.dataset import Batch
    from mlx_gardener.engine import Engine, Plan, PredictedParts
    from mlx_gardener.engine.verify import largest_difference
    from tests.engine.zoo import VOCAB, tiny_model, with_adapters

    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 49)).astype(np.int32)
    mask = np.ones(tokens.shape, dtype=bool)
    mask[:, 0] = False
    batch = Batch(tokens, mask, np.ones_like(tokens), int(mask.sum()), 0, mask.sum(axis=1), ("", ""))
    gpu, found = mx.default_device(), dict[str, float]()
    for kind in KINDS:
        mx.set_default_device(mx.cpu)
        model = tiny_model(kind)
        weights = with_adapters(model)

        def engine(model: Any = model, **fields: Any) -> Engine:
            plan = Plan({49: 2}, 2**33, 0, PredictedParts(), (), loss_slice_tokens=32, **fields)
            return Engine(model, plan, dtype=mx.float32)

        whole = engine()
        whole.take_whole("to compare")
        expected = whole.loss_and_gradients(weights, batch, seed=0).gradients
        mx.eval(expected)
        mx.set_default_device(gpu)
        for way, fields in WAYS.items():
            result = engine(**fields).loss_and_gradients(weights, batch, seed=0)
            found[f"{kind}, {way}"] = largest_difference(result.gradients, expected)
    return {"device": str(gpu), "differences": found, "tolerance": TOLERANCE}


def report_of(command: list[str], seconds: float) -> dict[str, Any]:
    """What a process reported in its last line, or how it ended."""
    if seconds < 10:
        return {"not_reached": "no time was left"}
    with tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=said, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"not_reached": f"not done after {seconds:.0f} s"}
        said.seek(0)
        text = said.read()
    try:
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"failed": f"exit code {done.returncode}", "said": text[-1500:]}
    return told


def parts(*, quick: bool, scratch: Path, seconds: float) -> list[tuple[str, list[str]]]:
    """(name, command) of every part, the most telling first."""
    script = [sys.executable, str(HERE / "gpu_check.py"), "--part", "gradients"]
    ours = [sys.executable, str(HERE / "train_cell.py")]
    theirs = [sys.executable, str(HERE / "mlx_lm_side.py")]
    model = str(seedling_path() if quick else write_shape(SPEED_SHAPE, SHAPES, bits=4))
    width = 64 if quick else SPEED_WIDTH
    chosen, longest = own_documents(load_tokenizer(seedling_path()), width, 8 if quick else 64)
    documents = scratch / "documents.json"
    documents.write_text(json.dumps({"documents": chosen, "longest": longest}), encoding="utf-8")
    limit = ["--passes", "1" if quick else "2", "--seconds", str(seconds / 10)]
    of_documents = ["--documents", str(documents), "--width", str(width), *limit]
    cells = (
        [(model, 1.0, 64)] if quick else [(str(write_shape(n, SHAPES, bits=4)), b, w) for n, b, w in CELLS]
    )
    return [
        ("gradients", script),
        *(
            (f"budget: {Path(path).name}, {budget:g} GB, {wide} tokens", [*ours, path, "--budget", str(budget), "--width", str(wide)])
            for path, budget, wide in cells
        ),
        ("speed: mlx_gardener", [*ours, model, "--budget", str(SPEED_BUDGET), *of_documents]),
        ("speed: mlx_lm.lora", [*theirs, model, *of_documents]),
        ("speed: mlx_lm.lora --grad-checkpoint", [*theirs, model, *of_documents, "--grad-checkpoint"]),
    ]  # fmt: skip


def verdict(name: str, report: dict[str, Any]) -> tuple[bool | None, str]:
    """Whether a part is as it should be, None where nothing decides; and what it showed, in words."""
    for key in ("failed", "not_reached", "refused", "out_of_memory"):
        if report.get(key):
            return (
                False if key in ("failed", "refused") else None
            ), f"{key.replace('_', ' ')}: {report[key]}"
    if name == "gradients":
        worst = max(report["differences"].values())
        return worst <= report["tolerance"], f"{report['device']}: differ by {worst:.1e} at most"
    peak = report["measured_peak_bytes"]
    if name.startswith("budget"):
        budget = report["plan"]["budget_bytes"]
        share = peak / report["predicted_peak_bytes"]
        speed = report["tokens_per_second"]
        return (
            peak <= budget,
            f"peak {peak / 2**30:.2f} GB, {share:.2f} of the forecast, {speed:,.0f} tokens/s",
        )
    steps = report["seconds"][report["first_steps"] :]
    if not steps:
        return None, "not reached: no step after the first ones ended in time"
    tokens = report["loss_tokens_per_pass"] * len(steps) / report["steps_per_pass"]
    return None, f"{tokens / max(1e-9, sum(steps)):,.0f} loss-bearing tokens/s, peak {peak / 2**30:.2f} GB"


@click.command()
@click.option(
    "--quick", is_flag=True, help="The embedded model and short rows, to see that the script works."
)
@click.option("--minutes", default=8.0, show_default=True, help="Begin nothing that would end later.")
@click.option("--out", help="Name of the result file.  [default: gpu_check-BACKEND-DATE]")
@click.option("--part", type=click.Choice(["gradients"]), hidden=True)
def main(quick: bool, minutes: float, out: str | None, part: str | None) -> None:
    """Check, write the result, and say it."""
    if part:
        print(json.dumps(gradients()))
        return
    began, machine = time.monotonic(), describe()
    name = out or f"gpu_check-{machine['backend']}-{machine['date']}"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for part_name, command in parts(quick=quick, scratch=Path(scratch), seconds=60 * minutes):
            report = report_of(command, 60 * minutes - (time.monotonic() - began))
            is_right, said = verdict(part_name, report)
            found[part_name] = {"right": is_right, "said": said, "report": report}
            print(f"{ {True: 'yes', False: 'NO', None: '-'}[is_right]:4}{part_name}: {said}", flush=True)
            file = save(name, {"machine": machine, "quick": quick, "parts": found})
    print(f"\n{file}")
    sys.exit(any(one["right"] is False for one in found.values()))


if __name__ == "__main__":
    main()
