"""The page's trainings: planned, started, queued, stopped, gone on with, and watched, whoever started them.

In: a project and settings as `mlx-gardener train` takes them. Out: plans, and a stream of server-sent events that begins with
how the run stands, so that a page that is loaded again, or opened in the middle, shows the same. Cost: a plan reads the heads of
the base's files and counts twenty files' tokens; a stream reads the run's journal some times a second.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mlx_gardener.config import GIB, TrainingConfig, load_config, parse_value
from mlx_gardener.dataset.prepare import check_enough
from mlx_gardener.engine import prepare_model
from mlx_gardener.errors import ConfigError, DataError, MemoryBudgetError
from mlx_gardener.platform.files import existing_directory
from mlx_gardener.platform.power import power_state
from mlx_gardener.registry import ProjectRegistry, TrainingRecord, TrainingStatus
from mlx_gardener.registry.names import has_checkpoint
from mlx_gardener.report.html import memory_parts
from mlx_gardener.report.plan_view import PART_COLOURS, PARTS, plan_cells, rows_text
from mlx_gardener.report.recipe import all_settings
from mlx_gardener.report.story import as_sentence
from mlx_gardener.report.time_view import time_text
from mlx_gardener.runs.forecast import estimate_training
from mlx_gardener.runs.manager import TrainingPipeline
from mlx_gardener.runs.parent import without_forgotten
from mlx_gardener.runs.queue_start import is_running, queued, take_out
from mlx_gardener.runs.ranks import check_hosts
from mlx_gardener.serve.bodies import Body
from mlx_gardener.ui.answers import Handlers, as_json, changing, looking
from mlx_gardener.ui.scanning import Scans
from mlx_gardener.ui.watching import Watched

#: Seconds between two looks at a run, and without a word until a comment says that the stream lives.
_LOOK_SECONDS, _SILENT_SECONDS = 0.5, 15.0
#: Settings that have a field of their own on the page.
_FIELDS = {
    "model": "model",
    "memory_limit_gb": "budget",
    "training_timeout_minutes": "timeout",
    "optimizer.epochs": "epochs",
    "throttling.pause_on": "pause_on",
}
#: What is decided anew for every training.
_OF_ONE_RUN = ("continue_from", "parallel.")


class ProjectBody(Body):
    """A project."""

    project: str


class SettingsBody(ProjectBody):
    """A project with the settings of a training; ``more`` are lines of KEY=VALUE, as of ``--set``."""

    model: str | None = None
    budget: float | None = None
    timeout: float | None = None
    epochs: float | None = None
    pause_on: list[str] | None = None
    more: str = ""
    fresh: bool = False

    def config(self) -> TrainingConfig:
        """The settings as a training has them.

        Raises:
            ConfigError: a line is no KEY=VALUE, or a setting is unknown or impossible.
        """
        overrides: dict[str, Any] = {
            "model": (self.model or "").strip() or None,
            "memory_limit_gb": self.budget,
            "training_timeout_minutes": self.timeout,
            "optimizer.epochs": self.epochs,
            "throttling.pause_on": self.pause_on,
        }
        for line in filter(None, map(str.strip, self.more.splitlines())):
            key, found, text = line.partition("=")
            if not found:
                raise ConfigError(f"{line!r} is not KEY=VALUE.", next_step="Write one setting in a line.")
            overrides[key.strip()] = parse_value(text.strip())
        return load_config(overrides=overrides)


class Trainings:
    """Handlers over the registry; every training is a process of its own, and goes on when the server ends."""

    def __init__(self, registry: ProjectRegistry, scans: Scans) -> None:
        self._registry = registry
        self._scans = scans
        self._ending = threading.Event()

    def end(self) -> None:
        """End all streams."""
        self._ending.set()

    def handlers(self) -> Handlers:
        """By path."""
        return {
            "projects/{project}/settings": looking(self.settings),
            "projects/{project}/training": ("GET", self.watch),
            "bases": looking(self.bases),
            "plan": changing(SettingsBody, self.plan),
            "train": changing(SettingsBody, self.start),
            "cancel": changing(ProjectBody, self.cancel),
            "resume": changing(ProjectBody, self.resume),
            "queue": looking(self.queue),
            "queue/remove": changing(ProjectBody, self.take_out),
        }

    # Before a training.

    def settings(self, project: str) -> dict[str, Any]:
        """What the form begins with: the settings of the last training, else the defaults; and what this machine has."""
        config = self._scans.settings_of(project)
        values = {
            name: value for name, value, _ in all_settings(config.model_dump(mode="json"), config.model)
        }
        more = [
            f"{name}={value}"
            for name, value, is_other in all_settings(config.model_dump(mode="json"), config.model)
            if is_other and name not in _FIELDS and value != "null" and not name.startswith(_OF_ONE_RUN)
            and not (name == "data.exclude" and self._registry.forgotten_paths(project))
        ]  # fmt: skip
        return {
            **{field: json.loads(values[name]) for name, field in _FIELDS.items()},
            "more": "\n".join(more),
            "memory_gb": psutil.virtual_memory().total / GIB,
            "on_battery": power_state().on_battery,
        }

    def bases(self) -> dict[str, Any]:
        """Names of base models on this machine that can be trained on."""
        from mlx_gardener.engine.bases import list_bases

        found = [base for base in list_bases(load_config()) if base.why_not is None]
        return {"bases": ["auto", *dict.fromkeys(base.name for base in found)]}

    def plan(self, body: SettingsBody) -> dict[str, Any]:
        """What the budget would be used for and how long the training would take; why not, where it would be refused."""
        root = existing_directory(self._registry.get_project(body.project).path)
        config = self._with_left_out(body)
        check_hosts(config.parallel)
        found = self._scans.of(root, config)
        prepared = prepare_model(config, self._registry.home / "cache", ahead=True)
        told: dict[str, Any] = {
            "model": prepared.choice.name,
            "reason": prepared.choice.reason,
            "passed_over": list(prepared.choice.passed_over),
            "budget_bytes": config.memory_limit_bytes,
            "others": [
                {"budget_bytes": budget, "cells": None if plan is None else plan_cells(plan)}
                for budget, plan in prepared.other_plans(config)
            ],
        }
        try:
            plan = prepared.plan(config)
            estimate = estimate_training(found, config, prepared)
        except MemoryBudgetError as error:
            return {**told, "refusal": error.to_json()}
        refusal = None
        try:
            check_enough(found, config)
        except DataError as error:
            refusal = error.to_json()
        parts = [
            {"title": PARTS[name], "bytes": size, "colour": PART_COLOURS[name]}
            for name, size in plan.to_json()["predicted_parts"].items()
            if size
        ]
        left = memory_parts(plan.to_json())[-1:]
        return {
            **told,
            "refusal": refusal,
            "parts": parts,
            "left_bytes": left[0]["bytes"] if left else 0,
            "peak_bytes": plan.predicted_peak_bytes,
            "rows": rows_text(plan),
            "cells": plan_cells(plan),
            "notes": [as_sentence(note) for note in plan.notes],
            "time": time_text(estimate),
            "minutes": min(estimate["minutes"], config.training_timeout_minutes or estimate["minutes"]),
            "tokens_per_second": plan.predicted_tokens_per_second,
        }

    def _with_left_out(self, body: SettingsBody) -> TrainingConfig:
        return without_forgotten(body.config(), self._registry, body.project)

    # A training.

    def start(self, body: SettingsBody) -> dict[str, Any]:
        """As `mlx-gardener train --detach`."""
        pipeline = TrainingPipeline(body.config(), registry=self._registry)
        goes_on = not body.fresh and pipeline.unfinished_training(body.project) is not None
        pipeline.start_training(body.project, fresh=body.fresh)
        return {"goes_on": goes_on}

    def cancel(self, body: ProjectBody) -> dict[str, Any]:
        """As `mlx-gardener cancel`, without waiting for the end: the stream tells it."""
        return {"stops": TrainingPipeline(registry=self._registry).cancel_training(body.project)}

    def resume(self, body: ProjectBody) -> dict[str, Any]:
        """As `mlx-gardener train --resume --detach`, with the time limit that the training had."""
        last = self._registry.latest_training(body.project)
        limit = (
            {} if last is None else {"training_timeout_minutes": last.config.get("training_timeout_minutes")}
        )
        pipeline = TrainingPipeline(load_config(overrides=limit), registry=self._registry)
        return {"training": pipeline.resume_training(body.project)}

    # What waits.

    def queue(self) -> dict[str, Any]:
        """As `mlx-gardener queue list`."""
        return {"runs": is_running(self._registry), "queue": queued(self._registry)}

    def take_out(self, body: ProjectBody) -> dict[str, Any]:
        """As `mlx-gardener queue remove`."""
        take_out(self._registry, body.project)
        return {"told": f"{body.project} is out of the queue."}

    async def watch(self, request: Request) -> Response:
        """How the project's latest training stands, as often as that changes, for as long as the page looks on."""
        project = request.path_params["project"]
        await asyncio.to_thread(
            self._registry.get_project, project
        )  # an unknown name is an error, not a stream
        return StreamingResponse(self._events(project), media_type="text/event-stream")

    async def _events(self, project: str) -> AsyncIterator[str]:
        watched: Watched | None = None
        told: dict[str, Any]
        told_at = 0.0
        while not self._ending.is_set():
            record = await asyncio.to_thread(self._registry.latest_training, project)
            if record is None:
                told = {"training": {"status": "not_started"}} if told_at == 0.0 else {}
            else:
                if watched is None or watched.training_id != record.id:
                    watched = Watched(record)
                told = await asyncio.to_thread(watched.look, record)
                if "training" in told:
                    told["training"]["can_resume"] = _can_resume(record)
            for name, content in told.items():
                yield f"event: {name}\ndata: {json.dumps(as_json(content))}\n\n"
            if told:
                told_at = time.monotonic()
            elif time.monotonic() - told_at > _SILENT_SECONDS:
                told_at = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(_LOOK_SECONDS)


def _can_resume(record: TrainingRecord) -> bool:
    return record.status in (TrainingStatus.FAILED, TrainingStatus.CANCELLED) and has_checkpoint(
        record.run_dir
    )
