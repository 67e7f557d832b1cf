"""``mlx-gardener lsp``: inline completions for editors that speak the language server protocol."""

from __future__ import annotations

import click

from mlx_gardener.cli.completion import complete_projects
from mlx_gardener.cli.options import name_type


@click.command()
@click.argument("projects", type=name_type, nargs=-1, shell_complete=complete_projects)
@click.option("--address", help="Ask the `mlx-gardener serve` there, e.g. http://127.0.0.1:8012.")
@click.option("--token", help="That server's bearer token; MLX_GARDENER_TOKEN does the same.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="GB that bases and adapters may take, without --address.",
)
def lsp(projects: tuple[str, ...], address: str | None, token: str | None, budget: float) -> None:
    """Be a language server for editors: standard input and output speak LSP 3.18, with textDocument/inlineCompletion.

    A file is completed by the project that it lies in, of PROJECTS (all by default), or by the active or only one.
    Needs the extra `lsp`: in the checkout pipx install --force '.[lsp]'.
    """
    import os

    from mlx_gardener.cli.connect import checked_address
    from mlx_gardener.config import GIB, load_config
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.serve.lsp import run_lsp
    from mlx_gardener.serve.settings import TOKEN_VARIABLE, ServeSettings

    serving = load_config().serve
    settings = ServeSettings(
        projects=projects,
        token=token or os.environ.get(TOKEN_VARIABLE) or None,
        budget_bytes=int(budget * GIB),
        retrieval=serving.retrieval,
        evidence_in_use=serving.evidence_in_use,
        compare=serving.compare,
    )
    run_lsp(ProjectRegistry(), settings, None if address is None else checked_address(address))
