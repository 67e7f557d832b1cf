"""Runs that are killed anywhere end with the bytes of the run that was left in peace; 200 by benchmarks/kill_storm.py."""

from __future__ import annotations

import pytest

from tests.survival.storm import Storm

RUNS = 20
SEED = 4


@pytest.mark.parametrize("number", range(RUNS))
def test_a_run_killed_anywhere_ends_with_the_same_adapter(storm: Storm, number: int) -> None:
    story = storm.run(number, seed=SEED)
    assert story.hits, "nothing was killed"
    assert story.completed, story
    assert story.identical, story
    assert story.adapters == 1 and not story.problems, story


#: Each kind of write call, and how it fails; more of them by ``benchmarks/kill_storm.py --faults``.
FAULTS = [
    ("ENOSPC", "write"),
    ("EIO", "write"),
    ("short", "write"),
    ("ENOSPC", "fsync"),
    ("EIO", "rename"),
    ("EIO", "replace"),
    ("ENOSPC", "mkdir"),
    ("ENOSPC", "commit"),
    ("ENOSPC", "save_safetensors"),
]


@pytest.mark.parametrize(("action", "kind"), FAULTS)
def test_a_run_whose_write_fails_ends_with_the_same_adapter(storm: Storm, action: str, kind: str) -> None:
    calls = [number for number, label in enumerate(storm.calls, 1) if label == kind]
    story = storm.broken(action, calls[len(calls) * 2 // 3])
    assert story.completed and story.identical, story
    assert story.adapters == 1 and not story.problems, story


def test_the_injection_reaches_every_kind_of_write(storm: Storm) -> None:
    assert set(storm.calls) == {"write", "fsync", "rename", "replace", "mkdir", "commit", "save_safetensors"}
