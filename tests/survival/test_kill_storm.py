"""Runs that are killed anywhere end with the bytes of the run that was left in peace; 200 by benchmarks/kill_storm.py.

By default a run for each way of being hit and a fault of each kind of call; the others, and deaths that end with the
same bytes under the smallest plan, are marked as slow. tests/survival/test_supervision.py has such deaths by default.
"""

from __future__ import annotations

import pytest

from tests.survival.memory_cgroup import memory_cgroup
from tests.survival.storm import CGROUP_BYTES, DEATHS, Storm

RUNS, BY_DEFAULT = 20, 2
SEED = 4


@pytest.mark.parametrize(
    "number",
    [
        *range(BY_DEFAULT),
        *(pytest.param(number, marks=pytest.mark.slow) for number in range(BY_DEFAULT, RUNS)),
    ],
)
def test_a_run_killed_anywhere_ends_with_the_same_adapter(storm: Storm, number: int) -> None:
    story = storm.run(number, seed=SEED)
    assert story.hits, "nothing was killed"
    assert story.completed, story
    assert story.identical, story
    assert story.adapters == 1 and not story.problems, story


#: Each kind of write call, and how it fails; more of them by ``benchmarks/kill_storm.py --faults``.
FAULTS = [
    pytest.param("ENOSPC", "write", marks=pytest.mark.slow),
    pytest.param("EIO", "write", marks=pytest.mark.slow),
    ("short", "write"),
    ("ENOSPC", "fsync"),
    pytest.param("EIO", "rename", marks=pytest.mark.slow),
    ("EIO", "replace"),
    pytest.param("ENOSPC", "mkdir", marks=pytest.mark.slow),
    ("ENOSPC", "commit"),
    ("ENOSPC", "save_safetensors"),
]


@pytest.mark.parametrize(("action", "kind"), FAULTS)
def test_a_run_whose_write_fails_ends_with_the_same_adapter(storm: Storm, action: str, kind: str) -> None:
    calls = [number for number, label in enumerate(storm.calls, 1) if label == kind]
    story = storm.broken(action, calls[len(calls) * 2 // 3])
    assert story.completed and story.identical, story
    assert story.adapters == 1 and not story.problems, story


@pytest.mark.slow
@pytest.mark.parametrize(("action", "kind"), [*zip(DEATHS, ("write", "commit", "fsync"), strict=True)])
def test_a_run_whose_worker_aborts_or_finds_no_memory_ends_with_the_same_adapter(
    smallest_storm: Storm, action: str, kind: str
) -> None:
    """More of them by ``benchmarks/kill_storm.py --deaths``."""
    calls = [number for number, label in enumerate(smallest_storm.calls, 1) if label == kind]
    with memory_cgroup(CGROUP_BYTES) as procs:
        if action == "cgroup" and procs is None:
            pytest.skip("no memory cgroup can be made here")
        # After the first updates a small training lives on what it freed: the limit mostly hurts before them.
        at = calls[0 if action == "rlimit" else len(calls) // 2]
        story = smallest_storm.broken(action, at, procs=procs)
    # tests/survival/test_supervision.py has a limit that always hurts.
    assert action == "rlimit" or story.deaths or story.starts > 1, "nothing went wrong"
    assert story.completed and story.identical, story
    assert story.adapters == 1 and not story.problems, story


def test_the_injection_reaches_every_kind_of_write(storm: Storm) -> None:
    assert set(storm.calls) == {"write", "fsync", "rename", "replace", "mkdir", "commit", "save_safetensors"}
