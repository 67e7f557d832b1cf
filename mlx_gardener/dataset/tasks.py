"""Next-line tasks: everything up to a line is shown, the line is asked for."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_gardener.dataset.examples import Segment

#: Nothing is learned from lines that anybody would guess: blanks, braces, imports, three characters.
_TRIVIAL = re.compile(
    r"[\s{}()\[\];,:]*|\s*(import|from|use|using|package|#include|require)\b.*|\s*(#|//|\*|/\*).*"
)
_LEAST_CONTEXT_LINES = 3


@dataclass(frozen=True)
class NextLineTask:
    """A place in a held-out file: ``prefix`` ends right before the line, ``target`` is the line without its newline."""

    path: str
    line: int
    prefix: str
    target: str


def next_line_tasks(segments: Sequence[Segment], count: int, *, seed: int) -> list[NextLineTask]:
    """``count`` tasks drawn without repeats from held-out segments; fewer when there are not as many."""
    places = []
    for segment in segments:
        lines = segment.text.splitlines()
        for number, line in enumerate(lines):
            if number >= _LEAST_CONTEXT_LINES and len(line.strip()) >= 4 and not _TRIVIAL.fullmatch(line):
                places.append((segment, number))
    chosen = random.Random(seed).sample(places, min(count, len(places)))
    tasks = []
    for segment, number in chosen:
        lines = segment.text.splitlines(keepends=True)
        tasks.append(
            NextLineTask(segment.path, number + 1, "".join(lines[:number]), lines[number].rstrip("\r\n"))
        )
    return tasks
