"""The wire between a run and whoever watches it: its events, one JSON object a line, in the run's directory.

A file and not a pipe: the worker never blocks on a reader, a watcher may come late, come from another process or
leave, and what happened stays readable after a crash. Cost: one short append per event, no fsync (the registry and
the checkpoints hold what must not be lost).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_gardener.events import Event, event_from_json
from mlx_gardener.platform.untrusted import parse_json

JOURNAL_NAME = "events.jsonl"


class JournalWriter:
    """An event subscriber that appends to a journal; the file is readable by its owner only.

    A line that an earlier writer was killed in is ended first, so that it spoils no other.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        size = os.fstat(descriptor).st_size
        is_whole = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        self._file = os.fdopen(descriptor, "a", encoding="utf-8")
        if not is_whole:
            self._file.write("\n")

    def __call__(self, event: Event) -> None:
        self._file.write(json.dumps(event.to_json(), ensure_ascii=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; later events raise ``ValueError``."""
        self._file.close()


def read_journal(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The whole events after byte ``offset``, and the offset to go on from.

    A line without its newline (being written, or cut off by a crash) is left for the next call; a line that is no
    event of this version is passed over, since the journal may come from another one.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    events = []
    for line in data[:end].splitlines():
        try:
            events.append(event_from_json(parse_json(line)))
        except ValueError:
            continue
    return events, offset + end


def follow_journal(
    path: Path, *, offset: int = 0, is_over: Callable[[], bool], poll_seconds: float = 0.05
) -> Iterator[Event]:
    """Events as they are written, until ``is_over()`` is true and everything written has been read."""
    while True:
        over = is_over()  # asked before reading, so that nothing written before the end is missed
        events, offset = read_journal(path, offset)
        yield from events
        if over:
            return
        if not events:
            time.sleep(poll_seconds)
