"""``mlx-gardener report``: what an adapter's evidence says, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_gardener.cli.completion import complete_projects, complete_versions
from mlx_gardener.cli.options import as_json_option, file_type, name_type

if TYPE_CHECKING:
    from mlx_gardener.evaluate.in_use import InUse
    from mlx_gardener.registry import AdapterRecord, ProjectRegistry

PAGE_NAME = "report.html"


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.option(
    "--version",
    shell_complete=complete_versions,
    help="Adapter version; the active one, else the newest, by default.",
)
@click.option("--open", "open_page", is_flag=True, help="Open the page in the web browser.")
@click.option("--output", type=file_type, help="Copy the page to this new file.")
@as_json_option
def report(project: str, version: str | None, open_page: bool, output: Path | None, as_json: bool) -> None:
    """Show what the evidence says about PROJECT's adapter, that of the newest `eval` that measured enough, or else of
    its training; what stayed of its completions where `serve --in-use` counted that; and where its page is.
    """
    from mlx_gardener.evaluate.in_use import read_in_use
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.evidence_view import show_evidence
    from mlx_gardener.report.in_use_view import show_in_use
    from mlx_gardener.report.known import known_of, version_to_show
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.recipe import about_version
    from mlx_gardener.report.text import safe_text

    registry = ProjectRegistry()
    record = version_to_show(registry, project, version)
    page = record.directory / PAGE_NAME
    in_use = read_in_use(registry, project)
    known = known_of(registry, record)
    if page.is_file() and not page.is_symlink():
        page = _page_now(registry, record, page, known, in_use)
    evidence = known.get("evidence")
    if output is not None:
        _copy(_existing(page, record), output)
    if as_json:
        told = {
            "project": project,
            "version": record.version,
            "evidence": evidence,
            "evaluated_at": known.get("evaluated_at"),
            "in_use": in_use.to_json(),
        }
        click.echo(json.dumps({**told, "page": str(page) if page.is_file() else None}, indent=2))
    else:
        console = make_console()
        console.print(f"{project} {record.version}, an adapter of {safe_text(record.base_model)}")
        if evidence:
            show_evidence(
                console, evidence, about=about_version(registry, record), training=known.get("training")
            )
        else:
            console.print(
                f"It was never measured: `mlx-gardener eval {project} --version {record.version}` does that.",
                soft_wrap=True,
            )
        show_in_use(console, in_use)
        where = output or (page if page.is_file() else None)
        console.print(
            f"Page: {safe_text(str(where))}" if where else f"There is no {PAGE_NAME} of it.", soft_wrap=True
        )
    if open_page:
        _open(output or _existing(page, record))


def _page_now(
    registry: ProjectRegistry, record: AdapterRecord, page: Path, known: dict[str, Any], in_use: InUse
) -> Path:
    """The page with what came after the training, in a file of its own: a later evaluation, and what is known of its use."""
    from mlx_gardener.adapter.manifest import read_manifest
    from mlx_gardener.errors import RegistryError
    from mlx_gardener.evaluate.in_use import in_use_directory
    from mlx_gardener.platform.files import write_whole
    from mlx_gardener.registry.evaluations import DIRECTORY
    from mlx_gardener.report.html import render_report_html
    from mlx_gardener.report.in_use_view import page_with
    from mlx_gardener.runs.journal import JOURNAL_NAME, read_journal

    place, text = page, ""
    if "evaluated_at" in known:
        manifest = read_manifest(record.directory)
        facts = {**manifest, "base_model": manifest["base"]["id"], "evidence": known["evidence"]}
        training = registry.training_that_made(record.project, record.version)
        events = [] if training is None else read_journal(training.run_dir / JOURNAL_NAME)[0]
        place, text = record.directory / DIRECTORY / PAGE_NAME, render_report_html(facts, events=events)
    if in_use.survival:
        place = in_use_directory(registry, record.project) / f"{record.version}-{PAGE_NAME}"
        text = page_with(text or page.read_text(encoding="utf-8"), in_use)
    try:
        if text:
            write_whole(place, text, lasting=False)
    except OSError as error:
        raise RegistryError(
            f"The page with what came after {record.project}'s training cannot be written ({error.strerror}).",
            next_step="Free disk space, then ask again.",
        ) from error
    return place


def _existing(page: Path, record: AdapterRecord) -> Path:
    from mlx_gardener.errors import AdapterError

    if not page.is_file() or page.is_symlink():
        raise AdapterError(
            f"The adapter {record.project}/{record.version} has no {PAGE_NAME}.",
            next_step="Only adapters that were trained here have one; train again to get one.",
        )
    return page


def _copy(page: Path, output: Path) -> None:
    """Copy the page, readable by its owner only: it quotes source."""
    from mlx_gardener.errors import AdapterError
    from mlx_gardener.platform.files import private

    try:
        with open(output, "xb", opener=private) as file:
            file.write(page.read_bytes())
    except OSError as error:
        raise AdapterError(
            f"The report cannot be written to {str(output)!r} ({error.strerror}).",
            next_step="Name a new file in a directory you may write to.",
        ) from error


def _open(page: Path) -> None:
    import webbrowser

    from mlx_gardener.errors import GardenerError

    if not webbrowser.open(page.resolve().as_uri()):
        raise GardenerError(
            "No web browser could be started.", next_step=f"Open {str(page.resolve())!r} in one yourself."
        )
