"""``mlx-gardener connect``: make an editor ask this machine's server, prove that it works, take it back."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from mlx_gardener.cli.completion import complete_projects
from mlx_gardener.errors import GardenerError


@click.command()
@click.argument("editor", type=click.Choice(["zed", "vscode", "vim", "neovim"]))
@click.option(
    "--project", shell_complete=complete_projects, help="Whose adapter; the active project by default."
)
@click.option(
    "--address",
    default="http://127.0.0.1:8012",
    show_default=True,
    help="Where `mlx-gardener serve` listens.",
)
@click.option(
    "--token", help="The server's bearer token, if it asks for one; written into the settings (not Zed's)."
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Another settings file than the usual one.",
)
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--undo", "undoing", is_flag=True, help="Take the connection back.")
def connect(
    editor: str,
    project: str | None,
    address: str,
    token: str | None,
    file: Path | None,
    yes: bool,
    undoing: bool,
) -> None:
    """Connect EDITOR with a project's adapter.

    Shows what would change in the editor's settings, writes it when you agree, and asks for one completion as the
    editor would. --undo puts the settings back as they were.
    """
    from mlx_gardener import editors
    from mlx_gardener.adapter import PeftManager, base_name
    from mlx_gardener.model.choose import choose_model, resolve_model
    from mlx_gardener.model.tokens import load_tokenizer
    from mlx_gardener.platform.editor_places import settings_file
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_lines, safe_text
    from mlx_gardener.serve.catalog import Catalog

    registry = ProjectRegistry()
    if undoing:
        place, left = editors.undo(editor, registry.home)
        click.echo(f"{place} is as it was." if not left else f"{place}: taken out what was still as written.")
        for key in left:
            click.echo(f"  {safe_text(key)} was edited since and stays as it is.")
        return
    name = project if project is not None else Catalog(registry).default().id
    record = registry.get_adapter(name)
    tokenizer = load_tokenizer(resolve_model(choose_model(base_name(registry, record), budget_bytes=2**62)))
    change = editors.plan_change(
        editor,
        file or settings_file(editor),
        project=name,
        address=address.rstrip("/"),
        token=token,
        tokenizer=tokenizer,
    )
    if change.changes:
        click.echo(safe_lines(change.diff()))
        if not yes and not click.confirm("Write this?"):
            click.echo("Nothing was changed.")
            return
        editors.apply(change, registry.home)
        click.echo(f"Written. `mlx-gardener connect {editor} --undo` takes it back.")
    else:
        click.echo(f"{change.file} says so already.")
    weights = PeftManager(registry).load_adapter(name).manifest["files"]["mlx/adapters.safetensors"]["sha256"]
    with _server(registry, name, address.rstrip("/")) as where:
        try:
            proof = editors.prove(editor, name, where, token, tokenizer, weights)
        except GardenerError as error:
            error.next_step = (
                error.next_step or f"`mlx-gardener connect {editor} --undo` takes the settings back."
            )
            raise
    first = proof.text.strip().split("\n")[0][:60]
    click.echo(
        f"A completion came back from {name} {record.version} ({weights[:12]}): {safe_text(first) or '(empty)'}"
    )
    if editor == "zed" and token is not None:
        click.echo(
            "Zed takes the token from ZED_OPEN_AI_COMPATIBLE_EDIT_PREDICTION_API_KEY, or in its AI settings."
        )
    if where != address.rstrip("/"):
        click.echo("That was a server for the proof alone; the editor needs `mlx-gardener serve` to run.")


def _server(registry: object, project: str, address: str) -> contextlib.AbstractContextManager[str]:
    """The server at ``address`` where one runs, else one of our own for as long as it is needed."""
    from mlx_gardener.editors.proof import is_running
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.serve import ServeSettings
    from mlx_gardener.serve.server import serving

    assert isinstance(registry, ProjectRegistry)
    if is_running(address):
        return contextlib.nullcontext(address)
    click.echo(f"No server answers at {address}; starting one for the proof.")
    return serving(registry, ServeSettings(port=0, projects=(project,)))
