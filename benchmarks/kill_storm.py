"""Trainings killed by SIGKILL at random moments, resumed until they are done, compared byte by byte with one left in peace.

    python benchmarks/kill_storm.py [--runs 200]     kills: the worker, all processes of a run, or in the midst of a write
    python benchmarks/kill_storm.py --faults         a write call of the run fails: ENOSPC, EIO, short, rename
    python benchmarks/kill_storm.py --deaths         SIGABRT, the kernel's out-of-memory killer (a cgroup), RLIMIT_AS

The embedded model (with ``--tiny`` a random one of three layers, in a third of the time) learns a small repository for six
updates with a checkpoint after each. A run counts when it ends with
one adapter whose weight files are those of the undisturbed run, in a registry that finds nothing to complain of.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import click

import mlx_gardener  # noqa: F401  # preloads the BLAS

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import bar, describe, save

from tests.support.models import write_tiny_model, write_tiny_tokenizer
from tests.support.repositories import write_repository
from tests.survival.memory_cgroup import memory_cgroup
from tests.survival.storm import CGROUP_BYTES, DEATHS, SMALLEST_PLAN, Storm, Story

#: How a call of each kind is made to fail.
ACTIONS = {"write": ("ENOSPC", "EIO", "short"), "rename": ("EIO",), "replace": ("EIO",)}
_OTHERS = ("ENOSPC", "EIO")


def plan_of_faults(
    calls: list[str], runs: int, seed: int, actions_of: Callable[[str], Sequence[str]]
) -> list[tuple[str, int]]:
    """(action, number of the call) for at most ``runs`` runs: every kind of call fails in all its ways, in turn.

    A run makes thousands of write calls, most of them alike (the registry's), so rare kinds come as often as those.
    """
    choose, ways = random.Random(seed), dict[tuple[str, str], list[int]]()
    for number, label in enumerate(calls, 1):
        for action in actions_of(label):
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
@click.option("--faults", "kind", flag_value="fault", help="Let writes fail instead of killing.")
@click.option("--deaths", "kind", flag_value="death", help="Let workers abort and memory run out instead.")
@click.option("--kills", "kind", flag_value="kill", default=True, hidden=True)
@click.option(
    "--tiny", is_flag=True, help="Train a random model of three layers instead of the embedded one."
)
def main(runs: int, seed: int, kind: str, tiny: bool) -> None:
    """Run the storm and write the result."""
    machine, stories, began = describe(), list[Story](), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        repository, model = write_repository(Path(scratch) / "repository"), "seedling"
        if tiny:
            words = Path(scratch) / "tokenizer"
            words.mkdir()
            tokenizer = write_tiny_tokenizer(words, repository)
            model = str(write_tiny_model(Path(scratch) / "model", tokenizer))
        storm = Storm(repository, Path(scratch), model, more=SMALLEST_PLAN if kind == "death" else None)
        procs = stack.enter_context(memory_cgroup(CGROUP_BYTES)) if kind == "death" else None
        ways = [way for way in DEATHS if way != "cgroup" or procs]
        actions: Callable[[str], Sequence[str]] = (
            (lambda label: ways) if kind == "death" else lambda label: ACTIONS.get(label, _OTHERS)
        )
        broken = [] if kind == "kill" else plan_of_faults(storm.calls, runs, seed, actions)
        total = len(broken) or runs
        for number in range(total):
            story = storm.broken(*broken[number], procs=procs) if broken else storm.run(number, seed=seed)
            stories.append(story)
            left = (time.monotonic() - began) / (number + 1) * (total - number - 1)
            what = "good" if story.good else f"BAD: {story}"
            print(
                f"{number + 1} of {total}: {story.way}: {', '.join(story.hits)}: {what}; {left / 60:.0f} min left",
                flush=True,
            )
    good = [story for story in stories if story.good]
    ways_met = ", ".join(f"{count} times {way}" for way, count in Counter(s.way for s in stories).items())
    what = {
        "kill": f"{total} runs killed by SIGKILL, {kills(stories)}",
        "fault": f"{total} of a run's {len(storm.calls):,} write calls failing, one a run",
        "death": f"{total} runs whose worker dies: {ways_met}",
    }[kind]
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
        "model": "tiny" if tiny else "seedling",
        "stories": [story.to_json() for story in stories],
    }
    print("wrote", save(f"{kind}_storm", result))


def kills(stories: list[Story]) -> str:
    """How many hits of each kind there were."""
    ways = Counter(dict.fromkeys(("worker", "everything", "call"), 0))
    for story in stories:
        ways[story.way] += len(story.hits)
    return ", ".join(f"{count} times {way}" for way, count in ways.items())


if __name__ == "__main__":
    main()
