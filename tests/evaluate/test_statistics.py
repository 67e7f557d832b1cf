"""Intervals by file: zero is in them where nothing differs, and not where something does."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_gardener.evaluate.statistics import (
    files_needed,
    relative_change,
    share_change,
    smallest_told,
    student_quantile,
    tasks_needed,
    unseen_share,
)


def a_and_a(seed: int, files: int) -> tuple[list[float], list[float]]:
    """Two runs of the same thing on files of very unequal sizes; small files are noisier, and tails are heavy."""
    random = np.random.default_rng(seed)
    sizes = random.lognormal(7, 1.2, files)
    spread = 0.02 * (np.median(sizes) / sizes) ** 0.25
    first, second = (sizes * (1 + random.standard_t(4, files) * spread) for _ in range(2))
    return list(first), list(second)


@pytest.mark.parametrize("files", [3, 6, 12, 40])
def test_comparing_a_thing_with_itself_is_inconclusive_in_95_of_100(files: int) -> None:
    found = [relative_change(*a_and_a(seed, files), seed=seed).spans_zero for seed in range(200)]
    assert sum(found) >= 190


@pytest.mark.parametrize("files", [4, 10])
def test_next_lines_of_the_same_thing_are_inconclusive_in_95_of_100(files: int) -> None:
    inconclusive = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        names = [f"f{number}" for number in random.integers(0, files, 60)]
        hard = random.uniform(0, 1, files)
        first, second = ([float(random.random() < hard[int(name[1:])]) for name in names] for _ in range(2))
        inconclusive += share_change(first, second, names, seed=seed).spans_zero
    assert inconclusive >= 190


def test_where_nothing_differs_the_interval_goes_as_far_as_unseen_files_could() -> None:
    """The rule of three: with a share of 3 / n that differ, none of n is seen in one of twenty draws."""
    same = [0.0, 1.0] * 30
    points = share_change(same, same, [str(number) for number in range(60)], seed=0)
    assert (points.change, points.low, points.high) == (0.0, -0.05, 0.05) and points.spans_zero
    for files in (20, 60, 400):
        assert (1 - unseen_share(files)) ** files == pytest.approx(0.05, abs=0.012)
    one_file = share_change(same, same, ["a"] * 60, seed=0)
    assert (one_file.low, one_file.high) == (-1.0, 1.0), "sixty tasks of one file are one file"
    most_in_one = share_change(same, same, ["a"] * 55 + list("bcdef"), seed=0)
    assert most_in_one.high == 1.0


def test_an_adapter_against_itself_is_zero_and_spans_it() -> None:
    losses = [100.0, 20.0, 3.0]
    found = relative_change(losses, losses, seed=0)
    assert (found.change, found.low, found.high) == (0.0, -1.0, 1.0) and found.spans_zero
    assert files_needed(found) is None


def test_a_real_difference_is_found_and_repeats_for_a_seed() -> None:
    base = [100.0 + n for n in range(20)]
    better = [(0.8 + 0.01 * (n % 3)) * loss for n, loss in enumerate(base)]
    first = relative_change(base, better, seed=1)
    assert first == relative_change(base, better, seed=1)
    assert first.change == pytest.approx(-0.19, abs=0.01) and first.high < -0.15
    assert files_needed(first) == 2


def test_one_file_is_never_enough() -> None:
    found = relative_change([100.0], [50.0], seed=0)
    assert found.change == -0.5 and found.spans_zero


def test_points_are_differences_of_shares() -> None:
    found = share_change([0, 0, 1, 0], [1, 0, 1, 1], ["a", "a", "b", "c"], seed=0)
    assert found.change == pytest.approx(0.5) and found.files == 3


def test_a_small_effect_in_noise_needs_more_files_than_were_seen() -> None:
    first, second = a_and_a(5, 12)
    weak = relative_change(first, [loss * 0.995 for loss in second], seed=0)
    needed = files_needed(weak)
    assert needed is not None and needed > 12


@pytest.mark.parametrize(
    ("freedom", "value"), [(1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (1000, 1.962)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: float, value: float) -> None:
    assert student_quantile(freedom) == pytest.approx(value, rel=2e-3)


def test_five_points_take_155_tasks_where_nothing_gets_worse_and_three_times_as_many_where_answers_come_and_go() -> (
    None
):
    assert (tasks_needed(0.05, 0.05), tasks_needed(0.05, 0.15)) == (155, 469)
    assert tasks_needed(0.05, 0.0) == tasks_needed(0.05, 0.05), "no difference without answers that differ"
    assert tasks_needed(0.1, 0.15) < tasks_needed(0.05, 0.15) / 3


def test_so_many_tasks_tell_the_difference_four_times_of_five() -> None:
    """By drawing: each task in a file of its own, 10 in 100 gained and 5 lost."""
    tasks, told = tasks_needed(0.05, 0.15), 0
    names = [str(number) for number in range(tasks)]
    for seed in range(100):
        drawn = np.random.default_rng(seed).random(tasks)
        first, second = ((drawn < 0.05).astype(float), ((drawn >= 0.05) & (drawn < 0.15)).astype(float))
        told += share_change(list(first), list(second), names, seed=seed).low > 0
    assert 70 <= told <= 90


def test_twelve_answers_tell_no_less_than_forty_points_and_many_that_do_not_differ_tell_little() -> None:
    files = [f"f{number % 6}" for number in range(12)]
    one_lost = share_change([1.0, *[0.0] * 11], [0.0] * 12, files, seed=0)
    assert smallest_told(one_lost, 12) > 0.2
    same = share_change([0.0] * 155, [0.0] * 155, [str(number) for number in range(155)], seed=0)
    assert 0.02 < smallest_told(same, 155) < 0.05
    alone = share_change([0.0] * 9, [1.0] * 9, ["a"] * 9, seed=0)
    assert smallest_told(alone, 9) == 1.0, "one file tells nothing"
