"""``mlx-gardener completion SHELL``: the lines a shell needs to complete commands, options and project names."""

from __future__ import annotations

import click


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


def complete_projects(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Project names that begin with ``incomplete``; used by every command with a PROJECT argument."""
    from mlx_gardener.errors import GardenerError
    from mlx_gardener.registry import ProjectRegistry

    try:
        names = [project.name for project in ProjectRegistry().list_projects()]
    except GardenerError:
        return []  # an unreadable registry has no names to offer; the command itself will say why
    return [name for name in names if name.startswith(incomplete)]
