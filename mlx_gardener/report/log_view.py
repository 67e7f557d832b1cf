"""What a worker logged, for people and for machines: lines of ``worker.log`` in, lines to print out. Cost: nothing.

A line is ``2026-01-02 03:04:05,678 INFO mlx_gardener.runs.worker: ...``, where an event of the run follows as JSON, or whatever
else a library or the system wrote; that is shown as it is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mlx_gardener.events import (
    CheckpointWritten,
    DataPrepared,
    Evaluated,
    Event,
    PlanChosen,
    ProgressChanged,
    TimePlanned,
    TrainingEnded,
    WarningRaised,
    event_from_json,
)
from mlx_gardener.report.live import rows_line, validation_remark
from mlx_gardener.report.text import counted, edits_told, gigabytes, parent_told
from mlx_gardener.report.time_view import time_line

_LINE = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d),\d{3} ([A-Z]+) ([\w.]+): (.*)")


#: Progress that goes on counting the same thing: its first line is enough.
_COUNTS = re.compile(r"of it done|[\d,]+ of [\d,]+ MB")


class LogReader:
    """Makes a line for people of each line of a log; remembers the last one, since progress is told again and again."""

    def __init__(self) -> None:
        self._last = ""
        self._planned = False

    def __call__(self, line: str) -> str | None:
        """The line to show; None where it says nothing new."""
        found = _LINE.fullmatch(line)
        if found is None:
            return line
        _, clock, level, _, message = found.groups()
        event = _event(message)
        if event is None:
            told: str | None = message if level == "INFO" else f"{level}: {message}"
        else:
            told = _told(event, is_planned=self._planned)
            self._planned = self._planned or isinstance(event, PlanChosen)
        if told is None:
            return None
        kind = told
        if isinstance(event, ProgressChanged) and _COUNTS.search(told):
            kind = re.sub(r"[\d,.]+ ?(?:%|MB|GB|min|s|h)?", "", told)
        if kind == self._last:
            return None
        self._last = kind
        return f"{clock}  {told}"


def read_lines(log: Path, offset: int) -> tuple[str, int]:
    """The whole lines after byte ``offset``, and the offset to go on from."""
    if not log.exists():
        return "", offset
    with log.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return data[:end].decode(errors="replace"), offset + end


def log_json(line: str) -> dict[str, Any]:
    """A line as JSON types: an event as it was published, everything else as a ``Log``."""
    found = _LINE.fullmatch(line)
    if found is None:
        return {"event": "Log", "message": line}
    day, clock, level, logger, message = found.groups()
    event = _event(message)
    if event is not None:
        return event.to_json()
    return {"event": "Log", "time": f"{day}T{clock}", "level": level, "logger": logger, "message": message}


def _event(message: str) -> Event | None:
    if not message.startswith('{"event"'):
        return None
    try:
        return event_from_json(json.loads(message))
    except ValueError:  # of another version, or cut off: it is shown as it stands
        return None


def _told(event: Event, *, is_planned: bool) -> str | None:
    """An event in a line; None for those that another one tells as well. A plan after another one corrects it."""
    match event:
        case ProgressChanged():
            return f"{event.progress_percent:3.0f} %  {event.message}"
        case DataPrepared(summary):
            told = (
                f"Data: {counted(summary['chunks_kept'], 'chunk')} of {counted(summary['files_kept'], 'file')}, "
                f"{counted(summary['train_loss_tokens'], 'token')} to learn from{edits_told(summary)}"
            )
            return ". ".join(part for part in (told, parent_told(summary)) if part)
        case PlanChosen(plan):
            peak, budget = gigabytes(plan["predicted_peak_bytes"]), gigabytes(plan["budget_bytes"])
            what = "Plan corrected" if is_planned else "Plan"
            return f"{what}: {rows_line(plan['rows_of_width'])} at a time, a peak of about {peak} of {budget}"
        case TimePlanned(plan):
            return time_line(plan)
        case Evaluated():
            told = f"Validation at step {event.step}: {event.bits_per_byte:.4f} bits per byte"
            return told + validation_remark(event)
        case CheckpointWritten():
            return f"Checkpoint of step {event.step} written"
        case WarningRaised():
            return f"Warning: {event.message}"
        case TrainingEnded():
            version = event.result.get("adapter_version")
            return f"Training {event.phase.value}: {event.message}" + (f" ({version})" if version else "")
        case _:
            return None
