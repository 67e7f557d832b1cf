"""``mlx-gardener complete``: a completion with a project's adapter, at a place in a file or after standard input."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from mlx_gardener.cli.completion import complete_projects, complete_versions
from mlx_gardener.cli.options import as_json_option


@click.command()
@click.argument("project", shell_complete=complete_projects)
@click.argument("place", required=False, metavar="[FILE:LINE]")
@click.option("--base", "with_base", is_flag=True, help="Complete with the base model alone, to compare.")
@click.option(
    "--version", shell_complete=complete_versions, help="Adapter version; the active one by default."
)
@click.option("--no-suffix", is_flag=True, help="Do not show the model what follows LINE.")
@click.option("--max-tokens", type=click.IntRange(1, 1024), default=48, show_default=True)
@as_json_option
def complete(
    project: str,
    place: str | None,
    with_base: bool,
    version: str | None,
    no_suffix: bool,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Complete code with PROJECT's adapter.

    With FILE:LINE the completion begins at the start of that line, with what follows the line as context; without it
    the text on standard input is continued.
    """
    from mlx_gardener.adapter import PeftManager, attach_adapter
    from mlx_gardener.adapter.base import base_name, load_adapter_base
    from mlx_gardener.evaluate import complete as complete_code
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_lines
    from mlx_gardener.report.waiting import said_if_slow

    registry = ProjectRegistry()
    root = registry.get_project(project).path
    record = registry.get_adapter(project, version)
    prefix, suffix, path = _read_place(place, root) if place else (_read_input(), None, "")
    adapter = PeftManager(registry).load_adapter(project, record.version)
    with said_if_slow(f"Loading {record.base_model}", silent=as_json):
        base = load_adapter_base(base_name(registry, record), adapter)
    if no_suffix or base.tokenizer.markers is None:
        suffix = None
    writing = said_if_slow("Writing", silent=as_json)
    with writing, nullcontext() if with_base else attach_adapter(base, adapter):
        text = complete_code(base, prefix, suffix, path=path, max_new_tokens=max_tokens)
    if as_json:
        told = {
            "project": project,
            "version": None if with_base else record.version,
            "base_model": record.base_model,
        }
        click.echo(json.dumps({**told, "text": text}))
        return
    click.echo(safe_lines(text) if sys.stdout.isatty() else text)


def _read_input() -> str:
    """The text on standard input, which is to be gone on with.

    Raises:
        click.UsageError: there is none.
        DataError: it is no text.
    """
    from mlx_gardener.errors import DataError
    from mlx_gardener.platform.reasons import reason_of

    if sys.stdin is not None and sys.stdin.isatty():
        click.echo("Type the code to go on with, then Ctrl-D; or name FILE:LINE.", err=True)
    try:
        text = "" if sys.stdin is None else sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"Standard input cannot be read ({reason_of(error)}).", next_step="Send text as UTF-8."
        ) from error
    text = text.replace("\r\n", "\n")
    if not text:
        raise click.UsageError(
            "There is nothing to go on with: name FILE:LINE, or send code on standard input."
        )
    return text


def _read_place(place: str, root: Path) -> tuple[str, str, str]:
    """Text before and after a line of a file, and the file's path within the repository."""
    from mlx_gardener.dataset.tasks import file_lines
    from mlx_gardener.errors import DataError
    from mlx_gardener.platform.reasons import reason_of
    from mlx_gardener.report.text import counted

    name, _, number = place.rpartition(":")
    if not name or not number.isdigit() or int(number) < 1:
        raise click.BadParameter(f"{place!r} is not FILE:LINE", param_hint="FILE:LINE")
    file = Path(name) if Path(name).exists() else root / name
    try:
        lines = file_lines(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name!r} cannot be read ({reason_of(error)}).", next_step="Name a text file of the project."
        ) from error
    if int(number) > len(lines) + 1:
        raise DataError(
            f"{name!r} has only {counted(len(lines), 'line')}.", next_step="Name a line of the file."
        )
    at = int(number) - 1
    full = file.resolve()
    path = full.relative_to(root).as_posix() if full.is_relative_to(root) else file.name
    return "".join(lines[:at]), "".join(lines[at + 1 :]), path
