"""``mlx-gardener plan``: how a memory budget would be used for a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from mlx_gardener.cli.options import (
    as_json_option,
    budget_option,
    config_option,
    model_option,
    parse_settings,
    place_type,
    settings_option,
)


@click.command()
@click.argument("path", type=place_type, required=False)
@model_option
@budget_option
@config_option
@settings_option
@as_json_option
def plan(
    path: Path | None,
    model: str | None,
    budget: float | None,
    config_file: Path | None,
    pairs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show what the memory budget would be used for, without loading the model's weights.

    It also tells the longest sequence of tokens that trains within the budget. With the repository at PATH also how
    long a training on it would take. What `train` would refuse is refused.
    """
    from mlx_gardener.cli.scan import scan_with_progress
    from mlx_gardener.config import load_config
    from mlx_gardener.dataset.prepare import check_enough
    from mlx_gardener.engine import prepare_model
    from mlx_gardener.registry import default_home
    from mlx_gardener.report.live import make_console
    from mlx_gardener.report.models_view import show_choice
    from mlx_gardener.report.plan_view import show_plan
    from mlx_gardener.report.time_view import takes_text
    from mlx_gardener.report.waiting import said_if_slow
    from mlx_gardener.runs.forecast import estimate_training
    from mlx_gardener.runs.parent import as_trained, foretell_parent
    from mlx_gardener.runs.ranks import check_hosts

    flags = {"model": model, "memory_limit_gb": budget}
    config = load_config(config_file, overrides={**flags, **parse_settings(pairs)})
    if path is None:
        check_hosts(config.parallel)
    else:
        config = as_trained(config, path)
    with said_if_slow("Looking at the base models", silent=as_json):
        prepared = prepare_model(config, default_home() / "cache", ahead=True)
    choice, chosen = prepared.choice, prepared.plan(config)
    estimate = going_on = None
    if path is not None:
        found = scan_with_progress(path, config, silent=as_json)
        check_enough(found, config)
        parent = foretell_parent(path, config, choice, found)
        going_on = None if parent is None else asdict(parent)
        estimate = estimate_training(found, config, prepared, parent)
    if as_json:
        about = {"model": choice.name, "reason": choice.reason, "passed_over": list(choice.passed_over)}
        shown = {**about, **chosen.to_json(), "longest_row_tokens": prepared.longest_row(config)}
        if estimate is not None:
            shown |= {"estimate": estimate, "going_on": going_on}
        click.echo(json.dumps(shown, indent=2))
        return
    console = make_console()
    show_choice(console, choice)
    show_plan(
        console,
        chosen,
        prepared.other_plans(config),
        longest_row=prepared.longest_row(config),
        most_tokens=prepared.facts.max_tokens,
        has_speed=estimate is None,
    )
    if estimate is not None:
        if estimate["chunks_used"] < estimate["chunks_kept"]:
            console.print(
                f"\nA training uses the best {estimate['chunks_used']:,} of {estimate['chunks_kept']:,} chunks "
                "(max_training_chunks).",
                highlight=False,
            )
        console.print(f"\n{takes_text(estimate, going_on)}", highlight=False)
