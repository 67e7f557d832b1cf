"""``mlx-gardener registry``: check, repair, tidy, back up and restore what trainings have left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from mlx_gardener.cli.asking import ask
from mlx_gardener.cli.options import as_json_option, file_type, place_type


@contextmanager
def _shown(what: str) -> Iterator[Callable[[str], None]]:
    """A line on a terminal's stderr that says what is worked on; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.markup import escape

    from mlx_gardener.report.text import safe_text

    with Console(stderr=True).status(what) as status:
        yield lambda text: status.update(f"{what}: {escape(safe_text(text))}")


@click.group()
def registry() -> None:
    """Look after the registry: the database and the files in its home."""


@registry.command(short_help="Say what does not fit together.")
@as_json_option
@click.option("--quick", is_flag=True, help="Do not read every adapter to compare its hashes.")
@click.pass_context
def check(ctx: click.Context, as_json: bool, quick: bool) -> None:
    """Say what does not fit together; exit code 1 when there is something. Changes nothing."""
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_text

    opened = ProjectRegistry()
    with _shown("Checking") as tell:
        problems = opened.check(hashes=not quick, tell=tell)
    if as_json:
        click.echo(json.dumps({"problems": [vars(problem) for problem in problems]}, indent=2))
    for problem in () if as_json else problems:
        click.echo(f"{problem.kind}: {safe_text(problem.message)}")
    if not problems and not as_json:
        click.echo(f"All is well in {safe_text(str(opened.home))}.")
    if problems:
        if not as_json:
            click.echo("`mlx-gardener registry repair` mends this.")
        ctx.exit(1)


@registry.command(short_help="Mend what `check` finds.")
@as_json_option
def repair(as_json: bool) -> None:
    """Mend what `check` finds. What could be a good adapter is never deleted, but kept in lost+found in the home."""
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_text

    with _shown("Repairing") as tell:
        done = ProjectRegistry().repair(tell=tell)
    if as_json:
        click.echo(json.dumps({"done": done}, indent=2))
        return
    for sentence in done or ["There was nothing to mend."]:
        click.echo(safe_text(sentence))


@registry.command(short_help="Register adapters in lost+found.")
@as_json_option
def adopt(as_json: bool) -> None:
    """Register whole adapters in lost+found again, as of the projects that their manifests name; none becomes active."""
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_text

    with _shown("Adopting") as tell:
        said = ProjectRegistry().adopt(tell=tell)
    if as_json:
        click.echo(json.dumps({"done": said}, indent=2))
        return
    for sentence in said or ["There is no adapter in lost+found."]:
        click.echo(safe_text(sentence))


@registry.command(short_help="Delete what is not needed any more.")
@click.option(
    "--keep",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Newest versions of each project.",
)
@click.option(
    "--older-than",
    "days",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Delete finished runs, read GGUF files and fetched models older than so many days.",
)
@click.option("--keep-checkpoints", is_flag=True, help="Keep the checkpoints of completed runs too.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
def gc(keep: int, days: float, keep_checkpoints: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete leftovers of killed processes, checkpoints of completed runs, old runs, old adapter versions, old folders of
    GGUF files that can be read again, and models of the package index that can be fetched again.

    What goes is listed first, and asked about.

    Active versions, a project's latest run, and projects that are being trained stay.
    """
    from mlx_gardener.registry import GarbagePolicy, ProjectRegistry
    from mlx_gardener.report.text import safe_text

    if as_json and not (yes or dry_run):
        raise click.UsageError("With --json nobody is asked: say --yes or --dry-run.")
    policy = GarbagePolicy(keep_versions=keep, run_days=days, keep_checkpoints=keep_checkpoints)
    opened = ProjectRegistry()
    if not (yes or dry_run):
        planned = opened.collect_garbage(policy, dry_run=True)
        for item in planned:
            click.echo(f"{item.kind} {safe_text(item.subject)}: {item.size_bytes:,} bytes")
        if planned:
            total = sum(item.size_bytes for item in planned)
            ask(f"Delete these {len(planned)}, {total:,} bytes in all?")
    found = opened.collect_garbage(policy, dry_run=dry_run)
    freed = sum(item.size_bytes for item in found)
    if as_json:
        items = [vars(item) for item in found]
        click.echo(json.dumps({"dry_run": dry_run, "freed_bytes": freed, "items": items}, indent=2))
        return
    for item in found if yes or dry_run else ():
        click.echo(f"{item.kind} {safe_text(item.subject)}: {item.size_bytes:,} bytes")
    click.echo(f"{freed:,} bytes {'would be' if dry_run else 'are'} freed.")


@registry.command(short_help="Write all but runs to an archive.")
@click.argument("file", type=file_type)
@click.option("--force", is_flag=True, help="Replace FILE when it exists.")
@as_json_option
def backup(file: Path, force: bool, as_json: bool) -> None:
    """Write projects, history and adapters to FILE, a tar archive; runs and their checkpoints are not in it."""
    from mlx_gardener.registry import ProjectRegistry

    with _shown("Backing up") as tell:
        size = ProjectRegistry().backup(file, replace=force, tell=tell)
    told = json.dumps({"file": str(file), "size_bytes": size})
    click.echo(told if as_json else f"Wrote {size:,} bytes to {file}.")


@registry.command(short_help="Put a backup in place of this registry.")
@click.argument("file", type=place_type)
@click.option("--replace", is_flag=True, help="Move a home that is not empty aside.")
@as_json_option
def restore(file: Path, replace: bool, as_json: bool) -> None:
    """Put the registry that was backed up to FILE in place of this one, whole or not at all."""
    from mlx_gardener.registry import default_home
    from mlx_gardener.registry.restore import restore as restore_archive
    from mlx_gardener.report.text import safe_text

    with _shown("Restoring") as tell:
        aside = restore_archive(file, default_home(), replace=replace, tell=tell)
    if as_json:
        moved = None if aside is None else str(aside)
        click.echo(json.dumps({"home": str(default_home()), "before": moved}))
        return
    click.echo(f"Restored {safe_text(str(default_home()))}.")
    if aside is not None:
        click.echo(f"The registry that was there is in {safe_text(str(aside))}.")


@registry.command(short_help="Say where a base model is now.")
@click.argument("model")
@as_json_option
def base(model: str, as_json: bool) -> None:
    """Say where a base model is now: MODEL is the directory it was moved to, or a hub id.

    Every adapter that was trained on exactly these weights, by their hash, uses it from now on.
    """
    from mlx_gardener.adapter.base import point_base
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_text

    found = [f"{record.project}/{record.version}" for record in point_base(ProjectRegistry(), model)]
    if as_json:
        click.echo(json.dumps({"model": model, "adapters": found}, indent=2))
        return
    click.echo(f"{safe_text(model)} is the base of {', '.join(found)}.")
