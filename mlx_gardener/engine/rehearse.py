"""A plan tried before it is final: part of a real step, first with half its rows, whose footprint corrects the prediction.

Constants of the memory formula were fitted to other models on another machine. So once the base is in memory, half of the
rows of a micro-batch go forward, through the tail and back through two layers, with adapters attached, while the process's
footprint is watched. What lay there before is known exactly; what came on top, as a share of what the formula says of
half a micro-batch, scales the formula for the whole one. If that fits, the whole one is tried likewise, since not all of it
grows with the rows. A plan that does not fit is made anew, with the base where it is, and tried again. Cost: about half of
the time of one micro-batch, of the hundreds that a training takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_gardener.config import TrainingConfig
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.plan import Plan
from mlx_gardener.engine.planner import make_plan, too_large
from mlx_gardener.engine.predict import Measured, least_budget_bytes, predicted
from mlx_gardener.engine.speed import Backend
from mlx_gardener.engine.step import BetweenSegments, Engine
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.model.lora import attach_lora, detach_lora, lora_parameters
from mlx_gardener.platform.footprint import process_footprint_bytes, process_peak_footprint_bytes

if TYPE_CHECKING:
    from mlx_gardener.dataset import Batch
    from mlx_gardener.model import BaseModel

#: Plans that are tried before the smallest one seen is taken as it is.
MOST_TRIALS = 4
#: A refusal names so much more than its trial asks for: two trials differ by some percent, half of the rows from all by up
#: to 4 (seen), and whoever follows the advice shall not be refused again.
TRIALS_DIFFER = 1.05
#: Segments of the backward pass that are tried: of two, the second is computed while slopes of the first are there.
_BACKWARD_SEGMENTS = 2
#: The rehearsal's share of the formula is believed within these bounds (judgement): beyond, something else was measured.
_LEAST_SCALE, _MOST_SCALE = 0.25, 4.0


class _SeenEnough(Exception):
    """Ends a rehearsed step."""


class TrialTooLargeError(MemoryBudgetError):
    """No plan fits with the base where it is.

    Attributes:
        work_scale: what the trial's work took, as a share of what the formula says for this backend.
        is_whole: whether the model is taken whole, so that the base cannot be elsewhere.
    """

    def __init__(self, error: MemoryBudgetError, work_scale: float, *, is_whole: bool) -> None:
        super().__init__(error.message, next_step=error.next_step, least_bytes=error.least_bytes)
        self.work_scale, self.is_whole = work_scale, is_whole


def rehearsed(
    engine: Engine,
    base: BaseModel,
    config: TrainingConfig,
    *,
    facts: ModelFacts,
    backend: Backend,
    between: BetweenSegments | None = None,
    peak_before: int = 0,
) -> Plan:
    """The engine's plan with a prediction that was measured, or a smaller one where that does not fit.

    Args:
        between: called before every segment, as in a step; may raise.
        peak_before: the process's peak before this base was loaded, which no plan can change.

    Raises:
        TrialTooLargeError: no plan fits with the base where it is; names the least budget that does.
    """
    import mlx.core as mx

    plan, budget, whole = engine.plan, config.memory_limit_bytes, engine.wiring is None
    attach_lora(base.model, config.lora, seed=config.seed)
    try:
        for _ in range(MOST_TRIALS):
            for tried in _tried(plan):
                measured = _measure(
                    engine,
                    base,
                    tried,
                    config,
                    facts=facts,
                    backend=backend,
                    between=between,
                    peak_before=peak_before,
                )
                found = predicted(plan, facts, config, backend, measured=measured)
                if least_budget_bytes(found, measured) > budget:
                    break
            else:
                return found
            there = _with_base_as_it_is(config, plan)
            try:
                plan = make_plan(facts, there, budget, backend, whole=whole, measured=measured)
            except MemoryBudgetError as error:
                refusal = too_large(facts, config, budget, TRIALS_DIFFER * error.least_bytes)
                raise TrialTooLargeError(refusal, measured.work_scale, is_whole=whole) from None
        return plan
    finally:
        detach_lora(base.model)
        mx.clear_cache()


def _with_base_as_it_is(config: TrainingConfig, plan: Plan) -> TrainingConfig:
    """Settings that leave the base's weights where they are now."""
    pins = {
        "base_weights": plan.base_weights,
        "streamed_layers": plan.streamed_layers,
        "words_on_disk": plan.words_on_disk,
    }
    return config.model_copy(update={"engine": config.engine.model_copy(update=pins)})


def _measure(
    engine: Engine,
    base: BaseModel,
    plan: Plan,
    config: TrainingConfig,
    *,
    facts: ModelFacts,
    backend: Backend,
    between: BetweenSegments | None,
    peak_before: int,
) -> Measured:
    """What lies in memory before a step, and what a micro-batch of ``plan`` takes on top, as a share of the formula."""
    import mlx.core as mx

    weights = lora_parameters(base.model)
    mx.eval(weights)
    mx.clear_cache()
    limit, planned = mx.set_cache_limit(0), engine.plan
    fixed = process_footprint_bytes()
    width = max(plan.rows_of_width)
    engine.plan = plan
    calls = 0
    enough = engine.calls + 1 + _BACKWARD_SEGMENTS

    def count(share: float) -> None:
        nonlocal calls
        calls += 1
        if between is not None:
            between(share)
        if calls > enough:
            raise _SeenEnough

    try:
        with _highest_footprint() as highest:
            engine.loss_and_gradients(
                weights,
                _batch(plan.rows_of_width[width], width, min(facts.vocab, base.tokenizer.vocab_size)),
                seed=0,
                between_segments=count,
            )
    except _SeenEnough:
        pass
    finally:
        engine.plan = planned
        mx.set_cache_limit(limit)
        mx.clear_cache()
    formula = predicted(plan, facts, config, backend).predicted_parts
    took = highest() - fixed - formula["saved"]
    peak = process_peak_footprint_bytes()
    return Measured(
        fixed_bytes=fixed,
        adapter_bytes=sum(value.nbytes for value in weights.values()),
        work_scale=min(_MOST_SCALE, max(_LEAST_SCALE, took / max(1, formula["work"]))),
        highest_bytes=peak if peak > peak_before else highest(),
    )


def is_tried_at_once(plan: Plan) -> bool:
    """Whether the first trial takes all rows, as they cannot be halved."""
    return len(_tried(plan)) == 1


def _tried(plan: Plan) -> list[Plan]:
    """The plan with half of its rows, at least one for each lane, then with all of them.

    Rows stay as wide as they are, since attention takes another way in narrow ones; lanes that have nothing to do would
    take no memory.
    """
    width = max(plan.rows_of_width)
    rows = plan.rows_of_width[width]
    counts = sorted({min(rows, max(plan.lanes, (rows + 1) // 2)), rows})
    return [replace(plan, rows_of_width={width: count}) for count in counts]


@contextmanager
def _highest_footprint() -> Iterator[Callable[[], int]]:
    """Watches the footprint from a thread, as systems keep only the highest of the whole process; 1 % of a core."""
    seen, done = [process_footprint_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.004):
            seen[0] = max(seen[0], process_footprint_bytes())

    thread = threading.Thread(target=watch, name="footprint", daemon=True)
    thread.start()
    try:
        yield lambda: seen[0]
    finally:
        done.set()
        thread.join()


def _batch(rows: int, width: int, vocab: int) -> Batch:
    """Random rows in which all tokens but the first are learned, as in full rows of real text."""
    import numpy as np

    from mlx_gardener.dataset import Batch

    tokens = np.random.default_rng(0).integers(0, vocab, (rows, width)).astype(np.int32)
    mask = np.ones(tokens.shape, dtype=bool)
    mask[:, 0] = False
    return Batch(tokens, mask, np.ones_like(tokens), int(mask.sum()), 0, mask.sum(axis=1), ("",) * rows)
