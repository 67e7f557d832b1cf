"""How much is measured: what fits into the time, and what is kept time for however slow a base is."""

from __future__ import annotations

import pytest

from mlx_gardener.config import TrainingConfig
from mlx_gardener.evaluate.work import SURE, decide_work, least_tokens


@pytest.mark.parametrize("step_tokens", [10.0, 40.0])
def test_the_least_that_time_is_kept_for_measures_rows_and_next_lines_of_every_arm(
    step_tokens: float,
) -> None:
    config = TrainingConfig()
    tokens = SURE * least_tokens(config, config.evaluation.arms, step_tokens)
    work = decide_work(
        config,
        training_tokens=10_000,
        windows=100,
        tasks=None,
        can_write=True,
        files=3,
        forward_tokens=tokens,
        step_tokens=step_tokens,
    )
    prompt = sum(work.prompt_tokens) + work.new_tokens / 2
    arms, retrieving = len(config.evaluation.arms), 2
    rows = work.rows * (
        (arms - retrieving) * work.row_tokens + retrieving * (2 * work.context_tokens + 1.5 * work.row_tokens)
    )
    lines = work.next_line_tasks * (arms * prompt + retrieving * work.context_tokens)
    assert work.rows >= 4 and work.next_line_tasks >= 4
    assert rows + lines + arms * work.new_tokens * step_tokens <= tokens


def test_less_time_than_that_asks_for_no_less() -> None:
    config = TrainingConfig()
    facts = {"training_tokens": 10_000, "windows": 100, "tasks": None, "can_write": True}
    least = decide_work(config, **facts, forward_tokens=1.0)  # type: ignore[arg-type]
    assert (least.rows, least.next_line_tasks, least.fim_tasks) == (4, 4, 0)
