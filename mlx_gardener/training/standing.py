"""Where a training stands: its weights, optimiser and state, on every rank the same; and what the time that is left is for.

In: a base with adapters, rows, settings. Out: the same after every update and validation that the loop (`training.loop`)
makes; a checkpoint of it, from which the next worker goes on exactly. Cost: the adapter three times in float32 beside what
the optimiser keeps.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from mlx_gardener.config import TrainingConfig, as_recorded
from mlx_gardener.engine import Engine
from mlx_gardener.events import CheckpointWritten, Event, TimePlanned, WarningRaised
from mlx_gardener.model.lora import lora_parameters
from mlx_gardener.training.checkpoint import (
    CHECKPOINTS_KEPT,
    Checkpoint,
    Origin,
    TrainState,
    load_checkpoint,
    save_checkpoint,
)
from mlx_gardener.training.optimizer import (
    flatten_state,
    make_optimizer,
    recommended_learning_rate,
    unflatten_state,
)
from mlx_gardener.training.parallel import Ranks, pack_arrays
from mlx_gardener.training.throttling import Throttle
from mlx_gardener.training.time_plan import Clock, Pace, TimePlan, plan_time

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.dataset import RowSet
    from mlx_gardener.model import BaseModel
    from mlx_gardener.platform.kept import KeptValues

#: Updates whose median foretells the next ones, and from how many on (the first is slower), or from how many seconds of them:
#: a minute of one says more than was foretold. After the last one that was planned fewer have to do.
_UPDATES_REMEMBERED, _UPDATES_TO_LEARN_FROM, _SECONDS_TO_LEARN_FROM = 9, 3, 60.0
#: So many times the updates are worth another plan, or another word about it.
_MORE = 1.1


class TrainingRows(Protocol):
    """What of `dataset.PreparedData` training works on."""

    @property
    def train(self) -> RowSet:
        """Rows to learn from."""
        ...

    @property
    def validation(self) -> RowSet:
        """Rows that say when to stop."""
        ...

    @property
    def data_sha256(self) -> str:
        """Over all rows, also those of the test."""
        ...

    @property
    def continued_from(self) -> str | None:
        """The adapter version that the training goes on from; None where it begins with the base alone."""
        ...


class Standing:
    """The state of one training, and how it is kept; the arguments are those of `training.loop.train`."""

    def __init__(
        self,
        base: BaseModel,
        data: TrainingRows,
        config: TrainingConfig,
        engine: Engine,
        publish: Callable[[Event], None],
        interrupt: Callable[[], None],
        checkpoint_dir: Path,
        ranks: Ranks,
        clock: Clock,
    ) -> None:
        import mlx.core as mx

        self.clock = clock
        self.store: KeptValues | None = None  # for what the base does alone
        self.base, self.data, self.config, self.engine = base, data, config, engine
        self.publish, self.interrupt, self.checkpoint_dir = publish, interrupt, checkpoint_dir
        self.ranks = ranks
        self.tokens_per_update = config.optimizer.tokens_per_update
        self.steps_per_epoch = data.train.update_count(self.tokens_per_update)
        self.other_seconds = clock.used_seconds()  # until here
        self.update_seconds: deque[float] = deque(maxlen=_UPDATES_REMEMBERED)
        self.is_resumed, self.lost_seconds = False, 0.0
        self.forward_seen: float | None = None  # tokens per second of the last validation
        hidden = int(
            base.config.get("hidden_size") or base.config.get("text_config", {}).get("hidden_size", 2048)
        )
        self.peak_rate = config.optimizer.learning_rate or recommended_learning_rate(hidden)
        self.weights = {name: value.astype(mx.float32) for name, value in lora_parameters(base.model).items()}
        self.best = dict(self.weights)
        self.optimizer = make_optimizer(config.optimizer)
        self.optimizer.init(self.weights)
        self.state = TrainState(
            fingerprint=_fingerprint(config.model_dump(mode="json"), data.data_sha256, base.weights_sha256)
        )
        self.first_plan = engine.plan  # memory may ask for smaller ones in between
        self.rejected = 0
        self.saved_at = time.monotonic()
        self.saved = (-1, 0)  # step, evaluations
        engine.plan.set_limits()
        self.throttle = Throttle(
            engine,
            config.throttling,
            config.memory_limit_bytes,
            warn=lambda message: publish(WarningRaised(message)),
            save=self.save,
            interrupt=interrupt,
        )

    def begin(self, *, resume: bool) -> None:
        """At the newest checkpoint, or at the beginning; all ranks stand where rank 0 does, and keep to its time."""
        self._stand_at_the_beginning(resume=resume)
        plan = self.engine.plan
        speed = max(1e-9, plan.predicted_tokens_per_second) * self.ranks.size
        positions = self.data.train.total_tokens / max(1, self.steps_per_epoch)  # of an update
        forward = max(1e-9, plan.predicted_forward_tokens_per_second) * self.ranks.size
        self._follow(self._time_plan(Pace(positions / speed, forward, plan.speed_from)))
        self.publish(TimePlanned(self.time_plan.to_json()))

    def _stand_at_the_beginning(self, *, resume: bool) -> None:
        if self.ranks.size == 1:
            if resume:
                self.restore()
            return

        def where_first_stands() -> bytes:
            if resume:
                self.restore()
            return json.dumps(asdict(self.state)).encode()

        state = TrainState(**json.loads(self.ranks.from_first(where_first_stands)))
        state.validation = [(int(step), loss, bits) for step, loss, bits in state.validation]
        self.state = state
        self.best = self._of_first(self.best)
        self._take_weights_of_first()

    def _time_plan(self, pace: Pace) -> TimePlan:
        """What becomes of the time that is left, at this pace."""
        optimizer, evaluation = self.config.optimizer, self.config.evaluation
        all_updates = math.ceil(self.steps_per_epoch * optimizer.epochs) - self.state.first_update
        if optimizer.max_steps is not None:
            all_updates = min(all_updates, optimizer.max_steps)
        return plan_time(
            self.clock,
            pace,
            all_updates=max(1, all_updates),
            steps_per_epoch=self.steps_per_epoch,
            evaluate_every=max(1, round(self.steps_per_epoch / evaluation.per_epoch)),
            validation_tokens=self.data.validation.total_tokens,
            done_updates=self.state.step,
            done_validations=len(self.state.validation),
            other_seconds=self.other_seconds,
        )

    def _follow(self, plan: TimePlan) -> None:
        """Do as many updates, and validate as often and on as much, as ``plan`` says."""
        if self.ranks.size > 1:
            told = json.loads(self.ranks.from_first(lambda: json.dumps(plan.to_json()).encode()))
            plan = TimePlan.from_json(told)
        self.time_plan, self.total_steps = plan, plan.updates
        per_epoch = max(1, round(self.steps_per_epoch / self.config.evaluation.per_epoch))
        self.evaluate_every = (
            per_epoch if plan.validations is None else max(1, math.ceil(plan.updates / plan.validations))
        )
        whole = self.data.validation
        self.validation = whole if plan.validation_tokens is None else whole.spread(plan.validation_tokens)

    def take_pace(self, tokens: int, seconds: float) -> None:
        """So many tokens went forward in so long, before the first update: all takes longer than foretold where these did."""
        plan, pace = self.time_plan, self.time_plan.pace
        slower = seconds * pace.forward_tokens_per_second / max(1, tokens)
        if slower > _MORE:
            self.forward_seen = pace.forward_tokens_per_second / slower
            source = "as the first validation went"
            plan = self._time_plan(Pace(pace.update_seconds * slower, self.forward_seen, source))
        if plan is not self.time_plan or self.ranks.size > 1:
            self._follow(plan)
            self.publish(TimePlanned(self.time_plan.to_json()))

    def keep_to_the_time(self) -> None:
        """Do fewer updates where they take longer than was foretold; more, early on, where they take less."""
        if math.isinf(self.time_plan.limit_seconds):
            return
        seen = len(self.update_seconds) >= _UPDATES_TO_LEARN_FROM or self.state.step >= self.total_steps
        # Ranks have to decide alike, and each has seconds of its own.
        if not seen and (self.ranks.size > 1 or sum(self.update_seconds) < _SECONDS_TO_LEARN_FROM):
            return
        update, before = median(self.update_seconds), self.total_steps
        forward = self.forward_seen or self.time_plan.pace.forward_tokens_per_second
        plan = self._time_plan(Pace(update, forward, "as the last updates took"))
        is_early = self.state.step <= max(_UPDATES_TO_LEARN_FROM, before / 3)
        if plan.updates < before or (plan.updates > _MORE * before and is_early):
            if (
                not self.time_plan.is_short or plan.is_short
            ):  # once shared out, the validation part stays what it is
                plan = replace(
                    plan, validation_tokens=self.time_plan.validation_tokens or plan.validation_tokens
                )
        elif self.ranks.size == 1:
            return
        else:
            plan = self.time_plan
        self._follow(plan)
        if abs(self.total_steps - before) > (_MORE - 1) * before:
            self.publish(TimePlanned(self.time_plan.to_json()))

    def worked_seconds(self) -> float:
        """A clock for speeds: it stands still while the training waits for the machine's owner, and forgets tries in vain."""
        return time.perf_counter() - self.throttle.waited_seconds - self.lost_seconds

    def _take_weights_of_first(self) -> None:
        self.weights = self._of_first(self.weights)
        self.optimizer.state = unflatten_state(self._of_first(flatten_state(self.optimizer.state)))

    def _of_first(self, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        import mlx.core as mx
        from safetensors.numpy import load

        sent = load(self.ranks.from_first(lambda: pack_arrays(arrays)))
        return {name: mx.array(sent[name]) for name in arrays}

    def keep_together(self) -> None:
        """Ranks on other hardware may round another way; who strays from rank 0 takes its weights again."""
        if self.ranks.size == 1:
            return
        if self.ranks.differ(hashlib.sha256(pack_arrays(self.weights)).digest()):
            self._take_weights_of_first()

    def restore(self) -> None:
        """Go back to the newest good checkpoint, if there is one."""
        found = load_checkpoint(
            self.checkpoint_dir,
            fingerprint=self.state.fingerprint,
            warn=lambda message: self.publish(WarningRaised(message)),
            fingerprint_of=_fingerprint_by_today,
        )
        if found is None:
            self.publish(WarningRaised("There is no checkpoint to go on from; starting from the beginning."))
            return
        self.state, self.weights, self.best = found.state, found.weights, found.best
        self.is_resumed = True
        self.optimizer.state = unflatten_state(found.optimizer)
        self.saved = (self.state.step, len(self.state.validation))

    @property
    def is_short_of_updates(self) -> bool:
        """Whether updates of the epochs are left."""
        return self.state.step < self.time_plan.all_updates

    @property
    def adapter(self) -> dict[str, mx.array]:
        """The best that was validated; what came after it, where the last validation was the best and time ran out then."""
        validated = self.state.validation[-1][0] if self.state.validation else 0
        is_later = self.state.step > validated and self.state.best_step in (0, validated)
        return dict(self.weights) if is_later else self.best

    @property
    def is_patience_over(self) -> bool:
        """Whether validation has not improved for too long."""
        return self.state.bad_evaluations >= self.config.evaluation.patience

    def save(self) -> None:
        """Write a checkpoint of the last committed update, unless there is one; on rank 0 alone."""
        if self.ranks.rank:
            return
        now = (self.state.step, len(self.state.validation))
        if now == self.saved:
            return
        optimizer = flatten_state(self.optimizer.state)
        origin = Origin(
            self.config.model_dump(mode="json"),
            self.first_plan.to_json(),
            self.data.data_sha256,
            self.base.weights_sha256,
        )
        checkpoint = Checkpoint(self.state, self.weights, self.best, optimizer, origin)
        path = save_checkpoint(self.checkpoint_dir, checkpoint, keep=CHECKPOINTS_KEPT)
        self.saved_at, self.saved = time.monotonic(), now
        self.publish(CheckpointWritten(self.state.step, path.name))


def _fingerprint(config: Mapping[str, Any], data_sha256: str, base_sha256: str) -> str:
    """What must be the same for a training to go on exactly: base, data, and the settings that decide the result."""
    settings = {section: config.get(section) for section in ("seed", "lora", "optimizer", "evaluation")}
    told = {"base": base_sha256, "data": data_sha256, "settings": settings}
    if not config.get("data", {}).get("attend_across_documents", True):
        told["attention"] = "by document"
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _fingerprint_by_today(origin: Origin) -> str:
    """What a checkpoint of an earlier version has in the settings of today; the optimiser's are taken as they were, since those
    that are gone decided what was learned."""
    config = as_recorded(origin.config) | {"optimizer": origin.config.get("optimizer")}
    return _fingerprint(config, origin.data_sha256, origin.base_sha256)
