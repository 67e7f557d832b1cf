"""A training that keeps its budget while the machine's owner works: what it does between updates and segments.

The process's footprint is the truth its owner sees. Above the budget, caches are dropped and the next smaller plan is
taken; after a calm while the first plan returns. When the machine is critically short of memory, hot, on battery, or
has a display on (as the settings ask), the training waits, without caches and with a checkpoint written. A plan
changes memory and speed, never the result, so nothing of this shows in the adapter. Cost: under a millisecond per
update, 20 microseconds per segment.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mlx_gardener.config import ThrottlingConfig
from mlx_gardener.engine import Engine, Plan
from mlx_gardener.platform.display import display_is_on
from mlx_gardener.platform.footprint import FootprintWatch
from mlx_gardener.platform.power import power_state
from mlx_gardener.platform.pressure import memory_pressure
from mlx_gardener.platform.sizes import GIB
from mlx_gardener.platform.thermal import thermal_state

#: Updates within the budget after which the first plan is tried again.
CALM_UPDATES = 50
#: Seconds between two looks at a machine that is waited for, and between two looks at power and heat.
_LOOK_SECONDS, _SLOW_LOOK_SECONDS = 2.0, 30.0


class BudgetPassedError(Exception):
    """Ends a step in which the process took more than the budget; a smaller plan does it again."""


class Throttle:
    """Watches footprint, memory pressure, heat and power, between updates and between segments.

    Args:
        engine: its plan is made smaller, and larger again.
        budget_bytes: the footprint to keep.
        warn: told in a sentence what was done and why.
        save: writes a checkpoint; called before waiting.
        interrupt: raises when the run must stop; asked while waiting.

    Attributes:
        waited_seconds: in all.
    """

    def __init__(
        self,
        engine: Engine,
        config: ThrottlingConfig,
        budget_bytes: int,
        *,
        warn: Callable[[str], None],
        save: Callable[[], None],
        interrupt: Callable[[], None],
    ) -> None:
        self._engine, self._config, self._budget_bytes = engine, config, budget_bytes
        self._warn, self._save, self._interrupt = warn, save, interrupt
        self._first_plan, self._calm = engine.plan, 0
        self._looked_at = 0.0
        self._waited_at = time.monotonic()
        self._slow_reason: str | None = None
        self._watch = FootprintWatch()
        self._gave_up = False
        self._said_unknown = False
        self.waited_seconds = 0.0

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()

    def between_updates(self) -> None:
        """Keep the budget, and wait while the machine is needed for other things."""
        if self._watch.highest_bytes > self._budget_bytes:
            self.shrink(self.what_was_taken)
        elif self._engine.plan is not self._first_plan:
            self._calm += 1
            if self._calm >= CALM_UPDATES:
                self._use(self._first_plan)
                self._warn("Memory was calm for a while: the first plan is tried again.")
        self._wait_while_needed()

    @property
    def what_was_taken(self) -> str:
        """The highest footprint of late against the budget, in words."""
        taken, budget = self._watch.highest_bytes, self._budget_bytes
        return f"the process took {taken / GIB:.2f} GB of {budget / GIB:.2f} GB"

    def between_segments(self) -> None:
        """See that the budget is kept within an update too, and wait while the machine is needed.

        Raises:
            BudgetPassedError: it was not, and there is a smaller plan.
        """
        if self._watch.highest_bytes > self._budget_bytes:
            self._drop_caches()
            if self._engine.smaller_plan() is not None:
                raise BudgetPassedError(self.what_was_taken)
            if not self._gave_up:
                self._gave_up = True
                self._warn(f"The budget is passed with the smallest plan too: {self.what_was_taken}.")
        now = time.monotonic()
        if now - self._waited_at >= _LOOK_SECONDS:
            self._waited_at = now
            self._wait_while_needed()

    def _wait_while_needed(self) -> None:
        """Wait, with a checkpoint of the last update written, while the machine is needed for other things."""
        if reason := self._reason_to_wait():
            self._save()
            self._warn(f"The training waits: {reason}.")
            while reason:
                self._drop_caches()
                self._interrupt()
                began = time.monotonic()
                time.sleep(_LOOK_SECONDS)
                self.waited_seconds += time.monotonic() - began
                reason = self._reason_to_wait()
            self._warn("The training goes on.")

    def shrink(self, because: str) -> bool:
        """Drop caches and take the next smaller plan; False when there is none."""
        self._drop_caches()
        smaller = self._engine.smaller_plan()
        if smaller is None:
            return False
        self._use(smaller)
        self._warn(f"A smaller plan is used now: {because}.")
        return True

    def _use(self, plan: Plan) -> None:
        self._engine.plan = plan
        self._calm = 0
        self._watch.begin_again()
        plan.set_limits()

    def _drop_caches(self) -> None:
        import mlx.core as mx

        mx.clear_cache()

    def _display_is_on(self) -> bool:
        found = display_is_on()
        if found is None and not self._said_unknown:
            self._said_unknown = True
            self._warn(
                'This machine does not tell whether a display is on, so "display" in throttling.pause_on changes nothing.'
            )
        return found is True

    def _reason_to_wait(self) -> str | None:
        """Why to wait now, if so; power and heat are looked at every half minute."""
        wanted = self._config.pause_on
        if "memory-pressure" in wanted and memory_pressure().level == "critical":
            return "the machine is short of memory"
        now = time.monotonic()
        if now - self._looked_at >= _SLOW_LOOK_SECONDS or self._slow_reason:
            self._looked_at, self._slow_reason = now, None
            if "battery" in wanted and power_state().on_battery:
                self._slow_reason = "the machine runs on battery"
            elif "heat" in wanted and thermal_state() in ("serious", "critical"):
                self._slow_reason = "the machine is hot"
            elif "display" in wanted and self._display_is_on():
                self._slow_reason = "a display is on"
        return self._slow_reason
