"""How much is measured: what fits into the time, and what is kept time for however slow a base is."""

from __future__ import annotations

import math

import pytest

from mlx_gardener.config import TrainingConfig
from mlx_gardener.evaluate.work import (
    SERVED_PROMPT,
    SURE,
    decide_work,
    least_tokens,
    memorisation_places,
    room_for_more,
    with_tasks,
)


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


def test_no_tasks_that_were_asked_for_are_no_want_of_time() -> None:
    facts = {"training_tokens": 10_000, "windows": 100, "tasks": 0, "can_write": True}
    work = decide_work(TrainingConfig(), **facts, forward_tokens=1.0)  # type: ignore[arg-type]
    assert work.next_line_tasks == 0 and "there was no time" not in work.reason


@pytest.mark.parametrize(
    ("took", "left", "room"),
    [(400.0, 200.0, 0.4), (400.0, 100.0, 0.0), (0.0, 600.0, 1.0), (10.0, 600.0, 1.0), (10.0, math.inf, 0.0)],
    ids=[
        "less than was done",
        "too little to be worth it",
        "answers were all kept",
        "some of them",
        "no limit",
    ],
)
def test_what_took_little_time_is_at_most_doubled(took: float, left: float, room: float) -> None:
    """Where answers were kept, a round as large as the time seemed to allow was cut, and counted for nothing."""
    assert room_for_more(took, left) == pytest.approx(room)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [(155, (12, 40, 24)), (12, (12, 40, 24)), (4, (4, 13, 16)), (1, (1, 4, 4)), (0, (0, 4, 0))],
)
def test_fewer_tasks_than_the_least_make_all_of_the_test_smaller(
    tasks: int, expected: tuple[int, int, int]
) -> None:
    config = TrainingConfig(evaluation={"tasks": tasks, "time_share": 0})  # type: ignore[arg-type]
    work = decide_work(config, training_tokens=10_000, windows=100, tasks=None, can_write=True, other_kinds=2)
    assert work.next_line_tasks == work.fim_tasks == work.other_tasks
    assert (work.next_line_tasks, work.rows, memorisation_places(config.evaluation)) == expected


def test_who_asks_for_more_tasks_than_a_training_had_gets_the_rows_and_places_of_so_many() -> None:
    config = TrainingConfig(evaluation={"tasks": 0, "time_share": 0})  # type: ignore[arg-type]
    facts = {"training_tokens": 10_000, "windows": 100, "can_write": True}
    asked = with_tasks(config, 20)
    assert decide_work(asked, tasks=20, **facts).rows == 40  # type: ignore[arg-type]
    assert memorisation_places(asked.evaluation) == 24
    assert with_tasks(config, None) is config and with_tasks(TrainingConfig(), 20) == TrainingConfig()


def test_prompts_are_the_served_ones_whatever_the_rows_and_are_cut_last() -> None:
    """A prompt that is cut says nothing of the one that is served; a row that is cut does, and so does a shorter answer."""
    facts = {"training_tokens": 200_000, "windows": 100, "tasks": None, "can_write": True, "files": 10}
    narrow = TrainingConfig(data={"sequence_lengths": (128, 256)})  # type: ignore[arg-type]
    assert decide_work(narrow, **facts).prompt_tokens == SERVED_PROMPT  # type: ignore[arg-type]
    sizes = []
    for tokens in (2e6, 3.2e5, 2.2e5, 1.2e5, 3e4):
        work = decide_work(TrainingConfig(), **facts, forward_tokens=tokens)  # type: ignore[arg-type]
        sizes.append((work.prompt_tokens[0], work.new_tokens))
    assert sizes[0] == (640, 48) and sizes[-1] == (160, 24)
    assert sizes == sorted(sizes, reverse=True) and (640, 24) in sizes, sizes


@pytest.mark.parametrize(
    ("windows", "rows"),
    [(22, "all there are"), (100, "at most 0% of the work of training on 10,000 tokens, but at least 40")],
)
def test_tasks_that_were_asked_for_are_given_no_other_reason(windows: int, rows: str) -> None:
    config = TrainingConfig(evaluation={"time_share": 0})  # type: ignore[arg-type]
    work = decide_work(config, training_tokens=10_000, windows=windows, tasks=4, can_write=True)
    assert work.reason == f"4 tasks of each kind were asked for; rows: {rows}"


def test_tasks_that_were_asked_for_are_as_many_as_fit_where_time_presses_and_what_is_left_out_is_said() -> (
    None
):
    config = with_tasks(TrainingConfig(), 469)
    facts = {"training_tokens": 10**6, "windows": 100, "tasks": 469, "can_write": True, "files": 5}
    whole = decide_work(config, **facts)  # type: ignore[arg-type]
    assert whole.next_line_tasks == 469 and whole.left_out(whole) == []
    roomy = decide_work(config, **facts, forward_tokens=1e8)  # type: ignore[arg-type]
    assert roomy == whole
    pressed = decide_work(config, **facts, forward_tokens=5e5)  # type: ignore[arg-type]
    assert 4 < pressed.next_line_tasks == pressed.fim_tasks < 469 and "as fit into the time" in pressed.reason
    assert pressed.left_out(whole)[-1] == (
        f"For want of time at most {pressed.next_line_tasks} tasks of each kind were asked, instead of 469 where there are as many."
    )
    hurried = decide_work(config, **facts, forward_tokens=1e4)  # type: ignore[arg-type]
    assert hurried.left_out(whole)[-1] == "For want of time nothing but next lines was asked."
    assert decide_work(config, **{**facts, "tasks": 5}, forward_tokens=5e5).next_line_tasks == 5  # type: ignore[arg-type]
