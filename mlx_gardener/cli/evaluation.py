"""``mlx-gardener eval``: an adapter on code it never saw, all arms, with the verdict, its guards and its power."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mlx_gardener.cli.completion import complete_projects, complete_versions
from mlx_gardener.cli.options import file_type, name_type
from mlx_gardener.cli.renamed import renamed

_ARMS = ("base", "base_bm25", "adapter", "adapter_bm25", "control")


@click.command(name="eval")
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.option(
    "--version", shell_complete=complete_versions, help="Adapter version; the active one by default."
)
@click.option("--adapter", hidden=True)
@click.option(
    "--control",
    metavar="PROJECT",
    shell_complete=complete_projects,
    help="Whose adapter is the control; the newest other by default.",
)
@click.option("--tasks", type=click.IntRange(0, 1000), metavar="N", help="Tasks of each kind.")
@click.option(
    "--thorough", is_flag=True, help="As many tasks as tell a difference of 5 points; takes its time."
)
@click.option(
    "--timeout",
    type=float,
    default=0.0,
    metavar="MINUTES",
    help="Time limit: what fits is measured, and what was left out is said. 0: none. [default: 0]",
)
@click.option("--arms", metavar="ARM,ARM", help=f"Of {', '.join(_ARMS)}; the recorded ones by default.")
@click.option("--json", "as_json", is_flag=True, help="The evidence as JSON on stdout.")
@click.option(
    "--output",
    type=file_type,
    metavar="FILE",
    help="Write the JSON there too.",
)
def evaluate(
    project: str,
    version: str | None,
    adapter: str | None,
    control: str | None,
    tasks: int | None,
    thorough: bool,
    timeout: float,
    arms: str | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Measure an adapter of PROJECT on files that its training never saw.

    The data are made again from the repository as it is now; files that were trained on are left out. What is found is
    kept beside the adapter and changes nothing about it. Running again is cheaper: the base's answers are kept.
    """
    from mlx_gardener.errors import DataError
    from mlx_gardener.evaluate.registered import PREPARED, evaluate_adapter
    from mlx_gardener.evaluate.statistics import THOROUGH_TASKS
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.arms_view import show_details
    from mlx_gardener.report.evidence_view import show_evidence
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.recipe import about_version
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.report.waiting import progress_line

    version = renamed("--adapter", "--version", adapter, version)
    wanted = None if arms is None else tuple(arm.strip() for arm in arms.split(",") if arm.strip())
    if wanted is not None and (wrong := sorted(set(wanted) - set(_ARMS))):
        raise click.BadParameter(f"{', '.join(wrong)} is none of {', '.join(_ARMS)}", param_hint="--arms")
    if control is not None and wanted is not None and "control" not in wanted:
        raise click.UsageError("--control needs the arm control among --arms.")
    if thorough and tasks is not None:
        raise click.UsageError("--thorough and --tasks both say how many tasks: choose one.")
    registry = ProjectRegistry()
    with progress_line(paced_from=PREPARED) as tell:
        done = evaluate_adapter(
            registry,
            project,
            version,
            control=control,
            tasks=THOROUGH_TASKS if thorough else tasks,
            arms=wanted,
            timeout_minutes=timeout,
            on_progress=tell,
        )
    told = {"project": done.project, "version": done.version, **done.evidence.to_json()}
    text = json.dumps(told, indent=2, sort_keys=True) + "\n"
    if output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"{str(output)!r} cannot be written ({error.strerror}).", next_step="Name another file."
            ) from error
    if as_json:
        click.echo(text, nl=False)
        return
    console = make_console()
    shown = done.evidence.to_json(with_source=True)
    about = about_version(registry, registry.get_adapter(done.project, done.version))
    show_evidence(console, shown, about=about)
    show_details(console, shown)
    console.print(
        safe_text(f"Kept as {done.file.parent.name}/{done.file.name} beside {project}/{done.version}.")
    )
    if not done.counts:
        console.print(
            "It measured less than half of what was measured before: `report`, `show` and `serve` go by that as they did.",
            soft_wrap=True,
        )
