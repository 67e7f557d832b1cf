"""A window in blocks, as the form zeta2.1 shows it: a numbered tag stands before each block of lines and after the last, and an answer
writes what is between two of them anew.

In: a window's text, without a line break at its end, and what it becomes. Out: the window with its tags, an answer, or what an
answer makes of a window. The facts are those of Zed's crates/zeta_prompt/src/multi_region.rs (V0318SeedMultiRegions). Unlike in the
form zeta2 little is written, and where no edit is due nothing but a tag twice. Cost: a look at each line.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

#: Stands where the caret is; answers may have it, too.
CURSOR = "<|user_cursor|>"
#: How every tag begins.
TAG_START = "<|marker_"
_TAG = re.compile(r"<\|marker_(\d{1,9})\|>")
#: Lines of a block: from so many on a blank line ends it, and after so many it ends anyway.
_LEAST_LINES, _MOST_LINES = 6, 16
#: Lines in which a better one for a block to begin with is looked for.
_NEAR_LINES = 5
_CLOSING = ("}", "]", ")")
_LAST_WORDS = {"break", "continue", "return", "throw", "end"}


def tag(number: int) -> str:
    """The tag of a place, counted from 1."""
    return f"{TAG_START}{number}|>"


def ends_with_tag(text: str) -> bool:
    """Whether a tag is the last of a text, but for white space."""
    *_, rest = _TAG.split(text)
    return rest != text and not rest.strip()


def tag_places(text: str) -> list[int]:
    """Characters of a window at which its tags stand: 0, where further blocks begin, and its end."""
    rows = text.split("\n")
    if len(rows) > 1 and not rows[-1]:
        rows.pop()
    first_rows, at = [0], 0
    while at < len(rows):
        first = _next_block(rows, at, at - first_rows[-1])
        if first is not None:
            first_rows.append(first)
            at = first
        at += 1
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row) + 1)
    return [*(starts[row] for row in first_rows), len(text)]


def _next_block(rows: Sequence[str], at: int, lines: int) -> int | None:
    """The row with which the next block begins where the block before ``at`` has so many lines; None for none yet."""
    near = range(at, min(len(rows), at + _NEAR_LINES))
    first = next((row for row in near if _may_begin(rows[row])), at)
    if (
        lines >= _LEAST_LINES
        and rows[at].strip()
        and not rows[at - 1].strip()
        and len(rows) - first >= _LEAST_LINES
    ):
        return first
    return first if lines >= _MOST_LINES else None


def _may_begin(row: str) -> bool:
    told = row.strip()
    return bool(told) and not told.startswith(_CLOSING) and told.rstrip(";") not in _LAST_WORDS


def with_tags(text: str, caret: int) -> str:
    """A window as the form shows it, with the caret at a character of it."""
    parts, is_placed = [], False
    places = tag_places(text)
    for number, (start, end) in enumerate(pairwise(places), 1):
        parts.append(tag(number))
        if not is_placed and start <= caret <= end:
            is_placed = True
            parts += [text[start:caret], CURSOR, text[caret:end]]
        else:
            parts.append(text[start:end])
    return "".join([*parts, tag(len(places))])


def answer_of(text: str, updated: str, caret: int) -> str:
    """What makes ``updated`` of a window: the fewest blocks that hold all that changes, between the tags around and within them.

    Where nothing changes it is the tag nearest to the caret, twice.
    """
    places = tag_places(text)
    if text == updated:
        return 2 * tag(1 + min(range(len(places)), key=lambda at: abs(places[at] - caret)))
    before, behind = _same(text, updated)
    first = min(bisect_right(places, before) - 1, len(places) - 2)
    last = max(bisect_left(places, len(text) - behind), first + 1)
    old = text[places[first] : places[last]]
    new = updated[places[first] : len(updated) - len(text) + places[last]]
    before, behind = _same(old, new)
    parts, at = [], 0
    for number in range(first, last):
        end = len(new)
        if number + 1 < last:
            end = _line_start(new, _moved(places[number + 1] - places[first], old, new, before, behind))
        end = max(at, end)
        parts.append(tag(number + 1) + new[at:end])
        at = end
    return "".join([*parts, tag(last + 1)])


def _same(old: str, new: str) -> tuple[int, int]:
    """How many characters two texts have in common at their beginnings, and at their ends apart from these."""
    most = min(len(old), len(new))
    before = next((at for at in range(most) if old[at] != new[at]), most)
    most -= before
    return before, next((at for at in range(most) if old[-1 - at] != new[-1 - at]), most)


def _moved(place: int, old: str, new: str, before: int, behind: int) -> int:
    """Where a place of ``old`` is in ``new``: within what changed, as far along."""
    if place <= before:
        return place
    if place >= len(old) - behind:
        return len(new) - len(old) + place
    changed = len(old) - before - behind
    return before + (place - before) * (len(new) - before - behind) // changed


def _line_start(text: str, place: int) -> int:
    """The next place at which a line begins, from ``place`` on; where there is none, that of the last line."""
    if place >= len(text):
        return len(text)
    if place == 0 or text[place - 1] == "\n":
        return place
    found = text.find("\n", place)
    return found + 1 if found >= 0 else text.rfind("\n", 0, place) + 1


def updated_by(shown: str, answer: str) -> tuple[str, str] | None:
    """A window and what an answer makes of it; None where the answer is none.

    Args:
        shown: the window with its tags (`with_tags`).
    """
    shown, answer = shown.replace(CURSOR, ""), answer.replace(CURSOR, "")
    places, text = dict[int, int](), ""
    tags = list(_TAG.finditer(shown))
    for at, found in enumerate(tags):
        places[int(found[1])] = len(text)
        text += shown[found.end() : tags[at + 1].start()] if at + 1 < len(tags) else ""
    written = list(_TAG.finditer(answer))
    if len(written) < 2:
        return None
    first, last = int(written[0][1]), int(written[-1][1])
    if first == last:
        return text, text
    if not (first in places and last in places and places[first] <= places[last]):
        return None
    new = "".join(answer[one.end() : other.start()] for one, other in pairwise(written))
    return text, text[: places[first]] + new + text[places[last] :]
