"""``mlx-gardener mcp``: tools for agents, over standard input and output."""

from __future__ import annotations

import click

from mlx_gardener.cli.completion import complete_projects
from mlx_gardener.cli.options import name_type


@click.command()
@click.argument("projects", type=name_type, nargs=-1, shell_complete=complete_projects)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="GB that bases and adapters may take.",
)
def mcp(projects: tuple[str, ...], budget: float) -> None:
    """Be an MCP server for agents, for PROJECTS (all by default): standard input and output speak the protocol.

    Tools: search_repository, complete, status and verdict. Needs the extra `mcp` (in the checkout pipx install --force '.[mcp]').
    """
    from mlx_gardener.config import GIB, load_config
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.serve.mcp import run_mcp
    from mlx_gardener.serve.settings import ServeSettings

    retrieval = load_config().serve.retrieval
    run_mcp(
        ProjectRegistry(),
        ServeSettings(projects=projects, budget_bytes=int(budget * GIB), retrieval=retrieval),
    )
