"""Sides as processes within a time limit: what each reported, or how it failed, and what still fits the time left.

A side is a script that prints one line of JSON at its end and a line to stderr for each step. It is watched while it
runs: its footprint is sampled, so that the peak of one that the system kills is known, and at its limit it is ended.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mlx_lm_side import is_memory_error

from mlx_gardener.platform.footprint import process_footprint_bytes
from mlx_gardener.report.text import duration, safe_text

#: A side may take so many times its share of the time, as one step of a large model may; and at least so long.
PATIENCE, LEAST_LIMIT_SECONDS = 3.0, 60.0
#: Kept for ending a process and writing the result.
MARGIN_SECONDS = 5.0
ERROR_CHARACTERS = 300


@dataclass
class TimePlan:
    """What is left of a time limit, and what each cell, (model, side), was seen to need at least.

    Attributes:
        end: on `time.monotonic`'s clock.
        least_seconds: start, and the longest step, of a cell.
        taken_seconds: all of the last run of a cell.
    """

    end: float
    least_seconds: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    taken_seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds."""
        return self.end - MARGIN_SECONDS - time.monotonic()

    def limit(self, share: float) -> float:
        """Seconds after which a cell with this share is ended."""
        return min(self.left(), max(LEAST_LIMIT_SECONDS, PATIENCE * share))

    def learn(self, cell: tuple[str, str], report: dict[str, Any]) -> None:
        """Remember what a cell took."""
        steps = report.get("seconds") or [0.0]
        self.least_seconds[cell] = max(0.0, report["wall_seconds"] - sum(steps)), max(steps)
        self.taken_seconds[cell] = report["wall_seconds"]

    def expected_least(self, model: str, sides: Sequence[str], sizes: dict[str, int]) -> float:
        """Seconds for a step of all ``sides`` of a model: as seen, else as of the largest one seen.

        A step is taken to grow with ``sizes``, bytes of the models' weights, and the start not to. 0 where nothing was
        seen yet.
        """
        total = 0.0
        for side in sides:
            seen = {name for name, its_side in self.least_seconds if its_side == side}
            if model in seen:
                total += sum(self.least_seconds[model, side])
            elif seen:
                nearest = max(seen, key=lambda name: sizes[name])
                start, step = self.least_seconds[nearest, side]
                total += start + step * max(1.0, sizes[model] / max(1, sizes[nearest]))
        return total

    def forecast(self, cells: Sequence[tuple[str, str]]) -> float:
        """Seconds that ``cells`` will take, as they took last time; all that is left where one was never seen."""
        if any(cell not in self.taken_seconds for cell in cells):
            return max(0.0, self.left())
        return max(0.0, min(self.left(), sum(self.taken_seconds[cell] for cell in cells)))


def run_side(
    command: list[str], *, limit: float, on_step: Callable[[str], None], cut_short: bool = False
) -> dict[str, Any]:
    """What the side reported; ``failed``, a sentence, and ``out_of_memory`` where it did not come to its end.

    Args:
        limit: seconds after which it is ended.
        on_step: told every line that begins with "step".
        cut_short: whether ``limit`` is the end of all; then being ended is ``unfinished`` and no failure.
    """
    started, last_words, peak = time.monotonic(), deque[str](maxlen=60), 0
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    said: list[str] = []

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            last_words.append(line)
            if line.startswith("step "):
                on_step(line.strip())

    def collect() -> None:
        assert process.stdout is not None
        said.extend(process.stdout)

    readers = [threading.Thread(target=reader, daemon=True) for reader in (listen, collect)]
    for reader in readers:
        reader.start()
    ended_here = False
    try:
        while process.poll() is None:
            with suppress(psutil.Error):  # it may end between the two looks
                peak = max(peak, process_footprint_bytes(process.pid))
            if time.monotonic() - started > limit:
                process.kill()
                ended_here = True
                process.wait()
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            process.kill()
    for reader in readers:
        reader.join(timeout=5)
    report: dict[str, Any] = {"wall_seconds": time.monotonic() - started, "measured_peak_bytes": peak}
    if ended_here:
        word = "unfinished" if cut_short else "failed"
        report[word] = "the time was up" if cut_short else f"ended after {duration(limit)} without a result"
        return report
    try:
        report |= json.loads(said[-1])
    except (IndexError, ValueError):
        report["failed"] = how_it_ended(process.returncode, last_words)
        report["out_of_memory"] = process.returncode == -signal.SIGKILL or is_memory_error(report["failed"])
        return report
    if "refused" in report:
        report["failed"] = shown_error(report["refused"])
    if "out_of_memory" in report:
        report["failed"] = shown_error(report["out_of_memory"])
        report["out_of_memory"] = True
    return report


def how_it_ended(returncode: int, last_words: Sequence[str]) -> str:
    """In a sentence: the signal, if one, and the line that names memory, else the last one."""
    lines = [line.strip() for line in last_words if line.strip()]
    telling = [line for line in lines if is_memory_error(line)] or lines or ["it said nothing"]
    words = shown_error(telling[-1])
    if returncode == -signal.SIGKILL:
        return f"killed by the system, as when memory runs out; its last line: {words}"
    if returncode < 0:
        return f"ended by {signal.Signals(-returncode).name}: {words}"
    return words


def shown_error(text: str) -> str:
    """An error's text for a file that others read: one line, not long, and without directories of this machine."""
    line = safe_text(" ".join(text.split()))
    line = re.sub(r"(?:~|[A-Za-z]:)?(?:/[\w.+@ -]+)+/(?=[\w.+-])", "", line)
    return line.replace(str(Path.home()), "~")[:ERROR_CHARACTERS]
