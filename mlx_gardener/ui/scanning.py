"""What a training would read of a project, folder by folder, what is left out and why, and folders left out by hand.

In: a project. Out: counts by folder and language. A folder that is left out is written to the project, as `mlx-gardener
forget` does but without training: no training and no answer reads it from then on. Cost: a scan, which is kept for a
minute, since the plan of a training asks for it with every move of a slider.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_gardener.config import TrainingConfig, load_config, validate_config
from mlx_gardener.dataset.prepare import check_enough
from mlx_gardener.errors import DataError
from mlx_gardener.lifecycle.forgetting import clean_path
from mlx_gardener.platform.files import existing_directory
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.report.scan_view import RULES
from mlx_gardener.runs.parent import exclude_pattern, without_forgotten
from mlx_gardener.serve.bodies import Body
from mlx_gardener.source import Scan, scan_repository
from mlx_gardener.ui.answers import Handlers, changing, looking

_KEPT, _KEPT_SECONDS = 4, 60.0
#: Folders and places that are told; a repository may have a hundred thousand.
_MOST_FOLDERS, _MOST_SECRETS = 500, 200


class LeaveOutBody(Body):
    """A folder or file of a project's repository that is left out, or (``leave_out`` false) read again."""

    project: str
    path: str
    leave_out: bool = True


class Scans:
    """Scans of projects' repositories, the last few kept for a while."""

    def __init__(self, registry: ProjectRegistry) -> None:
        self._registry = registry
        self._kept: OrderedDict[str, tuple[float, Scan]] = OrderedDict()
        self._lock = threading.Lock()

    def handlers(self) -> Handlers:
        """By path."""
        return {
            "projects/{project}/scan": looking(self.scan),
            "leave-out": changing(LeaveOutBody, self.leave_out),
        }

    def settings_of(self, project: str) -> TrainingConfig:
        """The settings of the project's last training, else the defaults, with what it leaves out now.

        Raises:
            RegistryError: there is no such project.
        """
        self._registry.get_project(project)
        latest = self._registry.latest_training(project)
        config = load_config() if latest is None else validate_config(latest.config)
        # What was left out then and is read again stands in that training's settings still.
        own = tuple(pattern for pattern in config.data.exclude if not _is_of_a_path(pattern))
        config = config.model_copy(update={"data": config.data.model_copy(update={"exclude": own})})
        return without_forgotten(config, self._registry, project)

    def of(self, root: Path, config: TrainingConfig) -> Scan:
        """The scan of a repository with these settings, not older than a minute."""
        key = f"{root}\0{config.data.model_dump_json()}\0{config.training_data_quality_threshold}"
        with self._lock:  # one at a time: a slider asks for the same again before the first one is done
            at, found = self._kept.get(key, (0.0, None))
            if found is None or time.monotonic() - at > _KEPT_SECONDS:
                found = scan_repository(
                    root, config.data, quality_threshold=config.training_data_quality_threshold
                )
                self._kept[key] = (time.monotonic(), found)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return found

    def scan(self, project: str) -> dict[str, Any]:
        """What would be read of a project's repository, and what not."""
        root = existing_directory(self._registry.get_project(project).path)
        config = self.settings_of(project)
        found = self.of(root, config)
        refusal = None
        try:
            check_enough(found, config)
        except DataError as error:
            refusal = error.to_json()
        dropped = [
            {"rule": rule, "title": RULES.get(rule, rule.replace("_", " ")), **asdict(item)}
            for rule, item in sorted(found.dropped.items(), key=lambda pair: -pair[1].bytes)
        ]
        told = found.to_json()
        folders = folders_of(found)
        return {
            **told,
            "dropped": dropped,
            "secrets": told["secrets"][:_MOST_SECRETS],
            "secrets_found": len(told["secrets"]),
            "folders": folders[:_MOST_FOLDERS],
            "folders_found": len(folders),
            "left_out": self._registry.forgotten_paths(project),
            "refusal": refusal,
        }

    def leave_out(self, body: LeaveOutBody) -> dict[str, Any]:
        """Write to the project that a path is not to be read, or that it is again."""
        path = clean_path(self._registry.get_project(body.project).path, body.path)
        if body.leave_out:
            self._registry.forget_path(body.project, path)
        elif not self._registry.remember_path(body.project, path):
            raise DataError(f"{path!r} was not left out of {body.project!r}.")
        return {"left_out": self._registry.forgotten_paths(body.project)}


def _is_of_a_path(pattern: str) -> bool:
    """Whether a pattern is one that leaving a path out writes."""
    return exclude_pattern(re.sub(r"\\(.)", r"\1", pattern[1:])) == pattern


def folders_of(found: Scan) -> list[dict[str, Any]]:
    """Every folder that something is read of, with what is read in it and below, in the order of a tree; "" is all."""
    folders: dict[str, dict[str, Any]] = {}
    for record in found.files:
        size = sum(chunk.end_byte - chunk.start_byte for chunk in record.chunks)
        above = [
            "" if place == PurePosixPath(".") else str(place) for place in PurePosixPath(record.path).parents
        ]
        for place in above:
            counts = folders.setdefault(
                place, {"path": place, "files": 0, "chunks": 0, "bytes": 0, "languages": {}}
            )
            counts["files"] += 1
            counts["chunks"] += len(record.chunks)
            counts["bytes"] += size
            counts["languages"][record.language] = counts["languages"].get(record.language, 0) + size
    return [folders[place] for place in sorted(folders, key=lambda place: PurePosixPath(place).parts)]
