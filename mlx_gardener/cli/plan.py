"""``mlx-gardener plan``: how a memory budget would be used for a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_gardener.cli.completion import complete_models, complete_settings

if TYPE_CHECKING:
    from mlx_gardener.engine import Plan


@click.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--model",
    shell_complete=complete_models,
    help="auto, seedling, a hub id, a directory, a GGUF file, or what `models` lists. [default: auto]",
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
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def plan(
    path: Path | None,
    model: str | None,
    budget: float | None,
    config_file: Path | None,
    pairs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show what the memory budget would be used for, without loading the model's weights.

    With the repository at PATH also how long a training on it would take. What `train` would refuse is refused.
    """
    from mlx_gardener.choosing import look_ahead_at
    from mlx_gardener.cli.scan import estimate_training, scan_with_progress, time_text
    from mlx_gardener.cli.train import parse_settings
    from mlx_gardener.config import load_config
    from mlx_gardener.continuation import as_trained
    from mlx_gardener.dataset.prepare import check_enough
    from mlx_gardener.engine import known_backend, make_plan
    from mlx_gardener.errors import MemoryBudgetError
    from mlx_gardener.registry import default_home
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.models_view import show_choice
    from mlx_gardener.report.plan_view import show_plan

    flags = {"model": model, "memory_limit_gb": budget}
    config = load_config(config_file, overrides={**flags, **parse_settings(pairs)})
    if path is not None:
        config = as_trained(config, path)
    choice, place, facts = look_ahead_at(config)
    backend = known_backend(default_home() / "cache", facts)
    chosen = make_plan(facts, config, config.memory_limit_bytes, backend)
    estimate = None
    if path is not None:
        found = scan_with_progress(path, config, silent=as_json)
        check_enough(found, config)
        estimate = estimate_training(found, config, choice, place, facts)
    if as_json:
        about = {"model": choice.name, "reason": choice.reason, "passed_over": list(choice.passed_over)}
        shown = {**about, **chosen.to_json()}
        if estimate is not None:
            shown["estimate"] = estimate
        click.echo(json.dumps(shown, indent=2))
        return
    others: list[tuple[int, Plan | None]] = []
    for gigabytes in (-2, -1, 1, 2, 4):
        other = config.memory_limit_bytes + gigabytes * 2**30
        if other > 0:
            try:
                others.append((other, make_plan(facts, config, other, backend)))
            except MemoryBudgetError:
                others.append((other, None))
    console = make_console()
    show_choice(console, choice)
    show_plan(console, chosen, others)
    if estimate is not None:
        console.print(f"\nA training takes {time_text(estimate)}.", highlight=False)
