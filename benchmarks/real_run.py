"""A whole training on a real base, as a user starts it: is a measured adapter there in time, and was the budget kept?

    python benchmarks/real_run.py PATH MODEL [--timeout 30] [--budget 4] [--busy 1] [--name smollm2]

Runs ``mlx-gardener train`` with its defaults in a home of its own, with ``--busy`` loops beside it, and looks at it from
outside: the memory of the worker process every 20 ms, the lines of its output and the silences between them, the time
of each phase by its journal. Writes ``results/real_run_NAME.json`` and the output as ``.txt``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from machine import RESULTS, bar, describe, save
from outside import Outside, busy

from mlx_gardener.runs.journal import JOURNAL_NAME, read_journal


def phases(events: list[Any]) -> dict[str, float]:
    """Seconds of each phase, by the events that tell its beginning."""
    began: dict[str, float] = {}
    last = 0.0
    for event in events:
        if type(event).__name__ == "ProgressChanged":
            began.setdefault(event.phase.value, event.timestamp)
        last = event.timestamp
    order = list(began.items())
    ends = [at for _, at in order[1:]] + [last]
    return {name: round(end - at, 1) for (name, at), end in zip(order, ends, strict=True)}


def others_share(home: Path) -> float:
    """The share of the processors that other processes took while it trained, as the training itself saw it."""
    shapes = json.loads((home / "cache/dry_runs.json").read_text())["shapes"]
    return max((float(known.get("busy", 0)) for known in shapes.values()), default=0.0)


def forecast_bar(times: list[Any], training: dict[str, Any]) -> list[dict[str, Any]]:
    """What an update was foretold to take before the first one, beside what they took."""
    steps = training.get("steps", 0) - training.get("first_update", 0)
    if not times or steps <= 0:
        return []
    pace, took = times[0]["pace"], training["seconds"] / steps
    off = pace["update_seconds"] / took - 1
    after_one = pace["source"].startswith("seen in a training")
    return [
        bar(
            f"seconds of an update, {pace['source']}", "seen at the end",
            "within 15 %" if after_one else "said, and planned anew",
            f"{pace['update_seconds']:.1f} s foretold, {took:.1f} s seen ({off:+.0%})",
            abs(off) <= 0.15 or not after_one,
        )
    ]  # fmt: skip


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("model")
@click.option(
    "--timeout", type=float, default=30.0, show_default=True, help="Minutes; 30 is train's default."
)
@click.option("--budget", type=float, default=4.0, show_default=True)
@click.option("--busy", "loops", type=int, default=0, help="Busy loops beside it.")
@click.option("--name", default="run", show_default=True)
@click.option("--home", type=click.Path(path_type=Path), help="Keep the registry there.")
def main(
    path: Path, model: str, timeout: float, budget: float, loops: int, name: str, home: Path | None
) -> None:
    """Train and look on."""
    place = home or Path(tempfile.mkdtemp(prefix="real-run-"))
    command = [sys.executable, "-m", "mlx_gardener", "train", str(path), "--project", name, "--model", model]
    command += [] if timeout == 30 else ["--timeout", f"{timeout:g}"]
    command += [] if budget == 4 else ["--budget", f"{budget:g}"]
    lines: list[tuple[float, str]] = []
    began = time.monotonic()
    with busy(loops):
        process = subprocess.Popen(
            command,
            env={**os.environ, "MLX_GARDENER_HOME": str(place), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        with Outside(process.pid, "mlx_gardener.runs.worker") as outside:
            for line in process.stdout:
                lines.append((time.monotonic() - began, line.rstrip("\n")))
                print(f"{lines[-1][0]:7.1f}  {lines[-1][1]}", flush=True)
            code = process.wait()
    seconds = time.monotonic() - began
    at = [0.0, *(moment for moment, _ in lines), seconds]
    silence = max(after - before for before, after in pairwise(at))
    run_dir = next((place / "projects" / name / "runs").iterdir())
    events = read_journal(run_dir / JOURNAL_NAME)[0]
    result: dict[str, Any] = next(
        (event.result for event in reversed(events) if type(event).__name__ == "TrainingEnded"), {}
    )
    plans = [event.plan for event in events if type(event).__name__ == "PlanChosen"]
    times = [event.plan for event in events if type(event).__name__ == "TimePlanned"]
    spent = phases(events)
    not_training = sum(value for phase, value in spent.items() if phase != "training")
    evidence = result.get("evidence", {})
    arms = [arm["name"] for arm in evidence.get("arms", [])]
    whole = not any(note.startswith("Not measured") for note in evidence.get("notes", []))
    predicted = plans[-1]["predicted_peak_bytes"] if plans else 0
    beside = f"beside {loops} busy loop{'s' * (loops != 1)}" if loops else "alone"
    others = others_share(place)
    if not loops and others > 0.1:
        beside = f"beside other work, which took {others:.0%} of the processors"
    bars = [
        bar(
            f"{name}, {timeout:g} minutes, {beside}", "ends in time with a registered adapter",
            f"within {timeout + (1 if timeout <= 30 else 2):g} min, all arms measured",
            f"{seconds / 60:.1f} min, exit code {code}, {result.get('adapter_version', 'no adapter')}, "
            f"arms {', '.join(arms)}{'' if whole else ', cut'}",
            code == 0 and seconds <= 60 * (timeout + (1 if timeout <= 30 else 2)) and whole and len(arms) >= 4,
        ),
        bar(
            "memory of the worker, seen from outside every 20 ms", f"budget of {budget:g} GB", "never above",
            f"{outside.highest / 2**30:.2f} GB at most in {outside.looks:,} looks; {predicted / 2**30:.2f} GB predicted",
            0 < outside.highest <= budget * 2**30,
        ),
        bar("phases other than training", "all time", "at most a quarter",
            f"{not_training / sum(spent.values()):.0%}", not_training <= 0.25 * sum(spent.values())),
        *forecast_bar(times, result.get("training", {})),
        bar("silence of the output", "10 s", "none longer", f"{silence:.1f} s at most", silence <= 10),
    ]  # fmt: skip
    found = {
        "machine": describe(),
        "command": ["mlx-gardener", "train", path.name, "--model", Path(model).name, *command[9:]],
        "seconds": round(seconds, 1),
        "bars": bars,
        "phases_seconds": spent,
        "highest_bytes": outside.highest,
        "predicted_peak_bytes": predicted,
        "others_share": others,
        "longest_silence_seconds": round(silence, 1),
        "time_plans": times,
        "plan": plans[-1] if plans else None,
        "training": {
            key: value for key, value in result.get("training", {}).items() if key != "train_losses"
        },
        "evidence": {
            key: evidence.get(key)
            for key in ("verdict", "reason", "metrics", "arms", "comparisons", "guards", "work", "notes")
        },
    }
    save(f"real_run_{name}", found)
    text = "\n".join(f"{moment:7.1f}  {line}" for moment, line in lines)
    text = (
        text.replace(str(place), "HOME")
        .replace(str(path.resolve().parent), "")
        .replace(str(Path(model).parent), "")
    )
    (RESULTS / f"real_run_{name}.txt").write_text(text + "\n", encoding="utf-8")
    for one in bars:
        print(json.dumps(one))


if __name__ == "__main__":
    main()
