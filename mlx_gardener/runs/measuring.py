"""The test of a run's adapter within the run's time limit.

In: a run, its base, what was trained. Out: `Evidence`, and before the training a clock that keeps time for it. Cost: bounded by
what the limit leaves, or by `evaluate.work`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_gardener.events import TrainingPhase
from mlx_gardener.runs.context import Run

if TYPE_CHECKING:
    from mlx_gardener.adapter import StagedAdapter
    from mlx_gardener.dataset import PreparedData
    from mlx_gardener.engine import Engine
    from mlx_gardener.evaluate import Evidence
    from mlx_gardener.model import BaseModel
    from mlx_gardener.training import TrainOutcome
    from mlx_gardener.training.time_plan import Clock

#: Seconds between two words about the same part of an evaluation.
TELL_SECONDS = 0.5


def clock_with_evidence(run: Run, base: BaseModel, engine: Engine) -> Clock:
    """The run's, with what its evidence takes at least, where there is some."""
    from mlx_gardener.evaluate.registered import may_have_control
    from mlx_gardener.evaluate.work import STEP_TOKENS, least_tokens

    arms = set(run.config.evaluation.arms)
    if not arms:
        return replace(run.clock, evidence_tokens=None)
    # Nothing is written by a base whose weights are read from disk, and rows are read as fast as in training.
    if engine.streamed is not None:
        return run.clock
    if "control" in arms and not may_have_control(run.registry, run.project, base.weights_sha256):
        arms.discard("control")
    tokens = least_tokens(run.config, arms, STEP_TOKENS[engine.plan.dequantize])
    return replace(run.clock, evidence_tokens=tokens * run.ranks.size)  # one rank measures, at its own speed


def measure(
    run: Run,
    base: BaseModel,
    staged: StagedAdapter,
    data: PreparedData,
    engine: Engine,
    outcome: TrainOutcome,
) -> Evidence:
    """All arms on the test part, with the adapter read back from its files, as far as time allows; nothing where there are no arms."""
    from mlx_gardener.evaluate import Evidence, compare
    from mlx_gardener.evaluate.registered import ANSWERS, find_control

    if not run.config.evaluation.arms:
        return Evidence({}, (), (), 0, notes=("Not measured, as evaluation.arms is empty.",))
    run.tell(TrainingPhase.COMPLETING, 0.05, "Choosing what is measured")
    began = told_at = time.monotonic()
    told = ""

    def on_progress(share: float, message: str) -> None:
        nonlocal told, told_at
        now = time.monotonic()
        if message == told and now - told_at < TELL_SECONDS:
            return  # it is asked after every token
        told, told_at = message, now
        left = (now - began) * (1 - share) / share if share > 0.02 else None
        run.tell(TrainingPhase.COMPLETING, 0.05 + 0.85 * share, message, eta_seconds=left)

    control, notes = None, list[str]()
    if "control" in run.config.evaluation.arms:
        control, why = find_control(run.registry, run.project, base.weights_sha256)
        notes += [why] if why else []
    return compare(
        base,
        staged.load(),
        data,
        run.config,
        engine,
        training_tokens=outcome.state.tokens_seen,
        cache_dir=run.registry.home / ANSWERS,
        control=control,
        notes=notes,
        seconds=max(0.0, run.clock.left_seconds - run.clock.finish_seconds),
        forward_tokens_per_second=outcome.forward_tokens_per_second / outcome.ranks,
        on_progress=on_progress,
        interrupt=run.interrupt,
    )
