"""``mlx-gardener status`` and ``cancel``: look at trainings and stop them, from any terminal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from mlx_gardener.cli.completion import complete_projects
from mlx_gardener.cli.options import as_json_option, name_type

if TYPE_CHECKING:
    from mlx_gardener.lifecycle.staleness import Staleness
    from mlx_gardener.registry import ProjectRegistry


@click.command()
@click.argument("project", type=name_type, required=False, shell_complete=complete_projects)
@click.option("--measure", is_flag=True, help="With PROJECT: bits per byte of its adapter on the new code.")
@as_json_option
def status(project: str | None, measure: bool, as_json: bool) -> None:
    """Show the latest training of PROJECT, or of every project; of PROJECT also how stale its adapter is."""
    if measure and project is None:
        raise click.UsageError("--measure needs a PROJECT.")
    from mlx_gardener.registry import ProjectRegistry

    registry = ProjectRegistry()
    names = [project] if project else [item.name for item in registry.list_projects()]
    active = {record.project for record in registry.active_trainings()}
    places = {entry.project: place for place, entry in enumerate(registry.queue.entries(), start=1)}
    rows = []
    for name in names:
        found = registry.get_project(name)  # an unknown name is an error that offers near ones
        record = registry.latest_training(name)
        rows.append(
            {
                "project": name,
                "is_training": name in active,
                "active": name in active,  # its name until 0.2
                "status": record.status.value if record else "not_started",
                "phase": record.phase.value if record else None,
                "progress_percent": record.percent if record else 0.0,
                "message": record.message if record else "never trained",
                "details": dict(record.details) if record else {},
                "updated_at": record.updated_at if record else None,
                "active_adapter": found.active_adapter,
                "made_version": record.result.get("adapter_version") if record else None,
            }
        )
        if name in places and name not in active:
            waiting = {"status": "queued", "message": f"number {places[name]} in the queue"}
            rows[-1] |= {**waiting, "phase": None, "progress_percent": 0.0, "details": {}}
    stale = None if project is None else _staleness(registry, project, measure)
    if as_json:
        shown = {} if project is None else {"adapter": None if stale is None else stale.to_json()}
        click.echo(json.dumps({"trainings": rows, **shown}))
    elif not rows:
        click.echo("No projects yet. Train one with `mlx-gardener train` in a repository.")
    else:
        _show_rows(rows)
        if stale is not None:
            from mlx_gardener.report.text import safe_text

            click.echo(safe_text(stale.sentence()))


def _staleness(registry: ProjectRegistry, project: str, measure: bool) -> Staleness | None:
    """How stale the active adapter is, by the filters of the project's last training."""
    from mlx_gardener.config import load_config, validate_config
    from mlx_gardener.lifecycle.staleness import look_at

    if registry.get_project(project).active_adapter is None:
        return None
    latest = registry.latest_training(project)
    config = load_config() if latest is None else validate_config(latest.config)
    tell = (lambda text: click.echo(f"{text} ...", err=True)) if sys.stderr.isatty() else None
    return look_at(registry, project, config, measure=measure, tell=tell)


def _show_rows(rows: list[dict[str, Any]]) -> None:
    from rich.table import Column, Table

    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.text import ago, safe_text, words

    has_loss = any("loss" in row["details"] for row in rows)
    columns = ("status", "done", *(["loss"] * has_loss), "updated", "message")
    table = Table(Column("project", no_wrap=True), *columns, box=None, header_style="bold")
    for row in rows:
        loss = row["details"].get("loss")
        age = "" if row["updated_at"] is None else ago(row["updated_at"])
        table.add_row(
            safe_text(row["project"]),
            words(row["status"]),
            f"{row['progress_percent']:.0f} %",
            *(["-" if loss is None else f"{loss:.3f}"] * has_loss),
            age,
            safe_text(row["message"]),
        )
    console = make_console()
    console.print(table)
    for row in rows:
        ended_early = row["status"] in ("failed", "cancelled") and row["made_version"] is None
        if ended_early and row["active_adapter"] is not None:
            console.print(
                f"{row['project']}: {row['active_adapter']} is active as before; this training has not changed it."
            )


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.option(
    "--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait for it to stop."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def cancel(project: str, timeout: float, as_json: bool) -> None:
    """Stop the training of PROJECT, and keep its checkpoint; one that waits in the queue is taken out."""
    from mlx_gardener.errors import TrainingError
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.runs.manager import TrainingPipeline

    pipeline = TrainingPipeline()
    waits = not pipeline.is_training_active(project)
    if not pipeline.cancel_training(project):
        raise TrainingError(
            f"{project!r} is not being trained.", next_step="See `mlx-gardener status` for what is."
        )
    if waits:
        sentence = f"{project} waited in the queue, and is out of it."
        told = {"status": "cancelled", "phase": None, "progress_percent": 0.0, "message": sentence}
    else:
        progress = pipeline.wait_for_training_completion(project, timeout=timeout)
        phase, percent = progress.phase.value, progress.progress_percent
        told = {"status": phase, "phase": phase, "progress_percent": percent, "message": progress.message}
        sentence = f"{project}: {phase} at {percent:.0f} %. {safe_text(progress.message)}"
    click.echo(json.dumps({"project": project, **told}) if as_json else sentence)
