"""A run's time plan for people, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_gardener.report.text import counted, duration


def time_line(plan: Mapping[str, Any]) -> str:
    """What the time limit is spent on, and how many updates fit.

    Args:
        plan: `training.time_plan.TimePlan.to_json`.
    """
    if plan["limit_seconds"] is None:
        return f"Time: no limit. {_training(plan)}, in about {duration(plan['training_seconds'])}."
    used, training, evidence = (
        duration(plan[f"{name}_seconds"]) for name in ("used", "training", "evidence")
    )
    most = (
        "" if plan["updates"] < plan["all_updates"] else "at most "
    )  # else the rest is the evidence's to use
    return (
        f"Time: of {duration(plan['limit_seconds'])}, {used} for reading and the dry run, {training} for training, "
        f"{most}{evidence} for measuring the adapter. {_training(plan)}."
    )


def _training(plan: Mapping[str, Any]) -> str:
    done, whole, epoch = plan["updates"], plan["all_updates"], plan["steps_per_epoch"]
    pace = f"{plan['pace']['update_seconds']:.2g} s an update, {plan['pace']['source']}"
    if done < whole:
        share = f"{done:,} of {counted(whole, 'update')} fit ({_epochs(done / epoch)} of {_epochs(whole / epoch)} epochs)"
    else:
        share = f"All {counted(whole, 'update')} fit ({_epochs(whole / epoch)} epochs)"
    return f"{share} at {pace}"


def _epochs(number: float) -> str:
    return f"{number:.2g}"
