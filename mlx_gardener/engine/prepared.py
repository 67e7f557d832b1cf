"""A base model chosen and known, before its weights are loaded: what every plan and forecast begins with.

In: settings. Out: which base, where it lies, its facts, and how fast this machine computes. Cost: reading the headers of its weight
files; a second once a machine to measure its speed, and one once for every shape of attention heads; with ``ahead``, for a base that
is not on this machine yet, config and tokenizer from the hub, some megabytes (`engine.ahead`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.config import GIB, TrainingConfig
from mlx_gardener.engine.choosing import choose_base, look_ahead_at
from mlx_gardener.engine.facts import ModelFacts, model_facts
from mlx_gardener.engine.plan import Plan
from mlx_gardener.engine.planner import longest_row, make_plan
from mlx_gardener.engine.seen import known_backend, with_attention
from mlx_gardener.engine.speed import Backend
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.model import ModelChoice, resolve_model

#: Budgets that `PreparedModel.other_plans` tries, too: GB less or more than the one that is planned for.
OTHER_BUDGETS_GB = (-2, -1, 1, 2, 4)


@dataclass(frozen=True)
class PreparedModel:
    """A chosen base, the directory of its config and tokenizer, its facts, and the machine that is to compute it."""

    choice: ModelChoice
    path: Path
    facts: ModelFacts
    backend: Backend

    def plan(self, config: TrainingConfig, budget_bytes: int | None = None) -> Plan:
        """How a budget, that of the settings when None, would be used.

        Raises:
            MemoryBudgetError: the base does not fit; names the least budget that does.
        """
        return make_plan(self.facts, config, budget_bytes or config.memory_limit_bytes, self.backend)

    def longest_row(self, config: TrainingConfig) -> int:
        """The longest row in tokens that trains within the budget of the settings; 0 if none does."""
        return longest_row(self.facts, config, config.memory_limit_bytes, self.backend)

    def other_plans(self, config: TrainingConfig) -> list[tuple[int, Plan | None]]:
        """Budgets near that of the settings, the least first, with the plan of each; None where it trains nothing."""
        found: list[tuple[int, Plan | None]] = []
        for gigabytes in OTHER_BUDGETS_GB:
            other = config.memory_limit_bytes + gigabytes * GIB
            if other > 0:
                try:
                    found.append((other, self.plan(config, other)))
                except MemoryBudgetError:
                    found.append((other, None))
        return found


def prepare_model(
    config: TrainingConfig, cache_dir: Path, *, choice: ModelChoice | None = None, ahead: bool = False
) -> PreparedModel:
    """The base that ``config`` names, or the one that `auto` takes, with its facts.

    Args:
        cache_dir: where the speed of this machine is kept.
        choice: the base, where it was chosen and made ready before.
        ahead: of a base that is not here yet, fetch no weights; one that a training would refuse is refused, or passed over by `auto`.

    Raises:
        ModelError: it cannot be found, fetched or read.
    """
    if ahead and choice is None:
        choice, path, facts = look_ahead_at(config)
    else:
        choice = choice or choose_base(config)
        path = resolve_model(choice)
        facts = model_facts(path)
    backend = with_attention(known_backend(cache_dir, facts), cache_dir, facts)
    return PreparedModel(choice, path, facts, backend)
