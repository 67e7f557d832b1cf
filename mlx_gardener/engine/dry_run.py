"""The memory dry run: a part of a real step, whose memory and time correct what the formulas foretold.

Constants of the formulas were fitted to other models on another machine. So once the base is in memory, rows go forward
through all layers, through head and loss and back through a few layers, with adapters attached; the activations of two
layers are kept, those of two more computed again. All layers are alike, so what two take tells what any number does, and
half of a micro-batch's rows what all of them do. A plan that does not fit, or a faster one that would, is made with what was
seen and tried likewise. Cost: about a quarter of the time of one micro-batch, of the hundreds that a training takes;
nothing where the same shape was tried on this machine before (`engine.seen`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.config import TrainingConfig
from mlx_gardener.engine.batch import BACKWARD, BetweenSegments
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.plan import AS_FORETOLD, Plan, Scales, notes_of
from mlx_gardener.engine.planner import make_plan, too_large
from mlx_gardener.engine.predict import (
    Measured,
    heaviest_width,
    least_budget_bytes,
    predicted,
    work_parts,
)
from mlx_gardener.engine.seen import keep_scales, kept_scales
from mlx_gardener.engine.speed import Backend, beside_others
from mlx_gardener.engine.step import Engine
from mlx_gardener.engine.step_time import CHEAP_SHARE
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.model.lora import attach_lora, detach_lora, lora_parameters
from mlx_gardener.platform.footprint import process_footprint_bytes, process_peak_footprint_bytes
from mlx_gardener.platform.processes import OthersWork

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.dataset import Batch
    from mlx_gardener.model import BaseModel

#: Plans that are tried before the smallest one seen is taken as it is.
MOST_TRIALS = 4
#: A refusal names so much more than its trial asks for: two trials differ by some percent, half of the rows from all by up
#: to 4 (seen), and whoever follows the advice shall not be refused again.
TRIALS_DIFFER = 1.05
#: Layers whose activations are kept in a trial, and layers that are computed again.
_TRIED_KEPT, _TRIED_AGAIN = 2, 2
#: What was seen is believed within these bounds (judgement): beyond, something else was measured.
_LEAST_SCALE, _MOST_SCALE = 0.25, 4.0


class _SeenEnough(Exception):
    """Ends a dry run."""


class TrialTooLargeError(MemoryBudgetError):
    """No plan fits with the base where it is.

    Attributes:
        scales: what the trial took, as shares of what the formulas say for this backend.
        is_whole: whether the model is taken whole, so that the base cannot be elsewhere.
    """

    def __init__(self, error: MemoryBudgetError, scales: Scales, *, is_whole: bool) -> None:
        super().__init__(error.message, next_step=error.next_step, least_bytes=error.least_bytes)
        self.scales, self.is_whole = scales, is_whole


def after_dry_run(
    engine: Engine,
    base: BaseModel,
    config: TrainingConfig,
    *,
    facts: ModelFacts,
    backend: Backend,
    between: BetweenSegments | None = None,
    peak_before: int = 0,
    cache_dir: Path | None = None,
) -> Plan:
    """The engine's plan with a prediction that was measured, or another one where that does not fit or is faster.

    Args:
        between: called before every segment, as in a step; may raise.
        peak_before: the process's peak before this base was loaded, which no plan can change.
        cache_dir: where what was seen is kept, and looked for.

    Raises:
        TrialTooLargeError: no plan fits with the base where it is; names the least budget that does.
    """
    import mlx.core as mx

    plan, budget, whole = engine.plan, config.memory_limit_bytes, engine.graph is None
    there = _with_base_as_it_is(config, plan)
    attach_lora(base.model, config.lora, seed=config.seed)
    try:
        weights = lora_parameters(base.model)
        mx.eval(weights)

        def still_fitting(tried: Plan | None) -> Plan | None:
            """The plan that a trial has shown to fit, unless trials after it took memory that leaves no room for it."""
            if tried is None:
                return None
            now = _seen(weights, tried.scales, peak_before)
            again = predicted(tried, facts, config, backend, measured=now)
            fits = least_budget_bytes(again, now) <= budget
            return replace(again, speed_from=tried.speed_from) if fits else None

        smallest: Plan | None = None
        fitting: Plan | None = None  # the fastest that was tried
        for _ in range(MOST_TRIALS):
            scales = None if cache_dir is None else kept_scales(cache_dir, facts, plan, config, backend)
            if scales is not None and backend.knows_base:
                scales = replace(scales, speed=1.0)  # a training tells more than a dry run
            seen = "seen in an earlier dry run" if scales is not None and scales.speed != 1.0 else None
            if scales is None:
                tried, others = (
                    _tried(plan, heaviest_width(plan, facts, config, backend), whole=whole),
                    OthersWork(),
                )
                scales = _measure(engine, tried, weights, plan, facts, config, backend, base, between)
                seen = f"seen in its dry run{beside_others(others.share)}"
                if cache_dir is not None:
                    keep_scales(cache_dir, facts, plan, config, backend, scales)
            measured = _seen(weights, scales, peak_before)
            as_tried = predicted(plan, facts, config, backend, measured=measured)
            if least_budget_bytes(as_tried, measured) <= budget:
                as_tried = replace(as_tried, speed_from=seen or as_tried.speed_from)
                fitting = as_tried if fitting is None else max(fitting, as_tried, key=_speed)
            try:
                # More of the base on disk comes before hidden states there: reading does not wear it.
                best = make_plan(
                    facts,
                    there,
                    budget,
                    backend,
                    whole=whole,
                    measured=measured,
                    states_on_disk=plan.states_on_disk,
                )
            except MemoryBudgetError as error:
                # A trial that fitted had led to another kind of plan, for its speed.
                if (kept := still_fitting(fitting)) is not None:
                    return kept
                refusal = too_large(facts, config, budget, TRIALS_DIFFER * error.least_bytes)
                raise TrialTooLargeError(refusal, scales, is_whole=whole) from None
            notes = tuple(notes_of(best, facts, config, whole=whole))
            best = replace(best, notes=notes, speed_from=seen or best.speed_from)
            smallest = best if smallest is None else min(smallest, best, key=least_budget_bytes)
            if _is_alike(best, plan):
                return best
            plan = best
        return still_fitting(fitting) or smallest or plan
    finally:
        detach_lora(base.model)
        mx.clear_cache()


def _speed(plan: Plan) -> float:
    return plan.predicted_tokens_per_second


def _is_alike(one: Plan, tried: Plan) -> bool:
    """Whether what a trial showed holds for another plan: how many layers keep activations may differ, slices be smaller."""
    names = ("rows_of_width", "cpu_streams", "attention_block", "attention_least", "tile_tokens")
    same = all(getattr(one, name) == getattr(tried, name) for name in names)
    return same and one.loss_slice_tokens <= tried.loss_slice_tokens


def _seen(weights: dict[str, mx.array], scales: Scales, peak_before: int) -> Measured:
    """What lies in memory now, and what a micro-batch takes on top."""
    peak, now = process_peak_footprint_bytes(), process_footprint_bytes()
    return Measured(
        fixed_bytes=now,
        adapter_bytes=sum(value.nbytes for value in weights.values()),
        scales=scales,
        highest_bytes=peak if peak > peak_before else now,
    )


def _with_base_as_it_is(config: TrainingConfig, plan: Plan) -> TrainingConfig:
    """Settings that leave the base's weights where they are now."""
    pins = {
        "base_weights": plan.base_weights,
        "streamed_layers": plan.streamed_layers,
        "vocabulary_on_disk": plan.vocabulary_on_disk,
    }
    return config.model_copy(update={"engine": config.engine.model_copy(update=pins)})


@dataclass
class _Look:
    """What is seen between the layers of a trial: seconds, MLX's bytes then, and the most since the look before."""

    seconds: list[float] = field(default_factory=list)
    active: list[int] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        import mlx.core as mx

        self.seconds.append(time.perf_counter())
        self.active.append(mx.get_active_memory())
        self.peak.append(mx.get_peak_memory())
        mx.reset_peak_memory()

    def between(self, first: int, last: int) -> float:
        """Seconds from one look to another."""
        return self.seconds[last] - self.seconds[first]

    def most(self, first: int, last: int) -> int:
        """The most bytes between two looks, beyond those at the first."""
        return max(self.peak[first + 1 : last + 1]) - self.active[first]


def _measure(
    engine: Engine,
    tried: Plan,
    weights: dict[str, mx.array],
    wanted: Plan,
    facts: ModelFacts,
    config: TrainingConfig,
    backend: Backend,
    base: BaseModel,
    between: BetweenSegments | None,
) -> Scales:
    """What a micro-batch of ``tried`` takes, as shares of the formulas; the speed as that of ``wanted`` would be."""
    import mlx.core as mx

    planned, limit = engine.plan, mx.set_cache_limit(0)
    mx.clear_cache()
    ((width, rows),) = tried.rows_of_width.items()
    calls, kept = engine.calls, min(tried.kept_layers, engine.calls)
    enough = calls + 1 + max(0, kept - 1) + _TRIED_AGAIN
    engine.plan = tried
    look = _Look()
    # The step's work but for the layers that are not differentiated; a model that is taken whole is done at once.
    left = (calls - kept - _TRIED_AGAIN) * (1 + BACKWARD)
    reached, ends_at = -1.0, 1 - max(0.0, left) / engine.step_work

    def count(share: float) -> None:
        nonlocal reached
        if between is not None:
            between(min(1.0, share / ends_at))
        if share <= reached:
            return  # within a segment
        reached = share
        look()
        if len(look.seconds) > enough + 1:
            raise _SeenEnough

    look()
    try:
        engine.loss_and_gradients(
            weights,
            random_rows(rows, width, min(facts.vocab, base.tokenizer.vocab_size)),
            seed=0,
            between_segments=count,
        )
    except _SeenEnough:
        pass
    finally:
        engine.plan = planned
        mx.set_cache_limit(limit)
        mx.clear_cache()
    look()
    looks = len(look.seconds)
    backend = replace(backend, scales=AS_FORETOLD)
    formula = work_parts(tried, facts, config, backend)
    head = (
        calls + 1 - kept
    )  # the look before the layers whose activations are kept, or before head and loss where there are none
    loss = calls + 1  # the look before head and loss
    again = loss + max(1, kept)  # the look before the first layer that is computed again
    last = min(looks - 2, again + _TRIED_AGAIN)
    if (
        engine.graph is None or last <= again
    ):  # one segment, or too few layers to tell its parts from each other
        scale = _believed(look.most(0, looks - 1) / max(1, formula.peak))
        foretold = predicted(tried, facts, config, backend).predicted_tokens_per_second
        return Scales(scale, scale, scale, rows * width / look.between(0, looks - 1) / foretold)
    forward = look.between(1, head) / max(1, calls - kept)
    backward_again = look.between(again, last) / max(1, last - again)
    backward_kept = (
        look.between(loss + 1, again) / (kept - 1) if kept > 1 else max(0.0, backward_again - forward)
    )
    head_loss = look.between(loss, loss + 1) - (backward_kept if kept else 0.0)
    seconds = (
        calls * forward
        + max(0.0, head_loss)
        + wanted.kept_layers * backward_kept
        + (calls - wanted.kept_layers) * backward_again
        - wanted.kept_products * (1 - CHEAP_SHARE) * min(forward, backward_again)
    )
    kept_so = replace(tried, kept_layers=wanted.kept_layers, kept_products=wanted.kept_products)
    foretold = predicted(kept_so, facts, config, backend).predicted_tokens_per_second
    return Scales(
        layer=_believed((look.most(again, last) - formula.buffers) / max(1, formula.layer)),
        tail=_believed(look.most(loss, loss + 1) / max(1, formula.tail)),
        live=_believed((look.active[loss] - look.active[head]) / max(1, formula.live)) if kept else 1.0,
        speed=rows * width / seconds / foretold,
    )


def _believed(scale: float) -> float:
    return min(_MOST_SCALE, max(_LEAST_SCALE, scale))


def is_tried_at_once(plan: Plan, width: int) -> bool:
    """Whether the first trial, of rows of this width, takes all of them, as they cannot be halved."""
    return plan.rows_of_width[width] <= max(plan.cpu_streams, 1)


def trial_of(plan: Plan, width: int, rows: int | None = None, *, whole: bool = False) -> Plan:
    """What is tried of a plan: rows of one width, and few layers with kept activations.

    Args:
        width: tokens; that of the rows that take most.
        rows: so many of them; all where None.
    """
    rows = plan.rows_of_width[width] if rows is None else rows
    kept = plan.kept_layers if whole else min(plan.kept_layers, _TRIED_KEPT)
    return replace(plan, rows_of_width={width: rows}, kept_layers=kept, kept_products=0, keeps_buffers=False)


def _tried(plan: Plan, width: int, *, whole: bool) -> Plan:
    """The trial of a plan: half of its rows, at least one for each CPU stream; what they take grows with them, or by less.

    Rows stay as wide as they are, since attention takes another way in narrow ones; streams that have nothing to do would
    take no memory.
    """
    rows = plan.rows_of_width[width]
    return trial_of(
        plan, width, rows if whole else min(rows, max(plan.cpu_streams, (rows + 1) // 2)), whole=whole
    )


def random_rows(rows: int, width: int, vocab: int) -> Batch:
    """Random rows in which all tokens but the first are learned, as in full rows of real text."""
    import numpy as np

    from mlx_gardener.dataset import Batch

    tokens = np.random.default_rng(0).integers(0, vocab, (rows, width)).astype(np.int32)
    mask = np.ones(tokens.shape, dtype=bool)
    mask[:, 0] = False
    return Batch(tokens, mask, np.ones_like(tokens), int(mask.sum()), 0, mask.sum(axis=1), ("",) * rows)
