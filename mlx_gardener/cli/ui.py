"""``mlx-gardener ui``: the web page, in a browser of this machine."""

from __future__ import annotations

import json

import click

from mlx_gardener.cli.options import host_option, token_option


@click.command()
@host_option
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8013, show_default=True, help="0 takes a free one."
)
@token_option
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="GB that bases and adapters may take where completions are tried.",
)
@click.option("--allow-host", multiple=True, help="Another name that browsers may call this server by.")
@click.option("--no-open", is_flag=True, help="Do not open a browser; the address is printed either way.")
@click.option("--json", "as_json", is_flag=True, help="Tell the address as a JSON line; opens no browser.")
def ui(
    host: str,
    port: int,
    token: str | None,
    budget: float,
    allow_host: tuple[str, ...],
    no_open: bool,
    as_json: bool,
) -> None:
    """Show a web page of all projects until Ctrl-C: what would be read, trainings, verdicts, completions to try.

    Nothing is loaded before it is asked for. `mlx-gardener serve` has the same page at its address. The address that is
    printed holds a token that the page needs; trainings started on the page go on when it is closed.
    """
    if not as_json:
        click.echo("Starting the server of the page ...", err=True)
    from mlx_gardener.config import GIB
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.serve.server import serve
    from mlx_gardener.serve.settings import ServeSettings, choose_token
    from mlx_gardener.ui import make_page, page_address, page_token

    registry = ProjectRegistry()
    chosen, origin = choose_token(host, token, registry.home)
    settings = ServeSettings(
        host=host, port=port, token=chosen, budget_bytes=int(budget * GIB), allowed_hosts=allow_host
    )
    asked = page_token(chosen)
    shown = (
        None if chosen is not None else asked
    )  # a token that was chosen is known, and need not stand in logs

    def show_ready(address: str, end: object) -> None:
        where = page_address(address, shown)
        if as_json:
            click.echo(json.dumps({"event": "ready", "address": address, "page": where}))
            return
        click.echo(f"The page is at {where}" + ("" if shown else f"; its token is from {origin}"))
        click.echo("Ctrl-C ends.")
        if not no_open:
            import webbrowser

            if not webbrowser.open(where):
                click.echo("No web browser could be started: open the address in one yourself.", err=True)

    serve(
        registry,
        settings,
        on_test=lambda _: None,
        on_ready=show_ready,
        page=make_page(asked),
        loads_ahead=False,
    )
