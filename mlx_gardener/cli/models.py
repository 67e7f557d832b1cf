"""``mlx-gardener models``: the base models on this machine, and what can be trained on."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from mlx_gardener.cli.options import (
    as_json_option,
    budget_option,
    config_option,
    parse_settings,
    place_type,
    settings_option,
)

#: What takes longer shows how far it is.
_PATIENCE_SECONDS = 2.0


@click.command()
@click.argument("places", type=place_type, nargs=-1, metavar="[PATH]...")
@budget_option
@config_option
@settings_option
@as_json_option
def models(
    places: tuple[Path, ...],
    budget: float | None,
    config_file: Path | None,
    pairs: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the base models on this machine, with whether each fits the budget and what an update of 1,024 tokens takes.

    Looks into the Hugging Face cache, Ollama, LM Studio, llama.cpp's cache, Jan and oMLX, and into every PATH; the embedded
    one comes last. Only headers are read. Each name can be given to `train --model`.
    """
    from rich.progress import Progress

    from mlx_gardener.config import load_config
    from mlx_gardener.engine.bases import list_bases
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.models_view import show_bases

    config = load_config(config_file, overrides={"memory_limit_gb": budget, **parse_settings(pairs)})
    began = time.monotonic()
    with Progress(console=make_console(stderr=True), transient=True, disable=as_json) as progress:
        task = progress.add_task("Reading headers", total=None, visible=False)

        def tell(done: int, total: int) -> None:
            late = time.monotonic() - began > _PATIENCE_SECONDS
            progress.update(task, completed=done, total=total, visible=late)

        found = list_bases(config, places, tell)
    if as_json:
        told = {"budget_gb": config.memory_limit_gb, "models": [base.to_json() for base in found]}
        click.echo(json.dumps(told, indent=2))
        return
    show_bases(make_console(), found, config.memory_limit_bytes)
    if len(found) == 1:  # the embedded one
        click.echo(
            "\nThere are no other base models on this machine. `mlx-gardener train` fetches one, or takes this one."
        )
