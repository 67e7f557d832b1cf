"""``mlx-gardener train``: the main command; names the project, starts its training, shows it, and says what came out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_gardener.cli.completion import (
    complete_projects,
    complete_settings,
    complete_versions,
)
from mlx_gardener.cli.options import (
    budget_option,
    config_option,
    model_option,
    name_type,
    parse_settings,
    place_type,
)
from mlx_gardener.cli.renamed import renamed

if TYPE_CHECKING:
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.runs.manager import TrainingPipeline


@click.command()
@click.argument("path", type=place_type, required=False)
@click.option(
    "--project",
    type=name_type,
    shell_complete=complete_projects,
    help="Name in the registry; the directory's name by default. Of a known one PATH can be left out.",
)
@model_option
@budget_option
@config_option
@click.option("--epochs", type=float, help="Passes over the training part. [default: 3]")
@click.option("--rank", type=int, help="LoRA rank. [default: 16]")
@click.option("--learning-rate", type=float, help="Peak learning rate; fitted to the base by default.")
@click.option("--max-steps", type=int, help="At most this many optimiser updates.")
@click.option(
    "--timeout",
    type=float,
    metavar="MINUTES",
    help="Time limit; a measured adapter is there by then. 0: none. [default: 30]",
)
@click.option("--seed", type=int, help="Seed of everything random. [default: 0]")
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_settings,
    help="Any other setting: data.fim_rate=0.5",
)
@click.option(
    "--hosts",
    metavar="A,B,...",
    help="Train together on these, this machine first (127.0.0.1,127.0.0.1); or a host file of mlx.launch.",
)
@click.option("--hostfile", hidden=True)
@click.option(
    "--backend",
    type=click.Choice(["ring", "mpi", "nccl", "jaccl", "jaccl-ring"]),
    help="How the hosts talk. [default: ring]",
)
@click.option("--resume", is_flag=True, help="Go on with the last training where it stopped, as it was set.")
@click.option("--fresh", is_flag=True, help="Begin anew, also where an unfinished training could go on.")
@click.option(
    "--continue",
    "goes_on_from_active",
    is_flag=True,
    help="Go on from the active adapter with what changed since.",
)
@click.option(
    "--from-version",
    metavar="VERSION",
    shell_complete=complete_versions,
    help="The same from another version.",
)
@click.option("--from-adapter", hidden=True)
@click.option("--detach", is_flag=True, help="Start in the background and return.")
@click.option("--queue", "into_queue", is_flag=True, help="Let it wait for its turn in the background.")
@click.option("--priority", type=click.IntRange(-100, 100), help="With --queue: higher ones come first.")
@click.option("--dry-run", is_flag=True, help="Show data and memory plan; train nothing, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout.")
def train(
    path: Path | None,
    project: str | None,
    model: str | None,
    budget: float | None,
    config_file: Path | None,
    epochs: float | None,
    rank: int | None,
    learning_rate: float | None,
    max_steps: int | None,
    timeout: float | None,
    seed: int | None,
    pairs: tuple[str, ...],
    hosts: str | None,
    hostfile: str | None,
    backend: str | None,
    resume: bool,
    fresh: bool,
    goes_on_from_active: bool,
    from_version: str | None,
    from_adapter: str | None,
    detach: bool,
    into_queue: bool,
    priority: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train an adapter on the repository at PATH (default: that of --project where it is known, else here) and register it.

    Settings come from defaults, then --config, then MLX_GARDENER_* variables, then these flags. Where the last training
    of the project with the same settings did not come to its end, the same command goes on with it.

    A project that has an active adapter is trained on from it, on the files that are new or changed since and as many
    bytes of unchanged ones, if base model and lora.* settings are the same and less than half of the
    training files' bytes changed; files keep the part (training, validation, test) they were in. Otherwise, and with
    --fresh, training begins from scratch. --continue and --from-version make the other conditions errors.
    """
    from_version = renamed("--from-adapter", "--from-version", from_adapter, from_version)
    hosts = renamed("--hostfile", "--hosts", hostfile, hosts)
    if (goes_on_from_active or from_version) and (resume or fresh):
        raise click.UsageError(
            "--continue and --from-version begin a training; leave --resume and --fresh out."
        )
    if goes_on_from_active and from_version:
        raise click.UsageError("Give --continue or --from-version, not both.")
    if resume and fresh:
        raise click.UsageError("--resume and --fresh contradict each other.")
    if into_queue and resume:
        raise click.UsageError("--queue goes on with an unfinished training by itself; leave --resume out.")
    if priority is not None and not into_queue:
        raise click.UsageError("--priority is for --queue.")
    from mlx_gardener.cli.watch import watch_training
    from mlx_gardener.config import load_config
    from mlx_gardener.platform.files import existing_directory

    flags = {
        "model": model,
        "memory_limit_gb": budget,
        "optimizer.epochs": epochs,
        "lora.rank": rank,
        "optimizer.learning_rate": learning_rate,
        "optimizer.max_steps": max_steps,
        "training_timeout_minutes": timeout,
        "seed": seed,
        "continue_from": from_version or ("active" if goes_on_from_active else None),
        "parallel.hosts": None if hosts is None else _hosts(hosts),
        "parallel.backend": backend,
        **parse_settings(pairs),
    }
    config = load_config(config_file, overrides=flags)
    if _follows(config, alone=detach or into_queue or config.parallel.is_wanted, dry_run=dry_run):
        return
    root = existing_directory(_place_of(project, must_be_known=resume) if path is None else path)

    from mlx_gardener.registry import ProjectRegistry, project_name_for
    from mlx_gardener.registry.lost import unknown_repository
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.runs.manager import TrainingPipeline

    name = project or project_name_for(root)
    if path is None and root != Path():
        click.echo(f"The repository of {name} is {safe_text(str(root))}.", err=True)
    if dry_run:
        ProjectRegistry().check_registration(name, root)
        if fresh:
            config = config.model_copy(update={"continue_from": "never"})
        _show_plan(name, root, config, as_json)
        return
    pipeline = TrainingPipeline(config)
    known = {item.name: item.path for item in pipeline.registry.list_projects()}
    before = known.get(name, root)
    with pipeline.registry.registering(name, root):
        goes_on = resume or (not fresh and pipeline.unfinished_training(name) is not None)
        if into_queue:
            entry = pipeline.enqueue_training(name, priority=priority or 0, fresh=fresh)
        elif resume:
            pipeline.resume_training(name)
        else:
            pipeline.start_training(name, fresh=fresh)
    if before not in (root, unknown_repository(pipeline.registry.home, name)):
        click.echo(
            f"{name} moved here from {safe_text(str(before))}; it goes on as the same project.", err=True
        )
    if into_queue:
        _announce_place(pipeline, entry.number, name, as_json)
        return
    if detach:
        _announce(pipeline, name, as_json, goes_on)
        return
    if goes_on and not resume and not as_json:
        click.echo(f"Going on with the unfinished training of {name}; --fresh begins anew.")
    watch_training(pipeline, name, as_json=as_json, cancel_on_interrupt=True)


def _hosts(text: str) -> str:
    """The hosts by name as they are, or the full path of a host file: one name alone, as it takes two to train together."""
    from mlx_gardener.platform.files import resolved

    return text if "," in text else str(resolved(place_type.convert(text, None, None)))


def _place_of(project: str | None, *, must_be_known: bool) -> Path:
    """Where the repository lies that a project stands for; here, where no such project or no such place is known."""
    from mlx_gardener.platform.files import is_directory
    from mlx_gardener.registry import ProjectRegistry

    registry = ProjectRegistry()
    if project is not None and must_be_known:
        return registry.get_project(project).path
    known = registry.list_projects() if project is not None and registry.exists else []
    return next((item.path for item in known if item.name == project and is_directory(item.path)), Path())


def _follows(config: TrainingConfig, *, alone: bool, dry_run: bool) -> bool:
    """Whether `mlx.launch` started this as a rank other than 0, which then has done its part."""
    import os

    from mlx_gardener.runs.ranks import launched_rank

    launched = launched_rank(os.environ)
    if launched is None:
        return False
    if alone:
        raise click.UsageError("Under mlx.launch, --hosts, --detach and --queue mean nothing.")
    if launched[0] and not dry_run:
        from mlx_gardener.runs.rank import follow_launched

        follow_launched(launched[1])
    return launched[0] > 0


def _announce(pipeline: TrainingPipeline, name: str, as_json: bool, goes_on: bool) -> None:
    """Say what was begun; a version to go on from is looked at by the worker, who may find that it cannot."""
    record = pipeline.registry.latest_training(name)
    wish = "never" if record is None else str(record.config.get("continue_from", "never"))
    version = None if wish == "never" else wish.removeprefix("auto:")
    if as_json:
        told = {"project": name, "started": True, "goes_on": goes_on, "from_version": version}
        click.echo(json.dumps(told))
        return
    what = "Going on with the unfinished training of" if goes_on else "Training"
    click.echo(f"{what} {name} in the background: `mlx-gardener attach {name}` shows it.")
    if version == wish:
        click.echo(f"It goes on from {version}.")
    elif version is not None:
        click.echo(
            f"It goes on from {version} if base, lora.* settings and most of the files are the same; --fresh begins anew."
        )


def _announce_place(pipeline: TrainingPipeline, number: int, name: str, as_json: bool) -> None:
    numbers = [entry.number for entry in pipeline.registry.queue.entries()]
    place = numbers.index(number) + 1 if number in numbers else 1
    if as_json:
        click.echo(json.dumps({"project": name, "queued": True, "place": place}))
    else:
        click.echo(f"{name} is number {place} in the queue: `mlx-gardener queue` shows it.")


def _show_plan(name: str, root: Path, config: TrainingConfig, as_json: bool) -> None:
    """What `train` would do for a project, without doing or writing any of it."""
    from mlx_gardener.cli.scan import scan_with_progress
    from mlx_gardener.dataset.prepare import check_enough
    from mlx_gardener.engine import prepare_model
    from mlx_gardener.registry import default_home
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.models_view import show_choice
    from mlx_gardener.report.plan_view import show_plan
    from mlx_gardener.report.scan_view import show_scan
    from mlx_gardener.report.time_view import takes_text
    from mlx_gardener.report.waiting import said_if_slow
    from mlx_gardener.runs.forecast import estimate_training
    from mlx_gardener.runs.parent import as_trained, foretell_parent

    config = as_trained(config, root)
    with said_if_slow("Looking at the base models", silent=as_json):
        prepared = prepare_model(config, default_home() / "cache", ahead=True)
    choice = prepared.choice
    scan = scan_with_progress(root, config, silent=as_json)
    check_enough(scan, config)
    plan = prepared.plan(config)
    parent = foretell_parent(root, config, choice, scan, project=name)
    going_on = None if parent is None else asdict(parent)
    estimate = estimate_training(scan, config, prepared, parent)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "scan": scan.to_json(),
                    "model": {"name": choice.name, "reason": choice.reason},
                    "plan": plan.to_json(),
                    "estimate": estimate,
                    "going_on": going_on,
                    "config": config.model_dump(mode="json"),
                }
            )
        )
        return
    console = make_console()
    show_scan(console, scan, config.max_training_chunks)
    console.print()
    show_choice(console, choice)
    show_plan(console, plan, has_speed=False)
    console.print(f"\n{takes_text(estimate, going_on)}", highlight=False)
    console.print("\nNothing was trained or written (--dry-run).", highlight=False)
