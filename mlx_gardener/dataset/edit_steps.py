"""A commit's changes as steps that somebody could have typed, and files in which they are made one after another.

In: what a commit made of each file. Out: `Step`s in their order, `ReplayedFile`s with what stands in them after any of them, and
`RecentChange`s as editors show them. Cost: a diff by lines of each file, bounded; rows of a file are copied at every look.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from mlx_gardener.source.commits import FileChange

#: Lines above and below the caret's that a window has: Sweep's (zed-industries/zed, crates/edit_prediction/src/sweep_prompt.rs).
WINDOW_ABOVE = WINDOW_BELOW = 10
#: Lines around an edit that are shown with it, and of each side at most: Zed's.
_CONTEXT, _CHANGE_LINES = 3, 40
#: Of steps of several lines, those that are typed in two (judgement).
_IN_TWO = 0.5
#: Lines between a file's first and last change, before times after: more takes long to compare, and is another file.
_MOST_COMPARED = 400_000
_TEST = re.compile(r"(^|[/_.])(tests?|specs?|__tests__)([/_.]|$)", re.I)
_DEFINITION = re.compile(
    r"\b(?:def|class|func|function|fn|const|let|var|type|struct|enum|interface|trait|mod|static)\s+([^\W\d]\w{2,})"
    r"|^\s*([^\W\d]\w{2,})\s*(?::[^=\n]*)?=[^=]",
    re.M,
)
_NAME = re.compile(r"[^\W\d]\w{2,}")


@dataclass(frozen=True)
class RecentChange:
    """An edit that was just made: both sides, with some lines around it."""

    path: str
    original: str
    updated: str


@dataclass(frozen=True)
class Step:
    """Rows ``start`` to ``end`` of a file, as the commit found it, become ``rows``; ``number`` orders those at one place."""

    path: str
    start: int
    end: int
    rows: tuple[str, ...]
    number: int = 0


def hunks_of(change: FileChange) -> list[Step]:
    """What changed in a file, line by line, from top to bottom; nothing where most of it did."""
    old, new = change.before.split("\n"), change.after.split("\n")
    first, last = 0, 0
    while first < min(len(old), len(new)) and old[first] == new[first]:
        first += 1
    while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
        last += 1
    left, right = old[first : len(old) - last], new[first : len(new) - last]
    if len(left) * len(right) > _MOST_COMPARED:
        return []
    found: list[Step] = []
    for kind, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        start, end, rows = first + a, first + b, tuple(right[c:d])
        if (
            found
            and start - found[-1].end == 1
            and not any(_NAME.search(row) for row in old[found[-1].end : start])
        ):
            before = found.pop()  # only braces and blanks between them: one thought
            start, rows = before.start, (*before.rows, *old[before.end : start], *rows)
        found.append(Step(change.path, start, end, rows))
    return found


def typing_order(hunks: Sequence[Step], files: Mapping[str, ReplayedFile]) -> list[Step]:
    """Hunks in an order in which they could have been typed."""
    added = []
    for step in hunks:
        gone = set(_NAME.findall("\n".join(files[step.path].rows[step.start : step.end])))
        text = "\n".join(step.rows)
        defined = {name for found in _DEFINITION.finditer(text) for name in found.groups() if name}
        added.append((defined - gone, set(_NAME.findall(text)) - gone))
    waiting = sorted(
        range(len(hunks)), key=lambda at: (bool(_TEST.search(hunks[at].path)), hunks[at].path, at)
    )
    ordered = []
    while waiting:
        ready = next(
            (
                at
                for at in waiting
                if not any(other != at and added[other][0] & added[at][1] - added[at][0] for other in waiting)
            ),
            waiting[0],
        )
        waiting.remove(ready)
        ordered.append(hunks[ready])
    return ordered


def typed_parts(step: Step, choose: random.Random) -> list[Step]:
    """A step, or the two that it is typed in: some of its lines first."""
    taken, put = step.end - step.start, len(step.rows)
    if put < 2 or taken not in (0, put) or choose.random() >= _IN_TWO:
        return [step]
    cut = choose.randrange(1, put)
    middle = step.start + (cut if taken else 0)
    return [
        Step(step.path, step.start, middle, step.rows[:cut]),
        Step(step.path, middle, step.end, step.rows[cut:], 1),
    ]


@dataclass
class ReplayedFile:
    """A file while its commit is replayed: ``rows`` as the commit found it, steps that are waiting, and those made."""

    rows: list[str]
    waiting: list[Step] = field(default_factory=list)
    made: list[Step] = field(default_factory=list)

    def now(self, without: Step | None = None) -> list[str]:
        """Its rows with what was made, but for one step."""
        found, at = [], 0
        for step in sorted(self.made, key=lambda item: (item.start, item.number)):
            if step is not without:
                found += [*self.rows[at : step.start], *step.rows]
                at = max(at, step.end)
        return [*found, *self.rows[at:]]

    def place(self, step: Step) -> int:
        """The row at which a step is, or would be, made now."""
        before = (step.start, step.number)
        others = (item for item in self.made if (item.start, item.number) < before)
        return step.start + sum(len(item.rows) - (item.end - item.start) for item in others)

    def make(self, step: Step) -> RecentChange:
        """Make a step, and say what it changed."""
        rows, at = self.now(), self.place(step)
        end = at + step.end - step.start
        above, below = rows[max(0, at - _CONTEXT) : at], rows[end : end + _CONTEXT]
        self.waiting.remove(step)
        self.made.append(step)
        sides = ([*above, *middle, *below] for middle in (rows[at:end], step.rows))
        return RecentChange(step.path, *(shortened(side) for side in sides))


def shortened(rows: Sequence[str]) -> str:
    """Rows as one text, a long middle left out, as Zed shows recent changes."""
    if len(rows) > _CHANGE_LINES:
        head = _CHANGE_LINES // 2
        rows = [*rows[:head], "...", *rows[len(rows) - (_CHANGE_LINES - head - 1) :]]
    return "\n".join(rows)


def window_around(count: int, caret: int) -> tuple[int, int]:
    """First row of the window around a caret in so many rows, and the row after its last."""
    return max(0, caret - WINDOW_ABOVE), min(count, caret + WINDOW_BELOW + 1)


def row_before(row: int, at: int, taken: int, put: int) -> int:
    """Where a row stood before an edit at row ``at`` that took rows out and put others in."""
    if row <= at:
        return row
    return row - put + taken if row >= at + put else at + min(row - at, taken)


def is_inside(file: ReplayedFile, step: Step, first: int, end: int) -> bool:
    """Whether a step lies in the window of these rows, and not at its edge where it would only add to it."""
    at = file.place(step)
    return (first < at or first == at == 0 or (first == at and step.end > step.start)) and (
        at + step.end - step.start <= end and (at < end or step.end > step.start)
    )


def touches(file: ReplayedFile, step: Step, first: int, end: int) -> bool:
    """Whether a step lies in the window, crosses its edge, or is beside it."""
    at = file.place(step)
    return at <= end and at + step.end - step.start >= first


def crosses(file: ReplayedFile, step: Step, first: int, end: int) -> bool:
    """Whether a part of what a step takes out lies in the window, and another does not."""
    at = file.place(step)
    stop = at + step.end - step.start
    return at < end and stop > first and not (first <= at and stop <= end)


def is_blank(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether two stretches differ by white space alone."""
    return "".join("".join(old).split()) == "".join("".join(new).split())
