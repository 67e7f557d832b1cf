"""One training step at a 0.5B shape by other MLX trainers and by ours: peak memory beyond the weights, and speed, in one table.

    python benchmarks/against_trainers.py [--rounds 3] [--only ours,gmlx] [--tiny]

The work is that of `against_mlx_lm.py`: hidden 896, vocabulary 151,936, 8 layers, float32, 4 x 512 tokens, LoRA of rank 8 and
scale 20 on all linear modules, the same weights, adapters, tokens and BLAS. Each trainer is the release pinned here, in a virtual
environment of its own below ``--environments``, since their pins of mlx disagree; the command makes what is missing, and fetches
some hundred MB for it. Each trains by its own loop and functions (`trainer_side.py`) at its settings for least memory and at those
for most speed. Sides run in turn, each a process of its own, for two steps of plain gradient descent: the second is timed, the
peak is that of both, and the loss of the second agrees between sides only where the gradients of the first did. What does not
run on this machine has a row with its reason. Takes 1 to 3 minutes and 1 to 9 GB a side and round on two free cores.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mlx_gardener.platform import blas, graph_order  # preloads the BLAS, for our sides

HERE = Path(__file__).parent
SHAPE = {"layers": 8, "hidden": 896, "vocab": 151936, "rows": 4, "width": 512}
TINY = {"layers": 2, "hidden": 64, "vocab": 512, "rows": 4, "width": 32}
LORA = {"rank": 8, "scale": 20.0, "learning_rate": 0.1}
#: How far losses of the same work may lie apart.
LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Trainer:
    """A release of another trainer.

    Attributes:
        packages: installed with what they require.
        alone: installed without; they require what training does not import, torch or sound for example.
        settings: for `trainer_side.py`, by name.
    """

    packages: tuple[str, ...]
    alone: tuple[str, ...]
    settings: dict[str, dict[str, Any]]


def _mlx(version: str) -> str:
    """MLX's wheel with the backend of this system."""
    return f"mlx[cpu]=={version}" if sys.platform.startswith("linux") else f"mlx=={version}"


TRAINERS = {
    "mlx-lm-lora": Trainer(
        (_mlx("0.32.4"), "mlx-lm-lora==5.10.2"),
        (),
        {
            # One row at a time, gradients summed over four: what all of them offer for less memory.
            "memory": {"rows_at_once": 1, "checkpoint": True, "loss": "chunked_nll"},
            "speed": {"rows_at_once": 4, "checkpoint": False, "loss": "nll"},
        },
    ),
    "mlx-train-perf": Trainer(
        (_mlx("0.32.0"), "mlx-train-perf[mlx-lm]==0.9.1"),
        (),
        {
            # Its kernels for attention and for the loss are Metal's; "chunked" is its own way without them.
            "memory": {"rows_at_once": 1, "checkpoint": True, "loss": "chunked"},
            "speed": {"rows_at_once": 4, "checkpoint": False, "loss": "naive"},
        },
    ),
    "gmlx": Trainer(
        (_mlx("0.32.4"), "mlx-lm==0.32.2", "gguf"),
        (*(("mlx-kquant==0.5.6",) if sys.platform == "darwin" else ()), "gmlx==0.5.3"),
        {
            "memory": {"rows_at_once": 1, "checkpoint": True, "blocked_attention": True},
            "speed": {"rows_at_once": 4, "checkpoint": False, "blocked_attention": False},
        },
    ),
    "unsloth-zoo": Trainer(
        (_mlx("0.32.4"), "mlx-lm==0.32.2", "packaging", "psutil", "tqdm"),
        ("unsloth-zoo==2026.10.9",),
        {
            "memory": {"rows_at_once": 1, "checkpoint": True, "loss": "chunked"},
            "speed": {"rows_at_once": 4, "checkpoint": False, "loss": "chunked"},
        },
    ),
}
OURS = ("ours, lean", "ours, fast")
SIDES = (*OURS, *(f"{name}, {setting}" for name, one in TRAINERS.items() for setting in one.settings))


def our_side(name: str, work: dict[str, Any]) -> dict[str, Any]:
    """Two steps of ours in this process."""
    import time

    import mlx.core as mx
    from against_mlx_lm import IN_BLOCKS
    from against_mlx_lm import OURS as PLANS
    from half_billion import half_billion_shape, set_first_adapters
    from mlx.utils import tree_flatten
    from sides import random_batch

    from mlx_gardener.config import LoraConfig
    from mlx_gardener.engine import Engine, Plan, PredictedParts
    from mlx_gardener.model.exponentials import use_in_models
    from mlx_gardener.model.lora import attach_lora, lora_parameters

    use_in_models()  # as where a base is loaded
    width, settings = work["width"], {**IN_BLOCKS, **PLANS[name.partition(", ")[2]]}
    if "kept_layers" in settings:
        settings["kept_layers"] = work["layers"]
    model = half_billion_shape(work["layers"], hidden=work["hidden"], vocab=work["vocab"])
    weight_bytes = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    attach_lora(model, LoraConfig(rank=work["rank"], scale=work["scale"]), seed=0)
    set_first_adapters(model)
    weights = lora_parameters(model)
    batch = random_batch(work["rows"], width, work["vocab"])
    plan = Plan({width: 2}, 2**33, 0, PredictedParts(), (), cpu_streams=2, **settings)  # type: ignore[arg-type]
    mx.set_cache_limit(512 * 2**20)
    engine = Engine(model, plan, dtype=mx.float32)
    mx.reset_peak_memory()
    losses, clocks = [], []
    for _ in range(2):
        begun = time.perf_counter(), time.process_time()
        result = engine.loss_and_gradients(weights, batch, seed=0)
        rate = work["learning_rate"] / result.tokens
        weights = {key: value - rate * result.gradients[key] for key, value in weights.items()}
        mx.eval(weights)
        losses.append(result.loss_sum / result.tokens)
        clocks.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return {
        "loss_before": losses[0],
        "loss": losses[1],
        "first_seconds": clocks[0][0],
        "seconds": clocks[1][0],
        "processor_seconds": clocks[1][1],
        "tokens_per_second": work["rows"] * width / clocks[1][0],
        "peak_beyond_weights_mib": (mx.get_peak_memory() - weight_bytes) / 2**20,
    }


def environment(name: str, below: Path) -> tuple[Path | None, str]:
    """The Python of a trainer's environment, which is made where it is missing or of other pins; or None, and why."""
    trainer, folder = TRAINERS[name], below / name
    python, done = folder / "bin" / "python", folder / "installed.json"
    pins = [list(trainer.packages), list(trainer.alone)]
    if done.exists() and json.loads(done.read_text(encoding="utf-8")) == pins:
        return python, ""
    print(f"making the environment of {name}: {', '.join(trainer.packages + trainer.alone)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile"]
    for some in (trainer.packages, ("--no-deps", *trainer.alone) if trainer.alone else ()):
        if not some:
            continue
        ended = subprocess.run([*install, *some], capture_output=True, text=True)
        if ended.returncode:
            return None, "cannot be installed here: " + _reason(ended.stderr)
    done.write_text(json.dumps(pins) + "\n", encoding="utf-8")
    return python, ""


def _reason(errors: str) -> str:
    """The line of a failed process's errors that says most: its last error, or else its last line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if "error" in line.lower() and "See above" not in line]
    return (named or lines or ["no message"])[-1]


def one_side(name: str, work: dict[str, Any], environments: Path, *, tiny: bool) -> dict[str, Any]:
    """What a side reported, from a process of its own; ``failed`` where it has no figures."""
    if name in OURS:
        command = [sys.executable, __file__, "--side", name, *(["--tiny"] if tiny else [])]
    else:
        trainer, _, setting = name.partition(", ")
        python, why = environment(trainer, environments)
        if python is None:
            return {"failed": why}
        request = {
            "trainer": trainer,
            "setting": TRAINERS[trainer].settings[setting],
            "blas": blas.state().path,
            "work": work,
        }
        command = [str(python), str(HERE / "trainer_side.py"), json.dumps(request)]
    surroundings = dict(os.environ)
    if name not in OURS and surroundings.get("MLX_BFS_MAX_WIDTH") == str(graph_order.WIDTH):
        del surroundings["MLX_BFS_MAX_WIDTH"]  # ours, set at import
    ended = subprocess.run(command, capture_output=True, text=True, env=surroundings)
    if ended.returncode < 0:
        return {"failed": f"killed by signal {-ended.returncode}"}  # 9 where memory ran out
    if ended.returncode:
        return {"failed": _reason(ended.stderr)}
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


COLUMNS = {
    "peak_beyond_weights_mib": ("peak beyond weights (MiB)", ".0f"),
    "seconds": ("seconds", ".2f"),
    "processor_seconds": ("processor seconds", ".2f"),
    "tokens_per_second": ("tokens/s", ".1f"),
    "loss_before": ("loss, first step", ".4f"),
    "loss": ("loss, second step", ".4f"),
}


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a side, its medians or why it has none."""
    titles = ["trainer, setting", *(title for title, _ in COLUMNS.values())]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for name, one in figures.items():
        if "failed" in one:
            lines.append(f"| {name} | does not run here: {one['failed']} |" + " |" * (len(COLUMNS) - 1))
        else:
            cells = (format(one[key]["median"], form) for key, (_, form) in COLUMNS.items())
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bars(figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours against each trainer: lean under its lowest peak, and fast above its highest speed."""
    from machine import bar

    rows: list[dict[str, Any]] = []
    if any("failed" in figures.get(name, {"failed": ""}) for name in OURS):
        return rows
    lean, fast = figures[OURS[0]]["peak_beyond_weights_mib"], figures[OURS[1]]["tokens_per_second"]
    for trainer in TRAINERS:
        theirs = [one for name, one in figures.items() if name.startswith(trainer) and "failed" not in one]
        if not theirs:
            continue
        peak = min(one["peak_beyond_weights_mib"]["median"] for one in theirs)
        speed = max(one["tokens_per_second"]["median"] for one in theirs)
        rows.append(
            bar(
                "peak beyond weights and tokens/s, 0.5B shape, 4 x 512",
                f"{trainer}, the best of each over its settings",
                "lean's peak lower, fast's tokens/s higher",
                f"{lean['median']:.0f} against {peak:.0f} MiB, {fast['median']:.1f} against {speed:.1f} tokens/s",
                lean["median"] < peak and fast["median"] > speed,
            )
        )
    return rows


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", default="", help="Sides or trainers, with commas between: ours,gmlx.")
@click.option(
    "--tiny", is_flag=True, help="A shape of seconds, to see that all sides run; nothing is written."
)
@click.option(
    "--environments",
    type=click.Path(file_okay=False, path_type=Path),
    default=HERE.parent / ".venv-trainers",
    help="Where the trainers' environments are, or are made.",
)
@click.option("--side", type=click.Choice(OURS), hidden=True)
def main(rounds: int, only: str, tiny: bool, environments: Path, side: str | None) -> None:
    """Run all sides in turn, print the table and write the result."""
    work = (TINY if tiny else SHAPE) | LORA
    if side:
        print(json.dumps(our_side(side, work)))
        return
    from machine import describe, save
    from sides import spreads

    wanted = [part.strip() for part in only.split(",") if part.strip()]
    sides = [name for name in SIDES if not wanted or name.partition(", ")[0] in wanted]
    machine = describe()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides:
            if any("failed" in one for one in found[name]):
                continue  # it would again
            one = one_side(name, work, environments.absolute(), tiny=tiny)
            found[name].append(one)
            shown = ", ".join(
                f"{key} {value:.6g}" if isinstance(value, float) else value for key, value in one.items()
            )
            print(f"round {number + 1} of {rounds}, {name}: {shown}", flush=True)
    failed = {
        name: {"failed": one["failed"]} for name, ones in found.items() for one in ones if "failed" in one
    }
    figures = spreads({name: ones for name, ones in found.items() if name not in failed})
    figures = {name: failed.get(name) or figures[name] for name in sides}
    for key in ("loss_before", "loss"):
        losses = [one[key]["median"] for one in figures.values() if "failed" not in one]
        if losses and max(losses) - min(losses) > LOSS_TOLERANCE:
            print(
                f"{key} differs by {max(losses) - min(losses):.2g} between sides: not all did the same work"
            )
    print(table(figures))
    result = {
        "machine": machine,
        "releases": {name: [*one.packages, *one.alone] for name, one in TRAINERS.items()},
        "settings": {name: one.settings for name, one in TRAINERS.items()},
        "bars": bars(figures),
        "sides": figures,
    }
    print(json.dumps(result["bars"], indent=1))
    if not tiny:
        print("wrote", save("against_trainers", result))


if __name__ == "__main__":
    main()
