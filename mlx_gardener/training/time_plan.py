"""How a run's time limit is spent, so that a registered, measured adapter is there when it ends.

In: the limit and what is used of it, what an update and a validation take, how many updates all epochs have. Out: a
`TimePlan`: how many updates are done, how often and on how much it is validated, how long the evidence may take. What is not
training gets at most a quarter of the limit; the evidence more, where the least of it takes longer. Where all fits, nothing
is cut. The training loop makes it anew when updates turn out to take another time than was foretold. Cost: nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from mlx_gardener.config import OTHER_SHARE, VALIDATION_SHARE

#: Of the limit: what the evidence gets at least.
LEAST_EVIDENCE_SHARE = 0.05
#: Of the limit: what it gets at most where the base is so slow that its least work takes longer than what is otherwise left:
#: a few more updates are worth less than to know whether they helped (judgement).
MOST_EVIDENCE_SHARE = 0.4
#: Writing, registering and the report on a machine that is not overloaded: measured, some seconds with SmolLM2-135M (judgement).
FINISH_SECONDS = 15.0
#: Of the limit: what they get at most where more wants to be computed than there are cores, and all takes so much longer.
MOST_FINISH_SHARE = 0.15
#: Where time is short: validations after the one at the start; fewer of them, but one, where a base is so slow that the shortest
#: ones would take more than `VALIDATION_SHARE`.
VALIDATIONS = 4
#: Tokens that a validation has at least, where there are as many (judgement).
LEAST_VALIDATION_TOKENS = 2048


@dataclass(frozen=True)
class Clock:
    """A run's time limit in seconds, ``math.inf`` for none, and what is used of it.

    ``evidence_tokens`` go forward for the least evidence of all arms, which time is kept for; None where no evidence follows.
    ``load`` is how many processes want each of the machine's cores.
    """

    limit_seconds: float = math.inf
    used_seconds: Callable[[], float] = time.monotonic
    evidence_tokens: float | None = 0.0
    load: Callable[[], float] = lambda: 1.0

    @property
    def left_seconds(self) -> float:
        """Until the limit; below 0 when it is over."""
        return self.limit_seconds - self.used_seconds()

    @property
    def finish_seconds(self) -> float:
        """What is kept free for writing, registering and the report, as busy as the machine is now."""
        most = max(FINISH_SECONDS, MOST_FINISH_SHARE * self.limit_seconds)
        load = self.load()
        return min(FINISH_SECONDS * max(1.0, load if math.isfinite(load) else 1.0), most)


@dataclass(frozen=True)
class Pace:
    """What is known of a training's speed.

    Attributes:
        update_seconds: of one optimiser update.
        forward_tokens_per_second: of validation.
        source: what that rests on, in words.
    """

    update_seconds: float
    forward_tokens_per_second: float
    source: str


@dataclass(frozen=True)
class TimePlan:
    """What becomes of the time limit.

    Attributes:
        limit_seconds: the limit; ``math.inf`` for none.
        used_seconds: of it, before the training: reading, loading, the memory dry run.
        training_seconds: for updates and validations.
        evidence_seconds: for the test of the adapter; 0 where none follows.
        updates: of the training, counted from its beginning.
        all_updates: that all epochs have.
        steps_per_epoch: updates of an epoch.
        validations: after the one at the start; None for as many as the settings say.
        validation_tokens: of each; None for the whole validation part.
        pace: what was foretold or seen when this was made.
    """

    limit_seconds: float
    used_seconds: float
    training_seconds: float
    evidence_seconds: float
    updates: int
    all_updates: int
    steps_per_epoch: int
    validations: int | None
    validation_tokens: int | None
    pace: Pace

    @property
    def is_short(self) -> bool:
        """Whether anything is less than the settings ask for."""
        return self.validations is not None

    def to_json(self) -> dict[str, Any]:
        """As JSON types; no limit is null."""
        values = asdict(self)
        for name in ("limit_seconds", "training_seconds", "evidence_seconds"):
            values[name] = None if math.isinf(values[name]) else round(values[name], 1)
        values["used_seconds"] = round(self.used_seconds, 1)
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TimePlan:
        """The inverse of `to_json`."""
        no_limit = ("limit_seconds", "training_seconds", "evidence_seconds")
        read = {name: math.inf if values[name] is None else values[name] for name in no_limit}
        return cls(**{**values, **read, "pace": Pace(**values["pace"])})


def plan_time(
    clock: Clock,
    pace: Pace,
    *,
    all_updates: int,
    steps_per_epoch: int,
    evaluate_every: int,
    validation_tokens: int,
    done_updates: int = 0,
    done_validations: int = 0,
    other_seconds: float | None = None,
) -> TimePlan:
    """What becomes of the time that ``clock`` leaves.

    Args:
        evaluate_every: updates between two validations, as the settings say.
        validation_tokens: of the whole validation part.
        done_updates, done_validations: of the same training.
        other_seconds: used before the training began; all that is used where None.
    """
    used, limit, finish = clock.used_seconds(), clock.limit_seconds, clock.finish_seconds
    other = used if other_seconds is None else other_seconds
    validation = validation_tokens / pace.forward_tokens_per_second
    to_do = all_updates - done_updates
    whole = to_do * pace.update_seconds + (1 + math.ceil(to_do / evaluate_every)) * validation
    least = wished = 0.0
    if clock.evidence_tokens is not None:
        least = min(clock.evidence_tokens / pace.forward_tokens_per_second, MOST_EVIDENCE_SHARE * limit)
        wished = max(OTHER_SHARE * limit - other - finish, LEAST_EVIDENCE_SHARE * limit, least)
    if math.isinf(limit) or used + whole + min(wished, max(whole / 3, least)) + finish <= limit:
        evidence = 0.0 if clock.evidence_tokens is None else limit - used - whole
        return TimePlan(
            limit,
            other,
            used - other + whole,
            evidence,
            all_updates,
            all_updates,
            steps_per_epoch,
            None,
            None,
            pace,
        )
    left = max(0.0, limit - used - wished - finish)
    for_all = VALIDATION_SHARE * left * pace.forward_tokens_per_second  # tokens
    shortest = min(validation_tokens, LEAST_VALIDATION_TOKENS)
    after_start = min(VALIDATIONS, max(1, int(for_all / shortest) + done_validations - 1))
    validations = max(1, 1 + after_start - done_validations)  # still to do
    each = min(validation_tokens, max(shortest, int(for_all / validations)))
    for_validation = validations * each / pace.forward_tokens_per_second
    fitting = max(0 if done_updates else 1, int((left - for_validation) / pace.update_seconds))
    return TimePlan(
        limit,
        other,
        used - other + left,
        wished,
        min(all_updates, done_updates + fitting),
        all_updates,
        steps_per_epoch,
        after_start,
        each,
        pace,
    )
