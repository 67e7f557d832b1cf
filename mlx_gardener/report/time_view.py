"""A run's time plan in one line, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_gardener.report.text import duration


def time_line(plan: Mapping[str, Any]) -> str:
    """``Time: 30 min 00 s: 1 min 10 s reading and dry run, 22 min ... training 140 updates = 0.8 epochs, ... evidence``.

    Args:
        plan: `training.time_plan.TimePlan.to_json`.
    """
    epochs = f"{plan['updates']:,} updates = {plan['updates'] / plan['steps_per_epoch']:.2g} epochs"
    at = f"{plan['pace']['update_seconds']:.2g} s an update, {plan['pace']['source']}"
    if plan["limit_seconds"] is None:
        return f"Time: no limit; about {duration(plan['training_seconds'])} for {epochs} ({at})"
    if plan["validations"] is None:
        return (
            f"Time: about {duration(plan['training_seconds'])} training {epochs}, within the limit of "
            f"{duration(plan['limit_seconds'])} ({at})"
        )
    return (
        f"Time: of {duration(plan['limit_seconds'])}, {duration(plan['used_seconds'])} reading and dry run, "
        f"{duration(plan['training_seconds'])} training {epochs}, {duration(plan['evidence_seconds'])} evidence ({at})"
    )
