"""A run as the page shows it: where it stands, its charts, what was said of it, and its worker's log.

In: the run's journal and log, read on from where the last look ended, and its row. Out: what has changed since. The charts are the
report's. Of a long run as many points are kept as a chart draws. Cost: of a look without news, two reads of nothing.
"""

from __future__ import annotations

import time
from typing import Any

from mlx_gardener.events import (
    DataPrepared,
    Evaluated,
    Event,
    MemoryMeasured,
    PlanChosen,
    StepCompleted,
    TimePlanned,
    WarningRaised,
)
from mlx_gardener.platform.sizes import GIB
from mlx_gardener.registry import TrainingRecord
from mlx_gardener.report.html import memory_chart
from mlx_gardener.report.live import PHASES, RunSoFar
from mlx_gardener.report.log_view import LogReader, read_lines
from mlx_gardener.report.svg import loss_chart
from mlx_gardener.report.time_view import time_line
from mlx_gardener.runs.job import LOG_NAME
from mlx_gardener.runs.journal import JOURNAL_NAME, read_journal
from mlx_gardener.ui.answers import picture

_MOST_POINTS = 400
_MOST_LINES, _MOST_WARNINGS = 300, 20


class Watched:
    """What was read of a training's run so far; an earlier training in the same directory belongs to its picture."""

    def __init__(self, record: TrainingRecord) -> None:
        self.training_id = record.id
        self._journal, self._log = record.run_dir / JOURNAL_NAME, record.run_dir / LOG_NAME
        self._journal_offset = self._log_offset = 0
        self._reader = LogReader()
        self._run = RunSoFar()
        self._losses: dict[int, float] = {}
        self._last_step = 0
        self._validation: dict[int, float] = {}
        self._memory: list[MemoryMeasured] = []
        self._first_step: StepCompleted | None = None
        self._plan: dict[str, Any] = {}
        self._time = ""
        self._warnings: list[str] = []
        self._updated_at = 0.0
        self._first = True

    def look(self, record: TrainingRecord) -> dict[str, Any]:
        """What is new, by name of event: ``training``, ``charts``, ``log``; nothing where nothing is."""
        events, self._journal_offset = read_journal(self._journal, self._journal_offset)
        for event in events:
            self._take(event)
        told: dict[str, Any] = {}
        if self._first or events or record.updated_at != self._updated_at:
            told["training"] = self._training(record)
        if self._first or any(
            isinstance(event, StepCompleted | Evaluated | MemoryMeasured) for event in events
        ):
            told["charts"] = self._charts()
        text, self._log_offset = read_lines(self._log, self._log_offset)
        lines = [line for raw in text.splitlines() if (line := self._reader(raw)) is not None]
        if lines or self._first:
            told["log"] = {"from_start": self._first, "lines": lines[-_MOST_LINES:]}
        self._first, self._updated_at = False, record.updated_at
        return told

    def _take(self, event: Event) -> None:
        self._run.take(event)
        self._run.losses.clear()  # kept here by update, as a run that goes on does some of them again
        if isinstance(event, StepCompleted):
            self._first_step = self._first_step or event
            if event.step <= self._last_step:  # it went on from a checkpoint before these
                self._losses = {step: loss for step, loss in self._losses.items() if step < event.step}
            self._last_step = event.step
            self._losses[event.step] = event.loss
        elif isinstance(event, Evaluated):
            self._validation = {step: loss for step, loss in self._validation.items() if step < event.step}
            self._validation[event.step] = event.loss
        elif isinstance(event, MemoryMeasured):
            self._memory.append(event)
            if len(self._memory) > 2 * _MOST_POINTS:
                del self._memory[1::2]
        elif isinstance(event, PlanChosen):
            self._plan = event.plan
        elif isinstance(event, TimePlanned):
            self._time = time_line(event.plan)
        elif isinstance(event, DataPrepared):
            self._warnings = []  # of an earlier start
        elif isinstance(event, WarningRaised) and event.message not in self._warnings:
            self._warnings = [*self._warnings, event.message][-_MOST_WARNINGS:]

    def _training(self, record: TrainingRecord) -> dict[str, Any]:
        now, step, run = time.time(), self._run.step, self._run
        is_live = record.status.is_live
        memory = self._memory[-1] if self._memory else None
        return {
            "id": record.id,
            "status": record.status.value,
            "phase": PHASES.get(record.phase, record.phase.value),
            "percent": record.percent,
            "message": record.message + (run.part_left_text(now) if is_live else ""),
            "error": None if record.error is None else record.error.to_json(),
            "version": record.result.get("adapter_version"),
            "started_at": record.started_at,
            "seconds": (record.finished_at or now) - record.started_at,
            "step": None if step is None else step.step,
            "total_steps": None if step is None else step.total_steps,
            "loss": None if step is None else step.loss,
            "tokens_per_second": None if step is None else step.tokens_per_second,
            "left_seconds": run.training_left(now) if is_live else None,
            "bits_per_byte": None if run.evaluation is None else run.evaluation.bits_per_byte,
            "footprint_bytes": None if memory is None else memory.footprint_bytes,
            "peak_bytes": None if step is None else step.peak_bytes,
            "budget_bytes": int(record.config.get("memory_limit_gb", 0) * GIB),
            "model": record.config["model"],
            "time": self._time,
            "warnings": self._warnings,
        }

    def _charts(self) -> dict[str, dict[str, str]]:
        """The report's charts of losses and memory; "" where there is nothing to draw yet."""
        losses = [self._losses[step] for step in sorted(self._losses)]
        every = 1 + len(losses) // _MOST_POINTS
        thinned = [
            sum(losses[at : at + every]) / len(losses[at : at + every]) for at in range(0, len(losses), every)
        ]
        validation = [{"step": step, "loss": loss} for step, loss in sorted(self._validation.items())]
        loss = loss_chart({"train_losses": thinned, "updates_per_loss": every, "validation": validation})
        first = [] if self._first_step is None else [self._first_step]
        memory = memory_chart([*first, *self._memory], self._plan)
        return {"loss": picture(loss), "memory": picture(memory)}
