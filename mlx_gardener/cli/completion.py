"""``mlx-gardener completion SHELL``: the lines a shell needs to complete commands, options and project names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print completion code for SHELL.

    \b
    bash: eval "$(mlx-gardener completion bash)"
    zsh:  eval "$(mlx-gardener completion zsh)"
    fish: mlx-gardener completion fish | source
    """
    from click.shell_completion import get_completion_class

    from mlx_gardener.cli import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"There is no completion for {shell}.")
    click.echo(kind(cli, {}, "mlx-gardener", "_MLX_GARDENER_COMPLETE").source())


def complete_versions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Adapter versions of the project that was named, else of the one whose repository this is; the newest first."""
    from pathlib import Path

    from mlx_gardener.errors import GardenerError
    from mlx_gardener.platform.files import resolved
    from mlx_gardener.registry import ProjectRegistry

    try:
        registry = ProjectRegistry()
        here = resolved(Path(ctx.params.get("path") or "."))
        named = ctx.params.get("project")
        first = ctx.command.params[0]
        if named is None and first.name == "project" and ctx.args:
            named = ctx.args[0]  # click reads no arguments where an option has no value yet
        names = [named] if named else [item.name for item in registry.list_projects() if item.path == here]
        versions = [item.version for name in names for item in registry.list_adapters(name)]
    except GardenerError:
        return []  # no such project, or an unreadable registry: the command itself will say so
    return [version for version in reversed(versions) if version.startswith(incomplete)]


def complete_settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Settings for ``--set``, up to their ``=``."""
    from mlx_gardener.config import known_keys

    return [f"{key}=" for key in sorted(known_keys()) if key.startswith(incomplete)]


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Base models: those with a name of their own, those in the stores of this machine, the recommended ones; and directories."""
    from pathlib import Path

    from click.shell_completion import CompletionItem
    from huggingface_hub import constants

    from mlx_gardener.model.choose import SEEDLING
    from mlx_gardener.model.recommended import RECOMMENDED
    from mlx_gardener.model.stores import find_bases

    if incomplete.startswith((".", "/", "~")):
        return [CompletionItem(incomplete, type="dir")]
    cached = sorted(
        place.name.removeprefix("models--").replace("--", "/", 1)
        for place in Path(constants.HF_HUB_CACHE).glob("models--*--*")
    )
    stored = (base.name for base in find_bases() if base.why_not is None)
    names = dict.fromkeys(("auto", SEEDLING, *cached, *stored, *(one.id for one in RECOMMENDED)))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_projects(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Project names that begin with ``incomplete``; used by every command with a PROJECT argument."""
    from mlx_gardener.errors import GardenerError
    from mlx_gardener.registry import ProjectRegistry

    try:
        names = [project.name for project in ProjectRegistry().list_projects()]
    except GardenerError:
        return []  # an unreadable registry has no names to offer; the command itself will say why
    return [name for name in names if name.startswith(incomplete)]
