"""Places drawn from every file in turn: what is measured is told by file, and a few large ones should not have all of it.

In: things that lie in files. Out: the same in another order, decided by a seed. Cost: a shuffle.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_turn(items: Iterable[T], path_of: Callable[[T], str], choose: random.Random) -> Iterator[T]:
    """All items: one of every file, then another of every file that has more, each time in another order of the files."""
    by_file: dict[str, list[T]] = {}
    for item in items:
        by_file.setdefault(path_of(item), []).append(item)
    for found in by_file.values():
        choose.shuffle(found)
    turn = 0
    while files := [found for found in by_file.values() if len(found) > turn]:
        choose.shuffle(files)
        yield from (found[turn] for found in files)
        turn += 1
