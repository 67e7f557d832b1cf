"""``mlx-gardener projects``, ``show``, ``activate``, ``remove``: the registry from the terminal."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from mlx_gardener.cli.asking import ask
from mlx_gardener.cli.completion import complete_projects, complete_versions
from mlx_gardener.cli.options import as_json_option, name_type


def _when(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(timestamp))


def _figure(metrics: dict[str, Any], name: str) -> str:
    """A metric, or that it was not measured, as for an imported adapter."""
    return f"{metrics[name]:.4f}" if name in metrics else "not measured"


@click.command()
@as_json_option
def projects(as_json: bool) -> None:
    """List the projects in the registry; * marks the active one."""
    from rich.table import Column, Table

    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.text import safe_text, words

    found = ProjectRegistry().list_projects()
    if as_json:
        rows = [
            {
                "name": item.name,
                "path": str(item.path),
                "status": item.status.value,
                "active": item.active,
                "active_adapter": item.active_adapter,
            }
            for item in found
        ]
        click.echo(json.dumps({"projects": rows}, indent=2))
    elif not found:
        click.echo("No projects yet. Train one with `mlx-gardener train` in a repository.")
    else:
        table = Table(
            "",
            Column("project", no_wrap=True),
            "status",
            "adapter",
            "repository",
            box=None,
            header_style="bold",
        )
        for item in found:
            mark = "*" if item.active else ""
            path = safe_text(str(item.path))
            table.add_row(mark, item.name, words(item.status.value), item.active_adapter or "none", path)
        make_console().print(table)


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@as_json_option
def show(project: str, as_json: bool) -> None:
    """Show PROJECT and the versions of its adapter; * marks the version other programs pick up.

    Figures are those of a version's newest `eval` that measured enough, or else of its training.
    """
    from rich.table import Table

    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.registry.evaluations import counting_evaluation
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.text import safe_text, words

    registry = ProjectRegistry()
    found = registry.get_project(project)
    adapters = registry.list_adapters(project)
    again = {item.version: counting_evaluation(item.directory) for item in adapters}
    metrics = {
        item.version: newest.evidence["metrics"] if (newest := again[item.version]) else item.metrics
        for item in adapters
    }
    if as_json:
        versions: list[dict[str, Any]] = [
            {
                "version": item.version,
                "active": item.active,
                "base_model": item.base_model,
                "metrics": metrics[item.version],
                "evaluated_at": newest.at if (newest := again[item.version]) else None,
                "directory": str(item.directory),
                "created_at": item.created_at,
            }
            for item in adapters
        ]
        shown = {
            "name": found.name,
            "path": str(found.path),
            "status": found.status.value,
            "adapters": versions,
        }
        click.echo(json.dumps(shown, indent=2))
        return
    console = make_console()
    console.print(f"{found.name}: {safe_text(str(found.path))}, {words(found.status.value)}")
    if not adapters:
        console.print(f"No adapter yet. {safe_text(registry.way_to_an_adapter(project))}", soft_wrap=True)
        return
    table = Table("", "version", "made", "base", "bits per byte", "base alone", box=None, header_style="bold")
    for item in adapters:
        table.add_row(
            "*" if item.active else "",
            item.version,
            _when(item.created_at),
            safe_text(item.base_model),
            *(
                _figure(metrics[item.version], name)
                for name in ("adapter_bits_per_byte", "base_bits_per_byte")
            ),
        )
    console.print(table)
    for item in adapters:
        console.print(f"{item.version}: {safe_text(str(item.directory))}", soft_wrap=True)
        if newest := again[item.version]:
            console.print(f"{item.version} was measured again by `mlx-gardener eval` on {_when(newest.at)}.")


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.argument("version", required=False, shell_complete=complete_versions)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def activate(project: str, version: str | None, as_json: bool) -> None:
    """Make PROJECT the active one, and VERSION (if given) its active adapter."""
    from mlx_gardener.registry import ProjectRegistry

    registry = ProjectRegistry()
    if version is not None:
        registry.activate_adapter(project, version)
    registry.set_active_project(project)
    active = registry.get_project(project).active_adapter
    if as_json:
        click.echo(json.dumps({"project": project, "active_adapter": active}))
        return
    click.echo(f"{project} is active, with {active or 'no adapter'}.")


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.argument("version", required=False, shell_complete=complete_versions)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def remove(project: str, version: str | None, yes: bool, as_json: bool) -> None:
    """Remove PROJECT with its trainings and adapters, or only VERSION of its adapter; the repository is not touched."""
    from mlx_gardener.adapter import PeftManager
    from mlx_gardener.registry import ProjectRegistry

    registry = ProjectRegistry()
    if version is not None:
        registry.get_adapter(project, version)
    else:
        registry.get_project(project)
    what = f"adapter {version} of {project}" if version else f"{project} with all its adapters"
    if not yes:
        ask(f"Delete {what}?", as_json=as_json)
    if version is not None:
        PeftManager(registry).delete_adapter(project, version)
    else:
        registry.remove_project(project)
    told = json.dumps({"project": project, "version": version, "removed": True})
    click.echo(told if as_json else f"Removed {what}.")
