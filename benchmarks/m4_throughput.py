"""Tokens a second, peak memory and energy of a LoRA training on this machine: mlx_gardener against `mlx_lm.lora`.

    python benchmarks/m4_throughput.py [--yes] [--shapes] [--quick] [--minutes 14]

For owners of an M4 Mac (any machine will do); never longer than --minutes once the models are there. The recommended
models are measured smallest first, all sides of a model in turn, each in a process of its own, in rounds until the time
is up; what does not fit is left out and named. All sides train the same adapters on the same documents, functions and
classes of this repository: mlx_gardener within a memory budget, rows packed; mlx-lm four rows at a time, padded.
Writes ``results/m4_throughput-CHIP-DATE.json``, ``.md`` and ``.svg``. How to read and contribute: ``docs/benchmarks.md``.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
from energy import Energy, start_energy
from m4_machine import machine_facts
from m4_models import NAMES, QUICK_LAYERS, QUICK_SHAPE, MeasuredModel, random_model, real_models, shape_name
from m4_report import OURS, SIDES, loss_share, loss_tokens_per_second, picture, summary, table
from machine import RESULTS
from own_code import own_documents
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from sides_in_time import TimePlan, run_side

from mlx_gardener.errors import GardenerError
from mlx_gardener.model import load_tokenizer
from mlx_gardener.model.choose import SEEDLING
from mlx_gardener.platform.thermal import thermal_state
from mlx_gardener.report.text import duration, gigabytes, safe_text

BATCH, DOCUMENTS = 4, 32
#: What starting a process and loading a model weighs beside its bytes, when time is shared out (judgement).
START_WEIGHS_BYTES = 2**30
#: What a round may take of the time left, where others are to follow: one good look at all models comes first.
ROUND_SHARE = 0.7
#: What is kept of a side's report.
KEPT = (
    "seconds", "positions", "losses", "first_steps", "steps_per_pass", "positions_per_pass", "loss_tokens_per_pass",
    "measured_peak_bytes", "peak_active_bytes", "predicted_peak_bytes", "predicted_tokens_per_second", "rows_at_once",
    "plan", "wall_seconds", "failed", "out_of_memory", "unfinished",
)  # fmt: skip


@dataclass
class Session:
    """A run of the benchmark: its settings, and what it has seen so far."""

    settings: dict[str, Any]
    plan: TimePlan
    energy: Energy
    console: Console
    scratch: Path
    cells: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def side_command(side: str, model: MeasuredModel, documents: Path, settings: dict[str, Any]) -> list[str]:
    """What starts a side as a process, without its time."""
    here, width = Path(__file__).parent, str(settings["width"])
    shared = ["--documents", str(documents), "--width", width, "--passes", "2"]
    if side == OURS:
        chosen = {
            "lora.rank": 8,
            "lora.scale": 20,
            "optimizer.name": "adam",
            "optimizer.tokens_per_update": settings["batch"] * settings["width"],
        }
        pins = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        budget = ["--budget", str(settings["budget_gb"])]
        return [sys.executable, str(here / "train_cell.py"), str(model.path), *shared, *budget, *pins]
    command = [sys.executable, str(here / "mlx_lm_side.py"), str(model.path), *shared]
    command += ["--batch", str(settings["batch"])]
    command += ["--grad-checkpoint"] if side == SIDES[2] else []
    return [*command, "--float32"] if settings["mlx_lm_in_float32"] else command


def measure(session: Session, models: list[MeasuredModel], progress: Progress) -> None:
    """All rounds, as far as the time goes; what is seen is in the session at once."""
    rounds, plan = session.settings["rounds"], session.plan
    sizes = {model.name: model.size_bytes for model in models}
    documents = {model.name: _write_documents(session, model) for model in models}
    show = _Display(progress, plan)
    for number in range(rounds):
        later_rounds = [(model.name, side) for model in models for side in SIDES] * (rounds - number - 1)
        round_end = time.monotonic() + plan.left() * (ROUND_SHARE if later_rounds else 1.0)
        order = SIDES if number % 2 == 0 else SIDES[::-1]  # no side always has the cooler machine
        for at, model in enumerate(models):
            sides = [side for side in order if not _has_failed(session, model.name, side)]
            expected = plan.expected_least(model.name, sides, sizes)
            if expected > plan.left() or plan.left() <= 1:
                session.skipped.append(_too_long(number, model, plan, expected))
                _say(session, f"Left out: {session.skipped[-1]}.")
                continue
            rest_of_round = [(other.name, side) for other in models[at + 1 :] for side in order]
            for place, side in enumerate(sides):
                in_round = [(model.name, one) for one in sides[place:]] + rest_of_round
                weights = [sizes[name] + START_WEIGHS_BYTES for name, _ in in_round]
                share = max(0.0, round_end - time.monotonic()) * weights[0] / sum(weights)
                title = f"round {number + 1} of {rounds}, {model.name.rpartition('/')[2]}, {side}"
                show(title, in_round + later_rounds)
                report = _run(session, model, side, documents[model.name], share, partial(show.step, title))
                session.cells.append({"round": number + 1, "model": model.name, "side": side, **report})
                left = duration(plan.forecast(in_round[1:] + later_rounds))
                _say(session, f"{title}: {_in_words(report)}; about {left} left")


class _Display:
    """The progress bar: what is measured now, how much of the time is gone, how much is to come."""

    def __init__(self, progress: Progress, plan: TimePlan) -> None:
        self.progress, self.plan = progress, plan
        self.began = time.monotonic()
        self.task = progress.add_task("", total=plan.left(), left="")

    def __call__(self, title: str, to_come: list[tuple[str, str]]) -> None:
        """A cell begins."""
        seconds, gone = self.plan.forecast(to_come), time.monotonic() - self.began
        words = {"description": safe_text(title), "left": duration(seconds)}
        self.progress.update(self.task, completed=gone, total=gone + seconds, **words)

    def step(self, title: str, words: str) -> None:
        """A side made a step."""
        gone = time.monotonic() - self.began
        self.progress.update(self.task, completed=gone, description=safe_text(f"{title}: {words}"))


def _say(session: Session, text: str) -> None:
    session.console.print(safe_text(text), highlight=False, markup=False, soft_wrap=True)


def _too_long(number: int, model: MeasuredModel, plan: TimePlan, expected: float) -> str:
    needed = f" and it takes about {duration(expected)} at least" if expected else ""
    return f"round {number + 1} of {model.name}, as {duration(max(0.0, plan.left()))} were left{needed}"


def _run(
    session: Session,
    model: MeasuredModel,
    side: str,
    documents: Path,
    share: float,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """One cell: its report, with energy."""
    limit = session.plan.limit(share)
    command = [*side_command(side, model, documents, session.settings), "--seconds", f"{share:.1f}"]
    report = run_side(command, limit=limit, on_step=on_step, cut_short=limit >= session.plan.left() - 1)
    session.plan.learn((model.name, side), report)
    kept = {key: report[key] for key in KEPT if report.get(key) is not None}
    if "losses" in kept:
        kept["losses"] = [round(loss, 5) if math.isfinite(loss) else None for loss in kept["losses"]]
    if "failed" not in report and len(report.get("seconds", ())) > 1:
        joules = session.energy.between(report["measured_from"], report["measured_to"])
        if joules is not None:
            tokens = loss_share(report) * sum(report["positions"][1:])
            kept["joules_per_1000_loss_tokens"] = round(1000 * joules / tokens, 3)
    kept["thermal_after"] = thermal_state()
    return kept


def _has_failed(session: Session, model: str, side: str) -> bool:
    return any(cell["model"] == model and cell["side"] == side and "failed" in cell for cell in session.cells)


def _in_words(report: dict[str, Any]) -> str:
    for word in ("failed", "unfinished"):
        if word in report:
            return f"{word}: {safe_text(report[word])}"
    peak = gigabytes(report["measured_peak_bytes"])
    return f"{loss_tokens_per_second(report):.1f} tokens/s, peak {peak}, {duration(report['wall_seconds'])}"


def _write_documents(session: Session, model: MeasuredModel) -> Path:
    """This repository's code in the model's tokens, as the sides read it."""
    width = session.settings["width"]
    documents, longest = own_documents(load_tokenizer(model.path), width, DOCUMENTS)
    file = session.scratch / f"documents-{len(list(session.scratch.glob('documents-*')))}.json"
    file.write_text(json.dumps({"documents": documents, "longest": longest}), encoding="utf-8")
    session.settings.setdefault("documents", {})[model.name] = {
        "count": len(documents),
        "lengths": sorted(len(tokens) for tokens in documents),
        "loss_tokens": sum(len(tokens) - 1 for tokens in documents),
    }
    return file


def models_to_measure(
    session: Session, names: tuple[str, ...], *, shapes: bool, quick: bool, yes: bool, scratch: Path
) -> list[MeasuredModel]:
    """The models on disk; writing random ones counts as time, fetching real ones does not."""

    def random(name: str, *, layers: int | None = None, bits: int = 4) -> MeasuredModel:
        _say(session, f"Random weights of {shape_name(name)} ...")
        path = random_model(shape_name(name), scratch, seconds=session.plan.left(), layers=layers, bits=bits)
        return MeasuredModel(path.name, path, "random")

    say = partial(_say, session)
    if quick:
        dense = 0 if session.settings["mlx_lm_in_float32"] else 4  # 4-bit products take minutes on a CPU
        seedling = real_models((SEEDLING,), agreed=True, say=say) or []
        return [*seedling, random(QUICK_SHAPE, layers=QUICK_LAYERS, bits=dense)]
    minutes = session.plan.end - time.monotonic()
    found = None if shapes else real_models(names or NAMES, agreed=yes, say=say)
    session.plan.end = time.monotonic() + minutes
    if found is not None:
        return found
    if names:
        raise click.ClickException("These models are not at hand; see above.")
    if not shapes:
        say("So random weights of the same shapes are measured, which compute as fast.")
    made: list[MeasuredModel] = []
    for name in NAMES:
        try:
            made.append(random(name))
        except GardenerError as error:
            session.skipped.append(f"{name}: {error}".rstrip("."))
            say(session.skipped[-1])
    return made


def write_result(session: Session, models: list[MeasuredModel], machine: dict[str, Any], to: Path) -> Path:
    """The JSON file, and beside it the table and the picture."""
    chip = re.sub(r"[^a-z0-9]+", "-", machine["chip"].lower()).strip("-")
    name = f"m4_throughput-{chip}-{machine['date']}" + ("-quick" if session.settings["quick"] else "")
    result = {
        "name": name,
        "machine": machine | {"thermal_after": thermal_state()},
        "settings": session.settings,
        "models": [
            {"name": one.name, "weights": one.weights, "revision": one.revision, "bytes": one.size_bytes}
            for one in models
        ],
        "energy": {"source": session.energy.source, "unavailable": session.energy.unavailable},
        "summary": summary(session.cells, [one.name for one in models]),
        "skipped": session.skipped,
        "cells": session.cells,
    }
    to.mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        (".json", json.dumps(result, indent=1, allow_nan=False) + "\n"),
        (".md", table(result)),
        (".svg", picture(result)),
    ):
        beside = to / f".{name}{suffix}"
        beside.write_text(text, encoding="utf-8")
        beside.replace(to / f"{name}{suffix}")
    return to / f"{name}.json"


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1), default=14.0, show_default=True, help="Never longer.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="At most.")
@click.option("--budget", type=click.FloatRange(0.1), default=4.0, show_default=True, help="Ours, in GB.")
@click.option("--width", type=click.IntRange(64), help="Tokens of a row. [default: 512, with --quick 256]")
@click.option("--model", "names", multiple=True, help="Instead of the recommended: hub id, directory.")
@click.option("--shapes", is_flag=True, help="Random weights of the recommended models; no hub is needed.")
@click.option("--quick", is_flag=True, help="The embedded model and a small shape: does it work here?")
@click.option("--yes", is_flag=True, help="Fetch models without asking.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=RESULTS)
@click.option("--scratch", type=click.Path(file_okay=False, path_type=Path), help="Where random models go.")
def main(
    minutes: float,
    rounds: int,
    budget: float,
    width: int | None,
    names: tuple[str, ...],
    shapes: bool,
    quick: bool,
    yes: bool,
    output: Path,
    scratch: Path | None,
) -> None:
    """Measure, and write the result."""
    plan = TimePlan(time.monotonic() + 60 * minutes)
    console = Console(stderr=True)
    machine = machine_facts()
    settings: dict[str, Any] = {
        "minutes": minutes,
        "rounds": rounds,
        "budget_gb": budget,
        "batch": BATCH,
        "width": width or (256 if quick else 512),
        "quick": quick,
        "mlx_lm_in_float32": machine["backend"] == "cpu",
    }
    random_models = scratch or Path(tempfile.gettempdir()) / "mlx_gardener_shapes"
    with tempfile.TemporaryDirectory() as own:
        session = Session(settings, plan, start_energy(), console, Path(own))
        try:
            models = models_to_measure(
                session, names, shapes=shapes, quick=quick, yes=yes, scratch=random_models
            )
            if session.energy.unavailable:
                _say(session, f"No energy: {session.energy.unavailable}.")
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]} left"))
            with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
                try:
                    measure(session, models, progress)
                except KeyboardInterrupt:
                    session.skipped.append("whatever came after it was interrupted")
        except GardenerError as error:
            raise click.ClickException(safe_text(str(error))) from error
        finally:
            session.energy.stop()
    file = write_result(session, models, machine, output)
    print(file.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"Wrote {file} and the table and picture beside it.")
    print(
        "To contribute them, open a pull request that adds the three files to benchmarks/results (CONTRIBUTING.md says "
        "how; docs/benchmarks.md what they show). They hold no name of yours, no path and no text of your files."
    )


if __name__ == "__main__":
    main()
