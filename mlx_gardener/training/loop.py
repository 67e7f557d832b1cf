"""The training loop: read top to bottom, it is what happens.

Per update: gradients of one batch of about ``tokens_per_update`` tokens, mean over its loss-bearing tokens, clipped,
applied to the float32 adapter. Per evaluation: the whole fixed validation set. It ends when the updates are done or validation
stops improving, and returns the best adapter seen. Every update is committed whole or not at all, so an interruption
anywhere leaves a state to go on from exactly. Several processes may do it together (`training.parallel`): each computes
the gradients of its share of a batch's rows, and all of them do all else alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlx_gardener.config import TrainingConfig
from mlx_gardener.engine import Engine, StepResult, kept_row_losses
from mlx_gardener.engine.finite import not_finite_error
from mlx_gardener.errors import GardenerError, MemoryBudgetError, TimeLimitError, TrainingError
from mlx_gardener.events import (
    Evaluated,
    Event,
    MemoryMeasured,
    StepAdvanced,
    StepCompleted,
    WarningRaised,
)
from mlx_gardener.model.lora import (
    AdapterSettings,
    attach_lora,
    detach_lora,
    nested,
    set_lora_parameters,
)
from mlx_gardener.platform.footprint import (
    process_footprint_bytes,
    process_peak_footprint_bytes,
)
from mlx_gardener.platform.out_of_memory import is_out_of_memory
from mlx_gardener.training.advance import Advance
from mlx_gardener.training.optimizer import (
    CLIP_NORM,
    global_norm,
    learning_rate_at,
)
from mlx_gardener.training.outcome import TrainOutcome
from mlx_gardener.training.parallel import Ranks
from mlx_gardener.training.standing import Standing, TrainingRows
from mlx_gardener.training.throttling import BudgetPassedError
from mlx_gardener.training.time_plan import Clock

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.dataset import Batch
    from mlx_gardener.model import BaseModel
    from mlx_gardener.platform.kept import KeptValues

Measured = TypeVar("Measured")

#: A run whose loss is not finite this many updates in a row has diverged.
MAX_REJECTED_UPDATES = 3


def train(
    base: BaseModel,
    data: TrainingRows,
    config: TrainingConfig,
    engine: Engine,
    *,
    publish: Callable[[Event], None],
    interrupt: Callable[[], None],
    checkpoint_dir: Path,
    resume: bool,
    initial: dict[str, mx.array] | None = None,
    first_update: int = 0,
    clock: Clock | None = None,
    store: KeptValues | None = None,
    ranks: Ranks | None = None,
) -> TrainOutcome:
    """Train an adapter on ``data.train``; the base is left without adapters again.

    Args:
        publish: told of every update, evaluation, checkpoint and warning.
        interrupt: raises when the run must stop; asked between segments.
        checkpoint_dir: where checkpoints are written, and with ``resume`` looked for first; rank 0's alone is used.
        initial: the adapter to begin with, by mlx-lm's names; a fresh one when None.
        first_update: updates on the same rows that ``initial`` has done: its epochs go on.
        clock: the run's time limit, within which the training leaves time for the evidence; none when None.
        store: where the base's validation is kept between trainings, and looked for.
        ranks: the processes that train together; this one alone when None.

    Raises:
        TrainingError: the loss stays non-finite, a checkpoint cannot be written, or does not fit the run.
        OtherRankError: another of the ranks raised one.
        RankLostError: another of the ranks is gone.
        GardenerError: whatever ``interrupt`` raised, after a checkpoint of the last committed update; but a
            `TimeLimitError` only where no update was done.
    """
    ranks = ranks or Ranks()
    targets = attach_lora(base.model, config.lora, seed=config.seed)
    run: _Training | None = None
    try:
        if initial is not None:
            set_lora_parameters(base.model, initial)
        run = _Training(
            base, data, config, engine, publish, interrupt, checkpoint_dir, ranks, clock or Clock()
        )
        run.state.first_update = first_update
        run.store = store if initial is None and ranks.size == 1 else None
        run.begin(resume=resume)
        stopped_because = run.to_the_end()
        return TrainOutcome(
            run.adapter,
            AdapterSettings.of(targets, config.lora),
            run.state,
            run.total_steps,
            stopped_because,
            run.time_plan,
            run.is_short_of_updates and not run.is_patience_over,
            ranks.size,
            run.forward_seen,
            run.is_resumed,
        )
    except GardenerError as error:
        ranks.leave(error)
        raise
    finally:
        if run is not None:
            run.throttle.close()
        detach_lora(base.model)
        engine.plan.set_limits()  # gives back what steps kept


class _Training(Standing):
    """The moves of one training, from where it stands to its end."""

    def to_the_end(self) -> str:
        """Update until the end; returns why it ended."""
        try:
            if self._is_evaluation_due():  # the starting point, or the one that an interruption took
                self.evaluate()
            for batch in self._batches():
                if self.is_patience_over:
                    break
                self.update(batch)
                self.throttle.between_updates()
                self.keep_to_the_time()
                if self._is_evaluation_due():
                    self.evaluate()
                if time.monotonic() - self.saved_at >= self.config.checkpoint_interval_seconds:
                    self.save()
        except TimeLimitError:
            self.save()
            if not self.state.step or self.ranks.size > 1:
                raise
        except GardenerError as error:
            self.ranks.leave(error)  # before writing, which takes a while
            self.save()
            raise
        self.save()
        if self.is_patience_over:
            return f"validation did not improve for {self.config.evaluation.patience} evaluations"
        if self.is_short_of_updates:
            return f"the time limit, after {self.state.step} of {self.time_plan.all_updates} updates"
        return "all updates done"

    def _is_evaluation_due(self) -> bool:
        """Whether this step is one to evaluate at, and was not; step 0 is what an adapter that never helps falls back to."""
        step, done = self.state.step, self.state.validation
        return (step % self.evaluate_every == 0 or step == self.total_steps) and (
            not done or done[-1][0] != step
        )

    def _batches(self) -> Iterator[Batch]:
        """The batches of all updates still to do, in the order that seed and epoch decide."""
        while self.state.step < self.total_steps:
            epoch, done = divmod(self.state.first_update + self.state.step, self.steps_per_epoch)
            batches = self.data.train.batches(
                self.tokens_per_update, seed=self.config.seed, epoch=epoch, start=done
            )
            for batch in batches:
                if self.state.step >= self.total_steps:  # which the time may change
                    return
                yield batch

    def update(self, batch: Batch) -> None:
        """One optimiser update from one batch; nothing changes when its loss or gradients are not finite."""
        import mlx.core as mx

        started, step = self.worked_seconds(), self.state.step + 1
        result, loss, norm = self._gradients(batch, step)
        tokens = max(1, result.tokens)
        rate = learning_rate_at(step, self.total_steps, self.peak_rate, self.config.optimizer)
        if math.isfinite(loss) and math.isfinite(norm):
            clip = min(1.0, CLIP_NORM / max(norm, 1e-12))
            gradients = {name: value * (clip / tokens) for name, value in result.gradients.items()}
            self.optimizer.learning_rate = mx.array(rate)
            self.weights = self.optimizer.apply_gradients(gradients, self.weights)
            mx.eval(self.weights, self.optimizer.state)
            self.rejected = 0
        else:
            self._reject(step)
        seconds = self.worked_seconds() - started
        self.state.step = step
        self.state.tokens_seen += result.tokens
        self.state.positions += batch.tokens.size
        self.state.seconds += seconds
        self.update_took(seconds)
        self.state.remember_loss(loss if math.isfinite(loss) else 0.0)
        self._report(step, loss, norm, rate, result.tokens, seconds)

    def update_took(self, seconds: float) -> None:
        """Remember what an update took."""
        self.update_seconds.append(seconds)

    def _gradients(self, batch: Batch, step: int) -> tuple[StepResult, float, float]:
        """The step's result over all ranks, its mean loss and gradient norm."""
        own, first_row = self.ranks.share(batch)
        result = self.ranks.sum_step(lambda: self._own_gradients(own, step, first_row))
        tokens = max(1, result.tokens)
        return result, result.loss_sum / tokens, global_norm(result.gradients) / tokens

    def _own_gradients(self, batch: Batch, step: int, first_row: int) -> StepResult:
        """This rank's part of a step, by a smaller plan where memory runs out.

        Raises:
            MemoryBudgetError: memory runs out with the smallest plan too.
        """
        while True:
            try:
                return self.engine.loss_and_gradients(
                    self.weights,
                    batch,
                    seed=self.config.seed * 1_000_003 + step,
                    first_row=first_row,
                    between_segments=self._advance("Step", step),
                )
            except BudgetPassedError as passed:
                self.throttle.shrink(f"{passed} in step {step}")
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if not self.throttle.shrink(f"memory ran out in step {step}"):
                    raise MemoryBudgetError(
                        f"Memory ran out in step {step}, with the smallest plan too ({error}).",
                        next_step="Close other programs, narrow data.sequence_lengths, or use a smaller --model.",
                    ) from error

    def _advance(self, activity: str, step: int, *, parts: int = 1) -> Advance:
        """What is called between the segments of an update, or of a validation of so many batches."""

        def look() -> None:
            self.interrupt()
            self.throttle.between_segments()

        def tell(share: float, left: float) -> None:
            self.publish(StepAdvanced(activity, step, self.total_steps, share, left))

        return Advance(look, tell, self.worked_seconds, parts)

    def _reject(self, step: int) -> None:
        self.rejected += 1
        if self.rejected >= MAX_REJECTED_UPDATES:
            raise TrainingError(
                f"The loss was not finite for {self.rejected} updates in a row (step {step}).",
                next_step="Lower the learning rate (--learning-rate), then start again.",
            )
        self.publish(
            WarningRaised(f"Step {step} gave a loss or gradient that is not finite; it was not applied.")
        )

    def _report(self, step: int, loss: float, norm: float, rate: float, tokens: int, seconds: float) -> None:
        import mlx.core as mx

        footprint, budget = process_footprint_bytes(), self.config.memory_limit_bytes
        average = self.state.seconds / step
        self.publish(
            StepCompleted(
                step=step,
                total_steps=self.total_steps,
                epoch=(self.state.first_update + step) / self.steps_per_epoch,
                loss=loss,
                tokens=tokens,
                learning_rate=rate,
                gradient_norm=norm,
                seconds=seconds,
                tokens_per_second=tokens / max(seconds, 1e-9),
                memory_bytes=footprint,
                peak_bytes=process_peak_footprint_bytes(),
                budget_bytes=budget,
                eta_seconds=average * (self.total_steps - step),
            )
        )
        self.publish(MemoryMeasured(footprint, mx.get_active_memory(), mx.get_cache_memory(), budget))

    @property
    def _is_kept(self) -> bool:
        """Whether the validation that is due is the base's alone, which is kept between trainings."""
        return self.store is not None and self.state.step == 0  # the adapter changes nothing yet

    @property
    def _forward_tokens(self) -> int:
        """Positions of a batch in validation; ranks, which may have plans of their own, have to cut it alike."""
        alone = self.ranks.size == 1
        return max(self.tokens_per_update, self.engine.forward_tokens) if alone else self.tokens_per_update

    def _losses(self, validation: list[Batch], between: Advance) -> tuple[float, float, float]:
        """Over all ranks: the sum of losses in nats, the tokens that bear one, their bytes."""
        if self._is_kept and (store := self.store) is not None:
            losses = [
                self._within_budget(
                    partial(kept_row_losses, self.engine, self.base, batch, store, between_segments=between),
                    between,
                )
                for batch in validation
            ]
            return (
                math.fsum(loss for batch in losses for loss in batch),
                sum(batch.loss_tokens for batch in validation),
                sum(batch.source_bytes for batch in validation),
            )

        def whole_set() -> tuple[float, int, int]:
            return self._within_budget(
                lambda: self.engine.evaluate(
                    (self.ranks.share(batch)[0] for batch in validation), between_segments=between
                ),
                between,
            )

        loss_sum, tokens, source_bytes = self.ranks.sum_numbers(whole_set)
        return loss_sum, tokens, source_bytes

    def _within_budget(self, measure: Callable[[], Measured], between: Advance) -> Measured:
        """What ``measure`` gives, by a smaller plan where it passes the budget; a try that did tells nothing of the speed."""
        at = between.place
        while True:
            began = self.worked_seconds()
            try:
                return measure()
            except BudgetPassedError as passed:
                self.throttle.shrink(f"{passed} in the validation of step {self.state.step}")
                self.lost_seconds += self.worked_seconds() - began
                between.place = at

    def _try_the_pace(self) -> None:
        """As many rows of the first validation as an update has: where they go slower than foretold, the time is shared out anew."""
        if math.isinf(self.time_plan.limit_seconds):
            return
        started = self.worked_seconds()
        batch = max(
            self.validation.batches(self.tokens_per_update, seed=None), key=lambda one: one.tokens.size
        )
        self._losses([batch], self._advance("Validation", self.state.step))
        self.take_pace(batch.tokens.size, self.worked_seconds() - started)

    def evaluate(self) -> None:
        """Loss over the whole validation set; remembers the best adapter.

        Raises:
            ModelError: the first one gives no number; names the layer.
        """
        self.keep_together()
        values = {name: value.astype(self.base.dtype) for name, value in self.weights.items()}
        self.base.model.update(nested(values))
        if not self.state.validation:
            self._try_the_pace()
        started = self.worked_seconds()
        validation = list(self.validation.batches(self._forward_tokens, seed=None))
        count = len(validation)
        between = self._advance("Validation", self.state.step, parts=count)
        loss_sum, tokens, source_bytes = self._losses(validation, between)
        if not self._is_kept:
            self.forward_seen = self.validation.total_tokens / max(1e-9, self.worked_seconds() - started)
        loss = loss_sum / max(1, tokens)
        if not self.state.validation and not math.isfinite(loss):  # nothing that is trained could mend it
            batches = self.data.validation.batches(self._forward_tokens, seed=None)
            raise not_finite_error(self.engine, batches, self.base.id)
        bits = loss_sum / math.log(2) / max(1, source_bytes)
        state = self.state
        better = state.best_loss is None or loss < state.best_loss
        if better:
            state.best_loss, state.best_step, state.bad_evaluations = loss, state.step, 0
            self.best = dict(self.weights)
        else:
            state.bad_evaluations += 1
        state.validation.append((state.step, loss, bits))
        self.publish(Evaluated(state.step, loss, bits, better, self.data.continued_from or ""))
