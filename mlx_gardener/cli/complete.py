"""``mlx-gardener complete``: a completion or the next edit by a project's adapter, at a place in a file or after standard input."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_gardener.cli.completion import complete_projects, complete_versions
from mlx_gardener.cli.options import as_json_option, config_option, name_type, retrieval_option

if TYPE_CHECKING:
    from mlx_gardener.config import RetrievalWish


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.argument("place", required=False, metavar="[FILE:LINE]")
@click.option("--base", "with_base", is_flag=True, help="Complete with the base model alone, to compare.")
@click.option(
    "--version", shell_complete=complete_versions, help="Adapter version; the active one by default."
)
@click.option("--no-suffix", is_flag=True, help="Do not show the model what follows LINE.")
@click.option(
    "--edit",
    is_flag=True,
    help="Show what the lines around FILE:LINE become after what was changed since the last commit.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1024),
    show_default="48, or with --edit as many as two such windows have",
)
@retrieval_option
@config_option
@as_json_option
def complete(
    project: str,
    place: str | None,
    with_base: bool,
    version: str | None,
    no_suffix: bool,
    edit: bool,
    max_tokens: int | None,
    retrieval: RetrievalWish | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Complete code with PROJECT's adapter.

    With FILE:LINE the completion begins at the start of that line, with what follows the line as context; without it
    the text on standard input is continued. FILE is a path from the current directory, else from the repository's root.
    Where the version's evidence speaks for it, code of the repository is retrieved and stands in front of the prompt; --json
    says which. With --edit the next edit is shown as a diff, or that none is due, and what it could not go on from.
    """
    from mlx_gardener.api.commands import complete as complete_code
    from mlx_gardener.config import load_config
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_lines
    from mlx_gardener.report.waiting import said_if_slow

    serving = load_config(config_file, overrides={"serve.retrieval": retrieval}).serve
    registry = ProjectRegistry()
    root = registry.get_project(project).path
    registry.get_adapter(project, version)
    if edit:
        if place is None:
            raise click.UsageError("--edit needs a place: FILE:LINE.")
        if no_suffix or retrieval is not None:
            raise click.UsageError(
                "--edit takes neither --no-suffix nor --retrieval: its prompts have a form of their own."
            )
        _show_edit(project, place, root, version, with_base, max_tokens, as_json)
        return
    prefix, suffix, path = _read_place(place, root) if place else (_read_input(), None, "")
    with said_if_slow("Loading the base and writing", silent=as_json):
        found = complete_code(
            project,
            prefix,
            None if no_suffix else suffix,
            path=path,
            version=version,
            with_adapter=not with_base,
            max_tokens=48 if max_tokens is None else max_tokens,
            retrieval=serving.retrieval,
            evidence_in_use=serving.evidence_in_use,
        )
    if as_json:
        told = {
            "project": project,
            "version": found.version,
            "base_model": found.base_model,
            "retrieval": {
                "why": found.retrieval,
                "tokens": sum(piece.tokens for piece in found.retrieved),
                "chunks": [piece.to_json() for piece in found.retrieved],
            },
        }
        click.echo(json.dumps({**told, "text": found.text}))
        return
    click.echo(safe_lines(found.text) if sys.stdout.isatty() else found.text)


def _show_edit(
    project: str,
    place: str,
    root: Path,
    version: str | None,
    with_base: bool,
    max_tokens: int | None,
    as_json: bool,
) -> None:
    """Print the next edit at a place."""
    from dataclasses import asdict

    from mlx_gardener.api.next_edit import next_edit
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.report.waiting import said_if_slow

    lines, line, path = _lines_at(place, root)
    with said_if_slow("Loading the base and writing", silent=as_json):
        found = next_edit(
            project,
            path,
            "".join(lines).replace("\r\n", "\n"),
            line,
            version=version,
            with_adapter=not with_base,
            max_tokens=max_tokens,
        )
    if as_json:
        click.echo(json.dumps({**asdict(found), "is_due": bool(found.diff)}))
    elif not found.diff:
        click.echo("No edit" + (f": {found.why_none}." if found.why_none else "."))
        if found.note:
            click.echo(found.note)
    else:
        for row in found.diff.split("\n"):
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(row[:1])
            click.secho(safe_text(row.expandtabs(4)) if sys.stdout.isatty() else row, fg=colour)


def _read_input() -> str:
    """The text on standard input, which is to be gone on with.

    Raises:
        click.UsageError: there is none.
        DataError: it is no text, or does not end.
    """
    from mlx_gardener.errors import DataError
    from mlx_gardener.platform.reasons import reason_of
    from mlx_gardener.platform.untrusted import MAX_TEXT_BYTES

    if sys.stdin is not None and sys.stdin.isatty():
        click.echo("Type the code to go on with, then Ctrl-D; or name FILE:LINE.", err=True)
    try:
        data = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise DataError(
                f"Standard input is longer than {MAX_TEXT_BYTES} bytes.", next_step="Send the end of it."
            )
        text = data.decode()
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
    lines, line, path = _lines_at(place, root)
    return "".join(lines[: line - 1]), "".join(lines[line:]), path


def _lines_at(place: str, root: Path) -> tuple[list[str], int, str]:
    """The lines of a file, the one that is meant, from 1, and the file's path within the repository."""
    from mlx_gardener.dataset.tasks import file_lines
    from mlx_gardener.errors import DataError
    from mlx_gardener.platform.files import resolved
    from mlx_gardener.platform.reasons import reason_of
    from mlx_gardener.platform.untrusted import read_text
    from mlx_gardener.report.text import counted

    name, _, number = place.rpartition(":")
    if not name or not re.fullmatch(r"0*[1-9][0-9]{0,8}", number):
        raise click.BadParameter(f"{place!r} is not FILE:LINE", param_hint="FILE:LINE")
    file = Path(name) if Path(name).exists() else root / name
    try:
        lines = file_lines(read_text(file))
    except (OSError, ValueError) as error:
        is_nowhere = isinstance(error, FileNotFoundError) and not Path(name).is_absolute()
        looked = f", neither from here nor from {str(root)!r}" if is_nowhere else ""
        raise DataError(
            f"{name!r} cannot be read ({reason_of(error)}{looked}).",
            next_step="Name a text file of the project.",
        ) from error
    if int(number) > len(lines) + 1:
        raise DataError(
            f"{name!r} has only {counted(len(lines), 'line')}.", next_step="Name a line of the file."
        )
    full = resolved(file)
    path = full.relative_to(root).as_posix() if full.is_relative_to(root) else file.name
    return lines, int(number), path
