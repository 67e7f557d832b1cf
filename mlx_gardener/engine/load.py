"""A base as far as the budget lets it into memory, and the engine for it: planned, loaded, tried, and loaded anew if need be.

A dry run corrects what was foretold, and with it all of the plan but where the base is. Where no such plan fits, less of the
base is kept in memory, as far as its files allow; only where the lightest way does not fit is the model refused. Rows that
cannot be halved for a first try are tried with the lightest way first, lest the trial itself go beyond the budget; what it
measures then chooses the way. Cost: that of loading, for each way tried; most bases are loaded once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.config import TrainingConfig
from mlx_gardener.engine.batch import BetweenSegments
from mlx_gardener.engine.dry_run import TrialTooLargeError, is_tried_at_once, trial_of
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.plan import Plan, Scales
from mlx_gardener.engine.planner import lighter_plan, make_plan
from mlx_gardener.engine.predict import heaviest_width, predicted
from mlx_gardener.engine.speed import Backend
from mlx_gardener.engine.step import Engine
from mlx_gardener.engine.verify import HeadNotOnDiskError, prepare_engine
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.platform.footprint import process_peak_footprint_bytes

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

#: A micro-batch's work may take this share of the formula's more before it was measured (seen: up to 0.3).
_DOUBT = 0.5


def load_engine(
    model: str,
    plan: Plan,
    config: TrainingConfig,
    *,
    facts: ModelFacts,
    backend: Backend,
    warn: Callable[[str], None],
    dry_run: bool = True,
    between: BetweenSegments | None = None,
    cache_dir: Path | None = None,
    tell: Callable[[float, str], None] = lambda share, message: None,
) -> tuple[BaseModel, Engine]:
    """Load ``model`` as ``plan`` says, and as the dry run lets it.

    Args:
        dry_run: try plans as the settings say; False keeps ``plan``.
        between: called before every segment of a dry run; may raise.
        cache_dir: where what a dry run saw is kept for the next one.
        tell: told how far it is, as a share, and what it does; may raise.
        warn: told, in a sentence, why a model is taken whole.

    Raises:
        MemoryBudgetError: it does not fit in any way; names the least budget that does.
        ModelError: the model cannot be read, or not in the way that the settings pin.
    """
    dry_run = dry_run and config.engine.dry_run
    budget, wanted = config.memory_limit_bytes, plan
    error: MemoryBudgetError | None = None
    width = heaviest_width(plan, facts, config, backend)
    if dry_run and is_tried_at_once(plan, width) and _is_tight(plan, facts, config, backend):
        plan = lighter_plan(plan, facts, config, 0, backend) or plan
    is_lightest_first = plan is not wanted
    while True:
        tell(0.0, "Loading the base model")
        plan.set_limits()
        peak_before = process_peak_footprint_bytes()
        base = _load(model, plan, config)
        check = f"Checking how {base.id} is cut into segments"

        def checking(share: float, check: str = check) -> None:
            tell(0.7 + 0.3 * share, f"{check}, {share:.0%} of it done" if share else check)

        try:
            engine = prepare_engine(
                base,
                plan,
                config,
                facts=facts,
                backend=backend,
                warn=warn,
                dry_run=dry_run,
                between=between,
                checking=checking,
                peak_before=peak_before,
                cache_dir=cache_dir,
            )
        except TrialTooLargeError as refused:
            if error is None or refused.least_bytes < error.least_bytes:
                # A new one: the traceback of what was caught holds the base.
                error = MemoryBudgetError(
                    refused.message, next_step=refused.next_step, least_bytes=refused.least_bytes
                )
            lighter = (
                None
                if refused.is_whole
                else lighter_plan(plan, facts, config, budget, backend, refused.scales)
            )
            if lighter is None:
                raise error from None
            plan, is_lightest_first = lighter, False
        except HeadNotOnDiskError:
            if plan is wanted:
                raise
            if not is_lightest_first:
                assert error is not None
                raise error from None
            plan, is_lightest_first = wanted, False
        else:
            heavier = None
            if is_lightest_first and engine.whole_because is not None:
                heavier = wanted
            elif is_lightest_first:
                heavier = _heavier(plan, facts, config, backend, engine.plan.scales)
            if heavier is None:
                return base, engine
            plan, is_lightest_first = heavier, False
            del engine
        del base
        _free()


def _load(model: str, plan: Plan, config: TrainingConfig) -> BaseModel:
    from mlx_gardener.model import load_base

    return load_base(
        model,
        compute_dtype=config.engine.compute_dtype,
        base_weights=plan.base_weights,
        unread_layers=plan.streamed_layers,
        unread_vocabulary=plan.vocabulary_on_disk,
    )


def _is_tight(plan: Plan, facts: ModelFacts, config: TrainingConfig, backend: Backend) -> bool:
    """Whether a trial of the plan could go beyond the budget."""
    trial = predicted(trial_of(plan, heaviest_width(plan, facts, config, backend)), facts, config, backend)
    return trial.predicted_peak_bytes + _DOUBT * trial.predicted_parts.work > plan.budget_bytes


def _heavier(
    plan: Plan, facts: ModelFacts, config: TrainingConfig, backend: Backend, scales: Scales
) -> Plan | None:
    """The plan that was wanted, now that the work is known; None where the lightest way is as good."""
    try:
        found = make_plan(facts, config, config.memory_limit_bytes, backend, scales=scales)
    except MemoryBudgetError:
        return None  # what was tried needs less room for error
    return found if found.predicted_parts.weights > plan.predicted_parts.weights else None


def _free() -> None:
    """Give back what a base took that nothing refers to any more."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
