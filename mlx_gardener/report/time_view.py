"""What a run takes of time, for people: its time plan in one line, and its forecast as a phrase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_gardener.report.text import about, counted, duration, pace, share_of_one


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
    test = f"{most}{evidence} for measuring the adapter" if plan["evidence_seconds"] else "none for measuring"
    return (
        f"Time: of {duration(plan['limit_seconds'])}, {used} for reading and the dry run, {training} for training, "
        f"{test}. {_training(plan)}."
    )


def time_text(estimate: dict[str, Any]) -> str:
    """``about 9 minutes for 3 passes (260,000 tokens) at 1,543 tokens/s (estimated from ...)``."""
    minutes = estimate["minutes"]
    time = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} minutes"
    if minutes < 1.5:
        time = "a minute"

    def passes(epochs: float) -> str:
        if epochs < 0.995:
            return f"{share_of_one(epochs)} of a pass"
        return f"{epochs:.3g} passes" if epochs > 1.005 else "one pass"

    within = ""
    if estimate["updates_in_limit"] < estimate["updates"]:
        within = (
            f"; the time limit of {estimate['limit_minutes']:g} minutes (--timeout) allows {estimate['updates_in_limit']:,} "
            f"of these {estimate['updates']:,} updates, {passes(estimate['epochs_in_limit'])}"
            + (", and then the test of the adapter" if estimate["is_tested"] else "")
        )
    return (
        f"about {time} for {passes(estimate['epochs'])} ({about(estimate['trained_tokens'])} tokens) at "
        f"{estimate['tokens_per_second']:,.0f} tokens/s ({estimate['speed_from']}){within}"
    )


def takes_text(estimate: dict[str, Any], going_on: Mapping[str, Any] | None) -> str:
    """``Training takes ...``; where it goes on from a version, that it does, with what, and what begins anew.

    Args:
        going_on: `runs.parent.GoingOn` by its fields; None where a training begins from scratch.
    """
    takes = f"takes {time_text(estimate)}."
    if going_on is None:
        return f"Training {takes}"
    version, left, changed = (going_on[name] for name in ("version", "updates_left", "changed_files"))
    if not left and not changed:
        return (
            f"Neither files nor settings have changed since {version}, so that nothing would be trained. "
            f"With --fresh training {takes}"
        )
    what = (
        f"with the {counted(left, 'update')} that its time limit left"
        if left
        else f"with {counted(changed, 'file')} that changed, and as much of what did not"
    )
    return f"Training goes on from {version} {what} (--fresh begins anew). It {takes}"


def _training(plan: Mapping[str, Any]) -> str:
    done, whole, epoch = plan["updates"], plan["all_updates"], plan["steps_per_epoch"]
    speed = f"{pace(plan['pace']['update_seconds'])} an update, {plan['pace']['source']}"
    if done < whole and done / epoch >= 0.1:
        share = f"{done:,} of {counted(whole, 'update')} fit ({_number(done / epoch)} of {_epochs(whole / epoch)})"
    elif done < whole:
        share = f"{done:,} of {counted(whole, 'update')} fit ({_epochs(done / epoch)})"
    else:
        share = f"All {counted(whole, 'update')} fit ({_epochs(whole / epoch)})"
    return f"{share} at {speed}"


def _epochs(number: float) -> str:
    """``3 epochs``, ``0.7 epochs``, ``0.4 % of an epoch``."""
    if number < 0.1:
        return f"{share_of_one(number)} of an epoch"
    return f"{_number(number)} epoch{'' if _number(number) == '1' else 's'}"


def _number(number: float) -> str:
    return f"{number:.2g}" if number < 9.95 else f"{number:,.0f}"
