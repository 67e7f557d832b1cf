"""``mlx-gardener scan``: what a repository would be trained on, before anything is."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_gardener.cli.options import (
    budget_option,
    config_option,
    model_option,
    parse_settings,
    place_type,
    settings_option,
)
from mlx_gardener.platform.sizes import GIB
from mlx_gardener.runs.forecast import estimate_training, list_kept_lines

if TYPE_CHECKING:
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.source import Scan


@click.command()
@click.argument("path", type=place_type, default=".")
@model_option
@budget_option
@config_option
@settings_option
@click.option("--lines", is_flag=True, help="List the lines that would be kept, file by file.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON document on stdout.")
def scan(
    path: Path,
    model: str | None,
    budget: float | None,
    config_file: Path | None,
    pairs: tuple[str, ...],
    lines: bool,
    as_json: bool,
) -> None:
    """Show what the repository at PATH would be trained on: kept, dropped and why, secrets, time and memory.

    Exit code 1 where a training would be refused, with its reason.
    """
    from mlx_gardener.cli import show_error
    from mlx_gardener.config import load_config
    from mlx_gardener.dataset.prepare import check_enough
    from mlx_gardener.engine import prepare_model
    from mlx_gardener.errors import GardenerError
    from mlx_gardener.registry import default_home
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.models_view import show_choice
    from mlx_gardener.report.scan_view import show_kept_lines, show_scan
    from mlx_gardener.report.text import about, counted
    from mlx_gardener.report.time_view import time_text
    from mlx_gardener.report.waiting import said_if_slow
    from mlx_gardener.runs.parent import as_trained

    config = as_trained(
        load_config(
            config_file, overrides={"model": model, "memory_limit_gb": budget, **parse_settings(pairs)}
        ),
        path,
    )
    with said_if_slow("Looking at the base models", silent=as_json):
        prepared = prepare_model(config, default_home() / "cache", ahead=True)
    found = scan_with_progress(path, config, silent=as_json)
    estimate = estimate_training(found, config, prepared)
    if as_json:
        told = {**found.to_json(), "kept_lines": list_kept_lines(found, config), "estimate": estimate}
        try:
            check_enough(found, config)
        except GardenerError as error:
            code = show_error(error, None)
            told["error"] = {"message": error.message, "next_step": error.next_step, "exit_code": code}
        click.echo(json.dumps(told, indent=2))
        if "error" in told:
            raise click.exceptions.Exit(1)
        return
    console = make_console()
    show_scan(console, found, config.max_training_chunks)
    if lines:
        show_kept_lines(console, list_kept_lines(found, config))
    console.print()
    show_choice(console, prepared.choice)
    console.print(
        f"With it, one pass over the part to learn from is about {about(estimate['pass_tokens'])} tokens "
        f"({estimate['tokens_from']}). A training takes {time_text(estimate)}; "
        f"peak about {estimate['peak_bytes'] / GIB:.2f} GB of {config.memory_limit_gb:g} GB"
    )
    edits = estimate["edits"]
    console.print(
        f"Past commits: no next edits are learned from them, since {edits['why']}"
        if "why" in edits
        else f"Past commits: {counted(edits['commits'], 'commit')}, {edits['commits_by_people']:,} of them written by people; "
        f"up to about {about(edits['tokens'])} of these tokens are next edits from them"
    )
    check_enough(found, config)


def scan_with_progress(path: Path, config: TrainingConfig, *, silent: bool = False) -> Scan:
    """`source.scan_repository` with a bar on stderr, or lines where that is no terminal.

    Raises:
        DataError: as there.
    """
    from rich.progress import Progress

    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.waiting import PATIENCE_SECONDS, progress_line
    from mlx_gardener.source import scan_repository

    if not (silent or sys.stderr.isatty()):
        began = time.monotonic()
        with progress_line() as tell:
            return scan_repository(
                path,
                config.data,
                quality_threshold=config.training_data_quality_threshold,
                on_progress=lambda share, message: (
                    tell(share, message) if time.monotonic() - began > PATIENCE_SECONDS else None
                ),
            )
    with Progress(console=make_console(stderr=True), transient=True, disable=silent) as progress:
        task = progress.add_task("Reading", total=1.0)
        return scan_repository(
            path,
            config.data,
            quality_threshold=config.training_data_quality_threshold,
            on_progress=lambda share, message: progress.update(task, completed=share, description=message),
        )
