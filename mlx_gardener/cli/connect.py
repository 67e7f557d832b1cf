"""``mlx-gardener connect``: make an editor ask this machine's server, prove that it works, take it back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_gardener.cli.asking import ask
from mlx_gardener.cli.completion import complete_projects
from mlx_gardener.cli.options import file_type, name_type
from mlx_gardener.errors import GardenerError

if TYPE_CHECKING:
    from mlx_gardener.serve.catalog import Catalog

_EDITORS = ["zed", "zed-ollama", "vscode", "continue", "twinny", "vim", "neovim", "neovim-lsp", "minuet"]


@click.command()
@click.argument("editor", type=click.Choice(_EDITORS), metavar="EDITOR")
@click.option(
    "--project",
    type=name_type,
    shell_complete=complete_projects,
    help="Whose adapter; the active project by default.",
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
    type=file_type,
    help="Another settings file than the usual one.",
)
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--undo", "undoing", is_flag=True, help="Take the connection back.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def connect(
    editor: str,
    project: str | None,
    address: str,
    token: str | None,
    file: Path | None,
    yes: bool,
    undoing: bool,
    as_json: bool,
) -> None:
    """Connect EDITOR with a project's adapter.

    EDITOR is zed, zed-ollama, vscode, continue, twinny, vim, neovim, neovim-lsp or minuet.

    Shows what would change in the editor's settings and, when you agree, asks for one completion as the editor would
    and writes the change. Vim and Neovim are looked at first, and llama.vim in them asks for a completion itself. twinny and
    minuet keep their settings where no program may write: what to enter is shown. --undo puts the settings back as they were.
    """
    from mlx_gardener import editors
    from mlx_gardener.adapter import PeftManager, base_name
    from mlx_gardener.editors import vim
    from mlx_gardener.editors.plugins import BY_HAND, by_hand
    from mlx_gardener.editors.settings import check_base, vim_endpoint
    from mlx_gardener.model.choose import choose_model, resolve_model
    from mlx_gardener.model.tokens import load_tokenizer
    from mlx_gardener.platform.editor_places import settings_file
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_lines, safe_text
    from mlx_gardener.serve.catalog import Catalog

    registry = ProjectRegistry()
    if undoing:
        place, left = editors.undo(editor, registry.home)
        if as_json:
            click.echo(json.dumps({"editor": editor, "file": str(place), "left": left}))
            return
        click.echo(f"{place} is as it was." if not left else f"{place}: taken out what was still as written.")
        for key in left:
            click.echo(f"  {safe_text(key)} was edited since and stays as it is.")
        return
    address = checked_address(address)
    name = project if project is not None else _chosen(Catalog(registry))
    record = registry.get_adapter(name)
    tokenizer = load_tokenizer(resolve_model(choose_model(base_name(registry, record))))
    change = None
    if editor in BY_HAND:
        check_base(name, tokenizer)
        if not as_json:
            click.echo(safe_lines(by_hand(editor, name, address, token)))
    else:
        change = editors.plan_change(
            editor,
            file or settings_file(editor),
            project=name,
            address=address,
            token=token,
            tokenizer=tokenizer,
            home=registry.home,
        )
    state = vim.look(editor) if editor in ("vim", "neovim") else None
    if change is not None and change.changes:
        if not as_json:
            click.echo(safe_lines(change.diff()))
        if not yes:
            ask("Write this?", as_json=as_json)
    elif change is not None and not as_json:
        click.echo(f"{change.file} says so already.")
    weights = PeftManager(registry).load_adapter(name).manifest["files"]["mlx/adapters.safetensors"]["sha256"]
    running = editors.is_running(address)
    if not as_json:
        asked = "the server" if running else "a server started for this"
        click.echo(f"Asking {asked} for a completion, as {editor} would ...", err=True)
    with contextlib.nullcontext() if running else _server(registry, name, address, token):
        proof = editors.prove(editor, name, address, token, tokenizer, weights)
        text = proof.text
        if change is not None and change.changes:
            editors.apply(change, registry.home)
            if not as_json:
                click.echo(f"Written. `mlx-gardener connect {editor} --undo` takes it back.")
        if state is not None and change is not None:
            try:
                text = vim.complete(editor, state, change.file, vim_endpoint(address, name))
            except GardenerError as error:
                error.next_step = f"{error.next_step} `mlx-gardener connect {editor} --undo` takes it back."
                raise
    left_to_do = list(_left_to_do(editor, state is not None, has_token=token is not None))
    if not running:
        command = _serve_command(address)
        left_to_do.append(f"The server at {address} was there for the proof alone. Start one: `{command}`.")
    if as_json:
        told = {
            "editor": editor,
            "file": None if change is None else str(change.file),
            "changed": change is not None and change.changes,
            "by_hand": by_hand(editor, name, address, token) if change is None else None,
            "project": name,
            "version": record.version,
            "address": address,
            "asked_by": "mlx-gardener" if state is None else f"{state.program} {state.version}",
            "completion": text,
            "adapter_sha256": weights,
            "left_to_do": left_to_do,
        }
        click.echo(json.dumps(told, indent=2))
        return
    first = text.strip().split("\n")[0][:60]
    asked = "" if state is None else f", asked for by llama.vim in {state.program} {safe_text(state.version)}"
    click.echo(
        f"A completion came back from {name} {record.version} ({weights[:12]}){asked}: {safe_text(first) or '(empty)'}"
    )
    for sentence in left_to_do:
        click.echo(sentence)


def _chosen(catalog: Catalog) -> str:
    """The project that is meant where none was named.

    Raises:
        RegistryError: none is the active or only one.
    """
    from mlx_gardener.errors import RegistryError
    from mlx_gardener.serve.catalog import UnknownModelError

    try:
        return catalog.default().id
    except UnknownModelError as error:
        names = [target.id for target in catalog.targets() if target.is_project]
        if not names:
            raise RegistryError(
                "No project has an adapter yet, so there is nothing to connect with.",
                next_step="Train one with `mlx-gardener train PATH`.",
            ) from error
        raise RegistryError(
            "No --project was named, and none is the active or only one.",
            next_step=f"Name one: {', '.join(names)}.",
        ) from error


def checked_address(address: str) -> str:
    """``address`` without a slash at its end.

    Raises:
        ConfigError: it is none that an editor can ask.
    """
    from urllib.parse import urlsplit

    from mlx_gardener.errors import ConfigError
    from mlx_gardener.platform.reasons import reason_of

    try:
        parts = urlsplit(address)
        _ = parts.port  # raises where it is no number
        reason = "" if parts.hostname else "it names no host"
    except ValueError as error:
        parts, reason = urlsplit(""), reason_of(error)
    if not reason and parts.scheme not in ("http", "https"):
        reason = "it begins with neither http:// nor https://"
    elif not reason and (parts.username is not None or parts.query or parts.fragment):
        reason = "it is more than a host, a port and a path"
    elif not reason and any(character.isspace() or not character.isprintable() for character in address):
        reason = "it has blanks in it"
    if reason:
        raise ConfigError(
            f"{address!r} is no address of a server ({reason}).",
            next_step="Name one such as --address http://127.0.0.1:8012.",
        )
    return address.rstrip("/")


def _left_to_do(editor: str, is_seen: bool, *, has_token: bool) -> Iterator[str]:
    """What somebody has to do or to know besides, in sentences."""
    from importlib.util import find_spec

    from mlx_gardener.editors.settings import LLAMA_VSCODE
    from mlx_gardener.platform.editor_places import has_vscode_extension
    from mlx_gardener.platform.extras import how_to_install

    if editor in ("vim", "neovim") and not is_seen:
        yield "The editor is not on the PATH: whether llama.vim runs in it was not seen."
    if editor == "vscode" and has_vscode_extension(LLAMA_VSCODE) is False:
        yield f"VS Code asks with an extension that it has not: `code --install-extension {LLAMA_VSCODE}`."
    if editor == "neovim-lsp":
        yield "Neovim 0.12 or newer shows the completions, <C-F> takes one."
        if find_spec("pygls") is None:
            yield f"`mlx-gardener lsp` needs pygls. {how_to_install('lsp')}"
    if editor == "zed-ollama" and has_token:
        yield "Zed takes the token from OLLAMA_API_KEY, or in its AI settings."
    if editor == "zed" and has_token:
        yield "Zed takes the token from ZED_OPEN_AI_COMPATIBLE_EDIT_PREDICTION_API_KEY, or in its AI settings."


def _server(
    registry: object, project: str, address: str, token: str | None
) -> contextlib.AbstractContextManager[str]:
    """A server of our own at ``address`` itself, for as long as the proof needs it.

    Raises:
        ConfigError: something else listens there.
        ProofError: nothing answers there, and it is not this machine's loopback.
    """
    from urllib.parse import urlsplit

    from mlx_gardener.editors.proof import ProofError
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.serve import ServeSettings
    from mlx_gardener.serve.server import serving
    from mlx_gardener.serve.settings import is_loopback

    assert isinstance(registry, ProjectRegistry)
    parts = urlsplit(address)
    port = parts.port or 80
    if parts.scheme != "http" or parts.hostname is None or not is_loopback(parts.hostname):
        raise ProofError(
            f"No server answers at {address}; nothing was written.",
            next_step="Start `mlx-gardener serve` there, or name the --address where it listens.",
        )
    click.echo(f"No server answers at {address}; starting one there for the proof.", err=True)
    return serving(registry, ServeSettings(parts.hostname, port, projects=(project,), token=token))


def _serve_command(address: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(address)
    host = "" if parts.hostname == "127.0.0.1" else f" --host {parts.hostname}"
    port = "" if parts.port == 8012 else f" --port {parts.port or 80}"
    return f"mlx-gardener serve{host}{port}"
