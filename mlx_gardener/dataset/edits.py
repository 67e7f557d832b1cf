"""Next edits from past commits: what stood around the caret, what had just been changed, and what the window became.

In: `PastCommit`s. Out: `EditExample`s. A commit's hunks are put in an order in which they could have been typed (a name is
defined before it is used, sources before tests, then from top to bottom), some in two steps, and replayed: every step gives a
window of 21 lines as it was before the last edit, as it is, and as the commit leaves it. After a step with nothing left to do around
it, window and update are the same: *no edit is due*, a third of all examples, since staying quiet is what small models fail at.

What is held out stays unseen: training examples are made of files of the training part alone, by commits before those whose files are
held out, and never show three lines in a row that a held-out file has. Cost: a diff by lines of each file, bounded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_gardener.config import DataConfig
from mlx_gardener.dataset.edit_steps import (
    WINDOW_ABOVE,
    WINDOW_BELOW,
    RecentChange,
    ReplayedFile,
    Step,
    crosses,
    hunks_of,
    is_blank,
    is_inside,
    row_before,
    touches,
    typed_parts,
    typing_order,
    window_around,
)
from mlx_gardener.dataset.split import Split
from mlx_gardener.source.commits import FileChange, PastCommit, past_commits

#: Of the examples, those in which no edit is due, where there are as many.
QUIET_SHARE = 1 / 3
#: Of a commit: most examples with and without an edit, so that none outweighs the others; and steps that are replayed.
_MOST_DUE, _MOST_QUIET, _MOST_STEPS = 4, 2, 60
#: Most lines that a step takes out or puts in, to be one thing that a window shows.
_MOST_LINES = 15
#: Edits that are shown: Zed's.
SHOWN_CHANGES = 3
#: Of places where no edit is due, those that the caret was moved to (judgement).
_MOVED = 0.25
#: Lines in a row that tell what is held out.
_SHINGLE = 3
#: Held-out edits that are looked for.
MOST_HELD_OUT = 700
_CHARACTERS_PER_TOKEN = 3.0


@dataclass(frozen=True)
class EditExample:
    """A window of a file and what it becomes; texts are rows joined by ``\\n``, without one at the end.

    Attributes:
        line: of the window's first row, from 1.
        caret: the row of the window in which the caret stands, from 0.
        original: the window before the last edit in this file, ``current`` as it is, ``updated`` as the commit leaves it.
        above, below: what stands around it, up to as many rows.
        changes: the latest edits in any file of the commit, oldest first.
    """

    path: str
    commit: str
    line: int
    caret: int
    original: str
    current: str
    updated: str
    above: str
    below: str
    changes: tuple[RecentChange, ...] = ()

    @property
    def is_due(self) -> bool:
        """Whether there is an edit to make."""
        return self.current != self.updated

    @property
    def size(self) -> int:
        """Characters of all its texts that a prompt and its answer may show."""
        shown = sum(len(change.original) + len(change.updated) for change in self.changes)
        return shown + len(self.original) + len(self.current) + len(self.updated)

    def rows(self) -> Iterator[str]:
        """Every row that it shows, text by text."""
        for text in (self.original, self.current, self.updated, self.above, self.below):
            yield from text.split("\n")
        for change in self.changes:
            for text in (change.original, change.updated):
                yield from text.split("\n")


@dataclass
class Edits:
    """What a history gave: examples to learn from, newest first, those held out, and ``counts`` of commits by what became of them."""

    train: list[EditExample] = field(default_factory=list)
    held_out: list[EditExample] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def collect_edits(
    root: Path,
    split: Split,
    held_out_texts: Iterable[str],
    config: DataConfig,
    *,
    since_age: int | None,
    wanted_tokens: float,
    seed: int,
    interrupt: Callable[[], None] = lambda: None,
    on_look: Callable[[int, int], None] = lambda done, count: None,
) -> Edits:
    """Examples of the latest commits, as many as are wanted; held-out ones of the test part's files.

    Args:
        held_out_texts: of validation and test part.
        since_age: how many commits ago the first was made of those that are held out; None where files were drawn.
        wanted_tokens: about so many to learn from.
        interrupt: asked between commits; may raise.
        on_look: told how many commits were looked at, and how many there are to look at.
    """
    train = {record.path for record in split.train}
    test = {record.path for record in split.test}
    unseen = _Shingles(held_out_texts)
    found = Edits()
    missing = _CHARACTERS_PER_TOKEN * wanted_tokens
    due = quiet = 0

    def is_for_training(age: int) -> bool:
        return missing > 0 and (since_age is None or age > since_age)

    def is_for_test(age: int, paths: Collection[str]) -> bool:
        is_late = since_age is None or age <= since_age
        return is_late and len(found.held_out) < MOST_HELD_OUT and not test.isdisjoint(paths)

    def is_wanted(age: int, paths: Sequence[str]) -> Collection[str]:
        if is_for_test(age, paths):
            return train | test
        return train if is_for_training(age) else ()

    for commit in past_commits(
        root, is_wanted, config, counts=found.counts, interrupt=interrupt, on_look=on_look
    ):
        paths = {change.path for change in commit.changes}
        if is_for_test(commit.age, paths):
            found.held_out += examples_of(commit, seed=seed, only=test)
        if not is_for_training(commit.age):
            continue
        own = PastCommit(
            commit.commit, commit.age, tuple(item for item in commit.changes if item.path in train)
        )
        for example in examples_of(own, seed=seed):
            if not example.is_due and quiet >= QUIET_SHARE / (1 - QUIET_SHARE) * max(1, due):
                continue
            if unseen.touches(example.rows()):
                found.counts["examples that show held-out lines"] += 1
                continue
            due, quiet = due + example.is_due, quiet + (not example.is_due)
            missing -= example.size
            found.train.append(example)
    return found


class _Shingles:
    """Lines in a row of some texts, blank and short ones passed over, by their hashes."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known = {shingle for text in texts for shingle in self._of(text.split("\n"))}

    def touches(self, rows: Iterable[str]) -> bool:
        """Whether ``rows`` have some of them."""
        return any(shingle in self._known for shingle in self._of(rows))

    @staticmethod
    def _of(rows: Iterable[str]) -> Iterator[int]:
        last: list[str] = []
        for row in rows:
            told = row.strip()
            if len(told) < 4:
                continue
            last = [*last[1 - _SHINGLE :], told]
            if len(last) == _SHINGLE:
                yield hash(tuple(last))


def examples_of(commit: PastCommit, *, seed: int, only: Collection[str] | None = None) -> list[EditExample]:
    """The examples of a commit, in the order of its edits; none where it only changes white space.

    Args:
        only: the files whose windows are taken; all where None.
    """
    choose = random.Random(f"{seed}\0{commit.commit}")
    files = {change.path: ReplayedFile(change.before.split("\n")) for change in commit.changes}
    hunks = [step for change in commit.changes for step in hunks_of(change)]
    blank = sum(is_blank(files[step.path].rows[step.start : step.end], step.rows) for step in hunks)
    if not hunks or 2 * blank >= len(hunks) or len(hunks) > _MOST_STEPS:
        return []
    steps = [part for step in typing_order(hunks, files) for part in typed_parts(step, choose)]
    for step in steps:
        files[step.path].waiting.append(step)
    due, quiet = [], []
    changes: list[RecentChange] = []
    for at, step in enumerate(steps):
        file, last = files[step.path], steps[at - 1] if at else None
        if at and (only is None or step.path in only):
            due += [found for found in [_due(commit, file, step, last, changes, choose)] if found is not None]
        changes.append(file.make(step))
        if only is None or step.path in only:
            quiet += [found for found in [_quiet(commit, file, step, changes, choose)] if found is not None]
    chosen = {*choose.sample(range(len(due)), min(_MOST_DUE, len(due)))}
    still = {*choose.sample(range(len(quiet)), min(_MOST_QUIET, len(quiet)))}
    return [found for at, found in enumerate(due) if at in chosen] + [
        found for at, found in enumerate(quiet) if at in still
    ]


def example_at(
    path: str, text: str, caret: int, recent: Sequence[FileChange], commit: str = ""
) -> EditExample:
    """The window around a caret now, nothing updated, with what was changed lately.

    Args:
        text: of the file ``path`` as it is.
        caret: row in which the caret stands, from 0.
        recent: files before and after what was changed, oldest first; what is nearest to the caret counts as the last edit.
    """
    rows = text.split("\n")
    here, changes = ReplayedFile(rows), list[RecentChange]()
    for change in sorted(recent, key=lambda item: item.path == path):
        file, hunks = ReplayedFile(change.before.split("\n")), hunks_of(change)
        if change.path == path and hunks:
            here = file
            put = {
                id(step): sum(len(item.rows) - item.end + item.start for item in hunks[:at])
                for at, step in enumerate(hunks)
            }
            hunks.sort(key=lambda step: -abs(step.start + put[id(step)] - caret))
        file.waiting += hunks
        changes += [file.make(step) for step in list(hunks)]
    first, end = window_around(len(rows), caret)
    return _example(PastCommit(commit, 0, ()), here, path, rows, caret, rows[first:end], changes)


def _due(
    commit: PastCommit,
    file: ReplayedFile,
    step: Step,
    last: Step | None,
    changes: Sequence[RecentChange],
    choose: random.Random,
) -> EditExample | None:
    """The window in which ``step`` is the next edit; None where it is too large, only blanks, or does not fit."""
    taken = step.end - step.start
    if max(taken, len(step.rows)) > _MOST_LINES:
        return None
    rows, at = file.now(), file.place(step)
    near = []
    if last is not None and last.path == step.path:  # the caret is where it wrote last, if that is near
        near.append(file.place(last) + max(0, len(last.rows) - 1))
    near.append(at + choose.randint(-3, max(1, taken) + 2))
    for caret in near:
        caret = min(max(0, caret), len(rows) - 1)
        first, end = window_around(len(rows), caret)
        inside = [(file.place(item), item) for item in file.waiting if is_inside(file, item, first, end)]
        if step not in [item for _, item in inside] or any(
            crosses(file, item, first, end) for item in file.waiting
        ):
            continue
        updated = rows[first:end]
        for place, item in sorted(inside, key=lambda pair: (-pair[0], -pair[1].number)):
            updated[place - first : place - first + item.end - item.start] = item.rows
        if len(updated) > 2 * (end - first) or is_blank(rows[first:end], updated):
            return None
        return _example(commit, file, step.path, rows, caret, updated, changes)
    return None


def _quiet(
    commit: PastCommit, file: ReplayedFile, step: Step, changes: Sequence[RecentChange], choose: random.Random
) -> EditExample | None:
    """The window in which nothing is left to do after ``step`` was made: around it, or where the caret was moved to."""
    rows = file.now()
    caret = file.place(step) + max(0, len(step.rows) - 1)
    if choose.random() < _MOVED:
        caret = choose.randrange(len(rows))
    caret = min(caret, len(rows) - 1)
    first, end = window_around(len(rows), caret)
    if any(touches(file, item, first, end) for item in file.waiting) or not "".join(rows[first:end]).strip():
        return None
    return _example(commit, file, step.path, rows, caret, rows[first:end], changes)


def _example(
    commit: PastCommit,
    file: ReplayedFile,
    path: str,
    rows: list[str],
    caret: int,
    updated: Sequence[str],
    changes: Sequence[RecentChange],
) -> EditExample:
    first, end = window_around(len(rows), caret)
    original = rows[first:end]
    if file.made:
        made = file.made[-1]
        edit = (file.place(made), made.end - made.start, len(made.rows))
        original = file.now(without=made)[row_before(first, *edit) : row_before(end, *edit)]
    size = WINDOW_ABOVE + WINDOW_BELOW
    return EditExample(
        path,
        commit.commit,
        first + 1,
        caret - first,
        original="\n".join(original),
        current="\n".join(rows[first:end]),
        updated="\n".join(updated),
        above="\n".join(rows[max(0, first - size) : first]),
        below="\n".join(rows[end : end + size]),
        changes=tuple(changes[-SHOWN_CHANGES:]),
    )
