"""``mlx-gardener rollback``, ``diff`` and ``forget``: versions against each other, back to one, and without a path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mlx_gardener.cli.asking import ask
from mlx_gardener.cli.completion import (
    complete_models,
    complete_projects,
    complete_versions,
)
from mlx_gardener.cli.options import as_json_option, name_type, parse_settings, settings_option
from mlx_gardener.cli.renamed import renamed

if TYPE_CHECKING:
    from mlx_gardener.lifecycle.forgetting import Forgotten


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.argument("version", required=False, shell_complete=complete_versions)
@click.option("--to", hidden=True)
@as_json_option
def rollback(project: str, version: str | None, to: str | None, as_json: bool) -> None:
    """Activate VERSION of PROJECT's adapter, by default the one that was active before; again, and it goes one further."""
    from mlx_gardener.adapter.versions import roll_back
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.diff_view import version_line
    from mlx_gardener.report.text import safe_text

    before, now = roll_back(ProjectRegistry(), project, to=renamed("--to", "VERSION", to, version))
    if as_json:
        click.echo(json.dumps({"project": project, "was": vars(before), "is": vars(now)}, indent=2))
        return
    if now.version == before.version:
        click.echo(f"{now.version} of {project} is the active version already.")
        return
    click.echo(f"{now.version} of {project} is active, {before.version} was.")
    click.echo(f"Was {safe_text(version_line(before))}")
    click.echo(f"Is  {safe_text(version_line(now))}")


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.argument("first", shell_complete=complete_versions)
@click.argument("second", shell_complete=complete_versions)
@as_json_option
def diff(project: str, first: str, second: str, as_json: bool) -> None:
    """Compare the versions FIRST and SECOND of PROJECT's adapter: evidence, files that changed most, settings.

    Figures are those of a version's newest `eval` that measured enough, or else of its training.
    """
    from mlx_gardener.adapter.versions import diff_versions
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.diff_view import show_diff
    from mlx_gardener.report.live import make_console

    found = diff_versions(ProjectRegistry(), project, first, second)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
        return
    show_diff(make_console(), found)


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.argument("path")
@click.option("--purge", is_flag=True, help="Delete versions, checkpoints and caches that know it.")
@click.option("--undo", is_flag=True, help="Let the next training read PATH again; trains nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--model", shell_complete=complete_models, help="As in train.")
@settings_option
@as_json_option
def forget(
    project: str,
    path: str,
    purge: bool,
    undo: bool,
    yes: bool,
    model: str | None,
    pairs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train PROJECT again without PATH (a file or directory in it), from now on, and show what is left of it.

    Settings are those of the project's last training. A version that has learned from PATH stays, unless --purge, but is
    active no more. An imported version does not say what it learned from: it is named, and stays.
    """
    from mlx_gardener.cli.watch import watch_training
    from mlx_gardener.config import load_config, validate_config
    from mlx_gardener.errors import DataError
    from mlx_gardener.lifecycle.forgetting import clean_path, find_path, versions_that_know
    from mlx_gardener.lifecycle.forgetting import forget as forget_path
    from mlx_gardener.platform.files import existing_directory
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.runs.manager import TrainingPipeline

    registry = ProjectRegistry()
    root = registry.get_project(project).path
    if undo:
        if not registry.remember_path(project, clean_path(root, path)):
            raise DataError(f"{path!r} was not forgotten in {project!r}.")
        told = json.dumps({"project": project, "path": path, "forgotten": False})
        click.echo(told if as_json else f"Trainings of {project} read {safe_text(path)} again.")
        return
    existing_directory(root)
    path = find_path(registry, project, path)
    knowing = versions_that_know(registry, project, path)
    if not yes:
        what = ", ".join(knowing.learned) or "no version has learned from it"
        deleted = f", and delete what knows it ({what}) and all earlier runs" if purge else ""
        ask(f"Train {project} again without {safe_text(path)}{deleted}?", as_json=as_json)
    flags = {"model": model, **parse_settings(pairs)}
    latest = registry.latest_training(project)
    config = load_config(overrides=flags)
    if latest is not None:
        config = validate_config({**latest.config, "continue_from": "auto"})
        config = load_config(
            overrides={**config.model_dump(mode="json"), **{k: v for k, v in flags.items() if v is not None}}
        )
    pipeline = TrainingPipeline(config, registry=registry)

    def follow() -> None:
        if as_json:
            pipeline.wait_for_training_completion(project)
        else:
            watch_training(pipeline, project, as_json=False, cancel_on_interrupt=True)

    done = forget_path(
        pipeline,
        project,
        path,
        purge=purge,
        run=follow,
        tell=lambda text: click.echo(f"{text} ...", err=True),
    )
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=2))
        return
    click.echo(f"{project} is trained without {safe_text(done.path)} as {done.after}.")
    for sentence in _told(done, purge=purge):
        click.echo(safe_text(sentence))


def _told(done: Forgotten, *, purge: bool) -> Iterator[str]:
    """What was and was not shown, and what became of the versions."""
    if done.recall is None:
        yield "It was not shown that it is gone: nothing of it is in the repository that could be measured."
    else:
        for item in done.recall:
            verbatim = "" if item.verbatim is None else f", {item.verbatim:.0%} of places verbatim"
            yield f"  {item.who}: {item.bits_per_byte:.4f} bits per byte on it{verbatim}"
        over = f"over {len(done.shown)} file{'s' if len(done.shown) > 1 else ''} of it"
        if done.is_gone is None:
            yield (
                "It was not shown that it is gone: to write with weights that are read from disk for every token would take hours. "
                "With more --budget they fit into memory."
            )
        elif done.is_gone:
            yield f"It is gone: {over}, {done.after} goes on verbatim no more often than the base, or half as often as before."
        else:
            yield f"It is NOT gone: {over}, the new version goes on verbatim more often than the base."
    for name, reason in list(done.not_shown.items())[:10]:
        yield f"Not measured: {name}: {reason}."
    if len(done.not_shown) > 10:
        yield f"Not measured: {len(done.not_shown) - 10} more."
    if purge:
        yield f"Deleted: {', '.join((*done.purged, 'earlier runs, cached tokens and answers'))}."
    elif done.knowing:
        yield f"These versions have learned from it, and are kept without --purge: {', '.join(done.knowing)}."
    if not done.knowing:
        yield "No version before had learned from it."
    if done.cannot_be_known:
        which = ", ".join(done.cannot_be_known)
        yield f"Whether these versions have learned from it cannot be known, and they are kept: {which}."
