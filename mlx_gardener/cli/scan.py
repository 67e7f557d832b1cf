"""``mlx-gardener scan``: what a repository would be trained on, before anything is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_gardener.cli.completion import complete_models, complete_settings

if TYPE_CHECKING:
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.engine import ModelFacts
    from mlx_gardener.model import ModelChoice
    from mlx_gardener.source import Scan


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=".")
@click.option(
    "--model",
    shell_complete=complete_models,
    help="auto, seedling, a hub id, or a directory. [default: auto]",
)
@click.option("--budget", type=float, metavar="GB", help="Memory the training may take. [default: 4]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A TOML file of settings.")
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_settings,
    help="Any setting, as in train.",
)
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
    from mlx_gardener.cli.train import parse_settings
    from mlx_gardener.config import load_config
    from mlx_gardener.continuation import as_trained
    from mlx_gardener.dataset.prepare import check_enough
    from mlx_gardener.engine import look_ahead
    from mlx_gardener.errors import GardenerError
    from mlx_gardener.model import choose_model
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.scan_view import show_kept_lines, show_scan
    from mlx_gardener.report.text import safe_text

    config = as_trained(
        load_config(
            config_file, overrides={"model": model, "memory_limit_gb": budget, **parse_settings(pairs)}
        ),
        path,
    )
    choice = choose_model(config.model, config.memory_limit_bytes, may_fetch=True)
    place, facts = look_ahead(choice, config.lora)
    found = scan_with_progress(path, config, silent=as_json)
    estimate = estimate_training(found, config, choice, place, facts)
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
    show_scan(console, found)
    if lines:
        show_kept_lines(console, list_kept_lines(found, config))
    console.print(f"\nBase model: {safe_text(choice.name)} ({safe_text(choice.reason)})", highlight=False)
    console.print(
        f"With it: about {estimate['tokens']:,} tokens ({estimate['tokens_from']}), {time_text(estimate)}; "
        f"peak about {estimate['peak_bytes'] / 2**30:.2f} GB of {config.memory_limit_gb:g} GB"
    )
    check_enough(found, config)


def scan_with_progress(path: Path, config: TrainingConfig, *, silent: bool = False) -> Scan:
    """`source.scan_repository` with a bar on stderr.

    Raises:
        DataError: as there.
    """
    from rich.progress import Progress

    from mlx_gardener.report.live import make_console
    from mlx_gardener.source import scan_repository

    with Progress(console=make_console(stderr=True), transient=True, disable=silent) as progress:
        task = progress.add_task("Reading", total=1.0)
        return scan_repository(
            path,
            config.data,
            quality_threshold=config.training_data_quality_threshold,
            on_progress=lambda share, message: progress.update(task, completed=share, description=message),
        )


def list_kept_lines(found: Scan, config: TrainingConfig) -> list[dict[str, Any]]:
    """Path, first and last line (from 1) of every stretch that training would read, whatever part it then falls into."""
    from mlx_gardener.dataset.examples import kept_lines
    from mlx_gardener.dataset.prepare import select_best
    from mlx_gardener.errors import DataError
    from mlx_gardener.source import read_source

    stretches = []
    for record in select_best(found.files, config.max_training_chunks)[0]:
        try:
            places = kept_lines(read_source(found.root, record), record)
        except DataError:
            continue  # it changed since, and training would leave it out too
        stretches += [{"path": record.path, "start_line": first, "end_line": last} for first, last in places]
    return stretches


def time_text(estimate: dict[str, Any]) -> str:
    """``about 9 minutes to learn from 259,000 tokens at 1,543 tokens/s (estimated from ...)``."""
    minutes = estimate["minutes"]
    time = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} minutes"
    if minutes < 1.5:
        time = "a minute"
    within = ""
    if estimate["epochs_in_limit"] < estimate["epochs"]:
        within = (
            f"; of its {estimate['epochs']:g} epochs about {estimate['epochs_in_limit']:.2g} fit into the limit of "
            f"{estimate['limit_minutes']:g} minutes (--timeout), with a measured adapter at the end"
        )
    return (
        f"about {time} to learn from {estimate['trained_tokens']:,} tokens at "
        f"{estimate['tokens_per_second']:,.0f} tokens/s ({estimate['speed_from']}){within}"
    )


def estimate_training(
    found: Scan, config: TrainingConfig, choice: ModelChoice, path: Path, facts: ModelFacts
) -> dict[str, Any]:
    """Tokens (measured on a sample of files), minutes and peak memory of a training on ``found``.

    Args:
        path, facts: of the chosen model, from `engine.look_ahead`.

    Raises:
        MemoryBudgetError: the model does not fit the budget.
    """
    from mlx_gardener.engine import known_backend, make_plan
    from mlx_gardener.errors import DataError
    from mlx_gardener.model import load_tokenizer
    from mlx_gardener.registry import default_home
    from mlx_gardener.source import read_source
    from mlx_gardener.training.time_plan import OTHER_SHARE, VALIDATION_SHARE

    tokenizer = load_tokenizer(path)
    sample = sorted(found.files, key=lambda record: record.sha256)[:20]
    texts = []
    for record in sample:
        try:
            texts.append(read_source(found.root, record).text)
        except DataError:
            continue  # it changed since; the others are sample enough
    size = sum(len(text.encode()) for text in texts)
    ratio = sum(len(ids) for ids in tokenizer.encode_many(texts)) / size if size else 1 / 3.5
    chunk_bytes = sum(counts["bytes"] for counts in found.languages.values())
    kept = min(1.0, config.max_training_chunks / max(1, found.chunks_kept))
    tokens = int(chunk_bytes * ratio * kept)
    plan = make_plan(facts, config, config.memory_limit_bytes, known_backend(default_home() / "cache", facts))
    speed = plan.predicted_tokens_per_second
    train_share = 1 - config.data.validation_fraction - config.data.test_fraction
    trained = tokens * train_share * config.optimizer.epochs
    if config.optimizer.max_steps is not None:
        trained = min(trained, config.optimizer.max_steps * config.optimizer.tokens_per_update)
    epoch = max(1.0, tokens * train_share)
    limit = config.training_timeout_minutes * 60 or math.inf
    fitting = (1 - OTHER_SHARE) * (1 - VALIDATION_SHARE) * limit * speed
    return {
        "model": choice.name,
        "model_reason": choice.reason,
        "tokens": tokens,
        "tokens_from": f"counted in {len(texts)} files" if size else "3.5 bytes a token assumed",
        "tokens_per_second": round(speed, 1),
        "speed_from": plan.speed_from,
        "epochs": round(trained / epoch, 3),
        "epochs_in_limit": round(min(trained, fitting) / epoch, 3),
        "trained_tokens": int(trained),
        "minutes": round(trained / speed / 60, 3),
        "limit_minutes": config.training_timeout_minutes,
        "peak_bytes": plan.predicted_peak_bytes,
    }
