"""``mlx-gardener queue``: what waits for its training, in which order, and the process that works on it."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from mlx_gardener.cli.completion import complete_projects
from mlx_gardener.cli.options import as_json_option, name_type
from mlx_gardener.platform.sizes import GIB

_PROJECT = click.argument("project", type=name_type, shell_complete=complete_projects)


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="The list as one JSON document on stdout.")
@click.pass_context
def queue(ctx: click.Context, as_json: bool) -> None:
    """Trainings that wait for their turn; without a subcommand, list them.

    `mlx-gardener train --queue` puts a project in. Higher priorities come first, then what was put in first.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_queue, as_json=as_json)
    elif as_json:
        raise click.UsageError("--json before a subcommand means nothing; put it behind.")


@queue.command("list")
@as_json_option
def list_queue(as_json: bool = False) -> None:
    """List what waits and what is being trained, in order."""
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.runs.queue_start import is_running, queued

    registry = ProjectRegistry()
    rows = queued(registry)
    runs = is_running(registry)
    if as_json:
        click.echo(json.dumps({"runs": runs, "queue": rows}))
        return
    if not rows:
        click.echo("The queue is empty. `mlx-gardener train --queue` puts a project in.")
        return
    _show(rows)
    if not runs:
        click.echo("No process works on the queue: `mlx-gardener queue run` does.")


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Column, Table

    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.text import ago, gigabytes, safe_text

    table = Table(
        "",
        Column("project", no_wrap=True),
        "priority",
        "status",
        "budget",
        "put in",
        box=None,
        header_style="bold",
    )
    for row in rows:
        table.add_row(
            str(row["place"]),
            safe_text(row["project"]),
            str(row["priority"]),
            row["status"] + (f", {row['progress_percent']:.0f} %" if row["status"] == "training" else ""),
            gigabytes(row["budget_bytes"]),
            ago(row["enqueued_at"]),
        )
    make_console().print(table)


@queue.command(short_help="Work on the queue in this terminal.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0.1),
    help="Train side by side what fits into so many GB together. [default: one at a time]",
)
@click.option("--forever", is_flag=True, help="Wait for more when the queue is empty.")
@click.option("--json", "as_json", is_flag=True, help="What happens as JSON lines on stdout.")
def run(budget: float | None, forever: bool, as_json: bool) -> None:
    """Work on the queue in this terminal until it is empty; Ctrl-C leaves trainings under way alone."""
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.runs.queue_runner import QueueRunner

    def tell(text: str) -> None:
        now = time.localtime()
        event = {"event": "Log", "time": time.strftime("%Y-%m-%dT%H:%M:%S", now), "message": text}
        click.echo(json.dumps(event) if as_json else f"{time.strftime('%H:%M:%S', now)} {safe_text(text)}")

    runner = QueueRunner(
        ProjectRegistry(),
        budget_bytes=None if budget is None else int(budget * GIB),
        tell=tell,
    )
    runner.run(until_empty=not forever)
    click.echo(json.dumps({"event": "Empty"}) if as_json else "The queue is empty.")


@queue.command(
    short_help="Change the priority of a project.", context_settings={"ignore_unknown_options": True}
)  # -5 is a value
@_PROJECT
@click.argument("value", type=click.IntRange(-100, 100))
@as_json_option
def priority(project: str, value: int, as_json: bool) -> None:
    """Change the priority of PROJECT; higher ones come first, 0 is usual."""
    from mlx_gardener.registry import ProjectRegistry

    ProjectRegistry().queue.set_priority(project, value)
    told = json.dumps({"project": project, "priority": value})
    click.echo(told if as_json else f"{project} has priority {value}.")


@queue.command()
@_PROJECT
@as_json_option
def first(project: str, as_json: bool) -> None:
    """Let PROJECT be the next."""
    from mlx_gardener.errors import TrainingError
    from mlx_gardener.registry import ProjectRegistry

    waiting = ProjectRegistry().queue
    others = [entry.priority for entry in waiting.entries() if entry.project != project]
    value = max(others, default=0) + 1
    if value > 100:
        raise TrainingError(
            "The highest priority is taken.", next_step="Lower others first: `mlx-gardener queue priority`."
        )
    waiting.set_priority(project, value)
    told = json.dumps({"project": project, "priority": value})
    click.echo(told if as_json else f"{project} is the next.")


@queue.command(short_help="Take a project out, where it waits.")
@_PROJECT
@as_json_option
def remove(project: str, as_json: bool) -> None:
    """Take PROJECT out, where it waits; `mlx-gardener cancel` stops a training that was begun."""
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.runs.queue_start import take_out

    take_out(ProjectRegistry(), project)
    told = json.dumps({"project": project, "removed": True})
    click.echo(told if as_json else f"{project} is out of the queue.")
