"""``mlx-gardener attach`` and ``logs``: look on at a training that any other process started; also what `train` shows."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from mlx_gardener.cli.completion import complete_projects
from mlx_gardener.cli.options import name_type

if TYPE_CHECKING:
    from mlx_gardener.runs.manager import TrainingPipeline

_POLL_SECONDS = 0.2


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout.")
def attach(project: str, as_json: bool) -> None:
    """Watch the latest training of PROJECT from its start on; Ctrl-C ends the watching, not the training."""
    from mlx_gardener.runs.manager import TrainingPipeline

    watch_training(TrainingPipeline(), project, as_json=as_json, cancel_on_interrupt=False)


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.option(
    "--lines", default=50, show_default=True, type=click.IntRange(min=0), help="Last lines to show."
)
@click.option("--follow", is_flag=True, help="Go on until the training has ended.")
@click.option("--json", "as_json", is_flag=True, help="Every line and event as JSON lines on stdout.")
def logs(project: str, lines: int, follow: bool, as_json: bool) -> None:
    """Print what the worker of PROJECT's latest training logged."""
    from mlx_gardener.errors import TrainingError
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.log_view import LogReader, log_json, read_lines
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.runs.job import LOG_NAME

    registry = ProjectRegistry()
    registry.get_project(project)  # an unknown name is an error that offers near ones
    record = registry.latest_training(project)
    if record is None:
        raise TrainingError(
            f"Project {project!r} has never been trained.",
            next_step=f"Start with `mlx-gardener train --project {project}`.",
        )
    reader = LogReader()

    def shown(text: str) -> list[str]:
        if as_json:
            return [json.dumps(log_json(line)) for line in text.splitlines()]
        return [safe_text(told) for line in text.splitlines() if (told := reader(line)) is not None]

    log = record.run_dir / LOG_NAME
    text, offset = read_lines(log, 0)
    for line in shown(text)[-lines:] if lines else []:
        click.echo(line)
    while follow:
        is_over = all(active.id != record.id for active in registry.active_trainings())
        text, offset = read_lines(log, offset)
        for line in shown(text):
            click.echo(line)
        if is_over:
            return
        time.sleep(_POLL_SECONDS)


def watch_training(
    pipeline: TrainingPipeline, name: str, *, as_json: bool, cancel_on_interrupt: bool
) -> None:
    """Show a training until it ends, and its result.

    Args:
        cancel_on_interrupt: Ctrl-C cancels the training, waits for its checkpoint and ends with exit code 130, instead of
            leaving it alone.

    Raises:
        GardenerError: what ended the training early, of its own class.
        TrainingError: it was never started; or what shows it failed and it goes on, which says how to look on again.
    """
    from mlx_gardener.errors import GardenerError, TrainingError
    from mlx_gardener.events import Event, TrainingEnded, TrainingPhase
    from mlx_gardener.registry.names import has_checkpoint
    from mlx_gardener.report.jsonl import JsonLines
    from mlx_gardener.report.live import LiveView, make_console

    ended: list[TrainingEnded] = []
    stopped = False
    console = make_console()

    def watch(view: Any) -> None:
        nonlocal stopped
        events = pipeline.follow(name)
        while True:
            try:
                event: Event | None = next(events, None)
            except KeyboardInterrupt:
                if not (cancel_on_interrupt and pipeline.cancel_training(name)):
                    raise
                stopped = True
                click.echo("Stopping after this step, keeping a checkpoint ...", err=True)
                events = pipeline.follow(name, from_now=True)
                continue
            if event is None:
                return
            if isinstance(event, TrainingEnded):
                ended.append(event)
            view(event)

    try:
        if as_json:
            watch(JsonLines(sys.stdout))
        else:
            with LiveView(console, project=name) as view:
                watch(view)
    except (Exception, SystemExit) as error:  # rich exits where the reader of a pipe went away
        goes_on = not ended and pipeline.is_training_active(name)
        reader_left = isinstance(error, (SystemExit, BrokenPipeError))
        if not goes_on and (reader_left or isinstance(error, GardenerError)):
            raise
        why = "its reader went away" if reader_left else f"{type(error).__name__}: {error}"
        state = "has ended" if not goes_on else "is being stopped" if stopped else "goes on"
        stop = f", or stop it with `mlx-gardener cancel {name}`" if goes_on and not stopped else ""
        raise TrainingError(
            f"The view of the training of {name!r} broke off ({why}); the training {state}.",
            next_step=f"`mlx-gardener attach {name}` shows it again{stop}.",
        ) from error
    end = ended[-1]
    if stopped and end.phase is TrainingPhase.CANCELLED:
        record = pipeline.registry.latest_training(name)
        kept = record is not None and has_checkpoint(record.run_dir)
        left = (
            "its checkpoint is kept, and the same command goes on" if kept else "there was no checkpoint yet"
        )
        click.echo(f"The training of {name} is stopped; {left}.", err=True)
        raise click.exceptions.Exit(130)
    if end.phase is not TrainingPhase.COMPLETED:
        raise pipeline.get_training_error(name) or TrainingError(end.message)
    if not as_json:
        _show_result(pipeline, name, end.result, console)


def _show_result(pipeline: TrainingPipeline, name: str, told: dict[str, Any], console: Any) -> None:
    from mlx_gardener.report.evidence_view import show_evidence
    from mlx_gardener.report.recipe import about_version, train_again
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.runs.result import RunResult

    result = RunResult.from_json(told)
    adapter = pipeline.registry.get_adapter(name, result.adapter_version)
    about = about_version(pipeline.registry, adapter)
    if result.unchanged_since is not None:
        console.print(
            f"Neither files nor settings have changed since {adapter.version} of {name} was trained: nothing was done.",
            highlight=False,
        )
        console.print(
            f"  Train all the same: {safe_text(train_again(about, '--fresh'))}",
            highlight=False,
            soft_wrap=True,
        )
        console.print(f"  What it is worth: mlx-gardener report {name}", highlight=False)
        return
    show_evidence(console, result.evidence, about=about, training=result.training)
    console.print(f"\nAdapter {adapter.version} of {name} is in the registry:", highlight=False)
    console.print(f"  {adapter.directory}", highlight=False, soft_wrap=True)
    console.print(
        "  mlx/ loads with mlx-lm, peft/ with Hugging Face PEFT; report.html shows the run:", highlight=False
    )
    console.print(f"  mlx-gardener report {name} --version {adapter.version} --open", highlight=False)
