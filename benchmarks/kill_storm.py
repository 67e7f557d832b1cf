"""Trainings killed by SIGKILL at random moments, resumed until they are done, compared byte by byte with one left in peace.

    python benchmarks/kill_storm.py [--runs 200]     kills: the worker, all processes of a run, or in the midst of a write
    python benchmarks/kill_storm.py --faults         a write call of the run fails: ENOSPC, EIO, short, rename

The embedded model learns a small repository for six updates with a checkpoint after each. A run counts when it ends with
one adapter whose weight files are those of the undisturbed run, in a registry that finds nothing to complain of.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

import mlx_gardener  # noqa: F401  # preloads the BLAS

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import bar, describe, save

from tests.conftest import write_repository
from tests.survival.storm import Storm, Story

#: How a call of each kind is made to fail.
ACTIONS = {"write": ("ENOSPC", "EIO", "short"), "rename": ("EIO",), "replace": ("EIO",)}
_OTHERS = ("ENOSPC", "EIO")


def plan_of_faults(calls: list[str], runs: int, seed: int) -> list[tuple[str, int]]:
    """(action, number of the call) for at most ``runs`` runs: every kind of call fails in all its ways, in turn.

    A run makes thousands of write calls, most of them alike (the registry's), so rare kinds come as often as those.
    """
    choose, ways = random.Random(seed), dict[tuple[str, str], list[int]]()
    for number, label in enumerate(calls, 1):
        for action in ACTIONS.get(label, _OTHERS):
            ways.setdefault((label, action), []).append(number)
    for numbers in ways.values():
        choose.shuffle(numbers)
    found = list[tuple[str, int]]()
    while len(found) < runs and any(ways.values()):
        found += [(action, numbers.pop()) for (_, action), numbers in ways.items() if numbers]
    return found[:runs]


@click.command()
@click.option("--runs", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=4, show_default=True)
@click.option("--faults", is_flag=True, help="Let writes fail instead of killing.")
def main(runs: int, seed: int, faults: bool) -> None:
    """Run the storm and write the result."""
    machine, stories, began = describe(), list[Story](), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLX_GARDENER_HOME"] = f"{scratch}/home"
        storm = Storm(write_repository(Path(scratch) / "repository"), Path(scratch), "seedling")
        broken = plan_of_faults(storm.calls, runs, seed) if faults else []
        total = len(broken) or runs
        for number in range(total):
            story = storm.broken(*broken[number]) if faults else storm.run(number, seed=seed)
            stories.append(story)
            left = (time.monotonic() - began) / (number + 1) * (total - number - 1)
            what = "good" if story.good else f"BAD: {story}"
            print(
                f"{number + 1} of {total}: {', '.join(story.hits)}: {what}; {left / 60:.0f} min left",
                flush=True,
            )
    good = [story for story in stories if story.good]
    name = "fault_storm" if faults else "kill_storm"
    what = (
        f"{total} of a run's {len(storm.calls):,} write calls failing, one a run"
        if faults
        else f"{total} runs killed by SIGKILL, {kills(stories)}"
    )
    bars = [
        bar(
            what,
            "the undisturbed run",
            "all finish with identical adapters, the registry clean",
            f"{len(good)} of {total}; {sum(story.starts for story in stories)} starts by hand, "
            f"{statistics.median(story.seconds for story in stories):.1f} s a run",
            len(good) == total,
        )
    ]
    print(bars)
    result = {
        "machine": machine,
        "bars": bars,
        "seed": seed,
        "stories": [story.to_json() for story in stories],
    }
    print("wrote", save(name, result))


def kills(stories: list[Story]) -> str:
    """How many hits of each kind there were."""
    ways = Counter(dict.fromkeys(("worker", "everything", "call"), 0))
    for story in stories:
        ways[story.way] += len(story.hits)
    return ", ".join(f"{count} times {way}" for way, count in ways.items())


if __name__ == "__main__":
    main()
