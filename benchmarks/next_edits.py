"""What base and adapter make of the next edits of commits that were held out: right windows, and quiet ones.

    python benchmarks/next_edits.py PROJECT --home DIRECTORY [--tasks 40] [--name qwen_chonkie]

The windows are those that the evidence on the project's newest adapter asks, in the form that editors send, edits due and none due;
nothing else of the evidence is measured, so that a larger base is affordable: some 850 tokens are read for a window and arm.
Answers are kept in the home, where `mlx-gardener eval` finds them. Writes ``results/next_edits_NAME.json``, counts without any code.
Cost: windows x arms x 850 tokens forward.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from machine import bar, describe, save

import mlx_gardener  # noqa: F401  first: opens the fast BLAS
from mlx_gardener.adapter import PeftManager, attach_adapter, base_name
from mlx_gardener.adapter.base import trained_config
from mlx_gardener.dataset import EditTask, edit_tasks
from mlx_gardener.evaluate.measure import Bench
from mlx_gardener.evaluate.registered import ANSWERS, prepare_to_measure
from mlx_gardener.evaluate.stages import fingerprint
from mlx_gardener.evaluate.statistics import share_change
from mlx_gardener.platform.kept import KeptValues
from mlx_gardener.registry import ProjectRegistry

#: How many times as often as its base an adapter is to be right, and how often it is to stay quiet.
TIMES, QUIET = 2.0, 0.9
KINDS = {"an edit is due": True, "no edit is due": False}


def figures(tasks: Sequence[EditTask], base: Sequence[bool], adapter: Sequence[bool]) -> dict[str, Any]:
    """Of each kind of window how many each arm writes as they should be, and the change with its interval by file."""
    found = {}
    for kind, is_due in KINDS.items():
        own = [at for at, task in enumerate(tasks) if task.is_due == is_due]
        if not own:
            continue
        before, after = [float(base[at]) for at in own], [float(adapter[at]) for at in own]
        change = share_change(before, after, [tasks[at].path for at in own], seed=0)
        found[kind] = {
            "windows": len(own),
            "files": change.files,
            "base_right": int(sum(before)),
            "adapter_right": int(sum(after)),
            "change": asdict(change),
        }
    return found


def bars_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What they say of the two promises."""
    rows = []
    if due := found.get("an edit is due"):
        base, adapter, count = due["base_right"], due["adapter_right"], due["windows"]
        rows.append(
            bar(
                "next edits written word for word",
                "the base, asked in the same form",
                f"at least {TIMES:g} times as many",
                f"{adapter} of {count} against {base}",
                adapter >= TIMES * base and adapter > base,
            )
        )
    if quiet := found.get("no edit is due"):
        share = quiet["adapter_right"] / quiet["windows"]
        rows.append(
            bar(
                "windows without an edit left as they are",
                "the base, asked in the same form",
                f">= {QUIET:.0%}",
                f"{share:.0%} of {quiet['windows']}; base {quiet['base_right'] / quiet['windows']:.0%}",
                share >= QUIET,
            )
        )
    return rows


@click.command()
@click.argument("project")
@click.option("--home", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--tasks", default=40, show_default=True, help="Windows with an edit, and as many without.")
@click.option("--name", default="", help="Of the result file. [default: the project's]")
def main(project: str, home: Path, tasks: int, name: str) -> None:
    """Read the windows with the base, then with the adapter, and write the result."""
    registry, machine = ProjectRegistry(home), describe()
    records = registry.list_adapters(project)
    if not records:
        raise click.ClickException(f"{project} has no adapter in {home}; train one, or name another --home.")
    adapter = PeftManager(registry).load_adapter(project, records[-1].version)
    config = trained_config(adapter, model=base_name(registry, records[-1]))
    place = registry.get_project(project)
    base, engine, data = prepare_to_measure(
        registry, place, config, adapter, lambda share, message: click.echo(message), lambda: None
    )
    if data.data_sha256 != adapter.manifest["data"]["data_sha256"]:
        raise click.ClickException(f"The repository of {project} has changed since the training.")
    asked = edit_tasks(
        data.held_out_edits, tasks, base.tokenizer, config.data.sequence_lengths[-1], seed=config.seed
    )
    if not asked:
        raise click.ClickException(f"No commit that is held out of {project} edits a test file.")
    bench = Bench(base, engine, config, KeptValues(home / ANSWERS), lambda: None)
    right: list[list[bool]] = []
    for title, attached in (("base", None), ("adapter", adapter)):
        with nullcontext() if attached is None else attach_adapter(base, attached):
            right.append(
                bench.edits(
                    asked,
                    of="" if attached is None else fingerprint(attached),
                    tell=lambda share, title=title: click.echo(f"{title}: {share:.0%}"),
                )
            )
    found = figures(asked, *right)
    training, summary = adapter.manifest["training"], adapter.manifest["data"]["summary"]
    result = {
        "project": project,
        "model": base.path.name,
        "machine": machine,
        "training": {name: training[name] for name in ("steps", "tokens_seen", "seconds")},
        "settings": {"data": config.model_dump(mode="json")["data"]},
        "edits_learned": summary.get("edits"),
        "bars": bars_of(found),
        "windows": found,
    }
    print(save(f"next_edits_{name or project}", result))
    print(json.dumps(result["bars"], indent=1))


if __name__ == "__main__":
    main()
