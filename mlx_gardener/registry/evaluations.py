"""What later evaluations of an adapter found: files beside its own, which its manifest does not name.

In: a version's directory. Out: when, and the evidence as JSON types. Cost: reading some kilobytes for each evaluation.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from mlx_gardener.platform.untrusted import read_json
from mlx_gardener.registry.adapter_files import read_manifest_file

DIRECTORY = "evaluations"
#: An evaluation's file is named by when it was made, in UTC, so that names sort by time.
STAMP = "%Y-%m-%dT%H-%M-%SZ"
#: Lists in evidence, with what each of their items has.
_PARTS = {
    "arms": {"name", "metrics"},
    "files": {"path", "bytes", "base_bits_per_byte", "adapter_bits_per_byte"},
    "comparisons": {"arm", "against", "metric", "low", "high"},
}


@dataclass(frozen=True)
class KeptEvaluation:
    """Evidence (`Evidence.to_json`, without source) of an evaluation ``at`` seconds since the epoch."""

    at: float
    evidence: dict[str, Any]


def kept_evaluations(directory: Path) -> list[KeptEvaluation]:
    """The evaluations of the version in ``directory``, the newest last; what cannot be read decides nothing."""
    found = (_read(file) for file in sorted((directory / DIRECTORY).glob("*.json")))
    return [kept for kept in found if kept is not None]


def counting_evaluation(directory: Path) -> KeptEvaluation | None:
    """The one that is told of the version (`newest_that_counts`); None where the training's own evidence is."""
    kept = kept_evaluations(directory)
    if not kept:
        return None
    found = newest_that_counts([training_evidence(directory), *(item.evidence for item in kept)])
    return kept[found - 1] if found else None


def training_evidence(directory: Path) -> dict[str, Any]:
    """What the training of the version in ``directory`` found, by its manifest; empty where that says nothing of it."""
    try:
        found = read_manifest_file(directory)[1].get("evidence")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("arms") else {}


def newest_that_counts(evidence: Sequence[Mapping[str, Any]]) -> int:
    """The place of the last that measured at least half as many bytes of held-out source as any of them.

    What a short ``eval --timeout`` found on a few files does not hide what was measured on all.
    """
    sizes = [_measured_bytes(item) for item in evidence]
    return max(place for place, size in enumerate(sizes) if 2 * size >= max(sizes))


def _measured_bytes(evidence: Mapping[str, Any]) -> float:
    sizes = (file.get("bytes") for file in evidence.get("files") or ())
    return sum(size for size in sizes if isinstance(size, (int, float)))


def kept_at(file: Path) -> float:
    """When the evaluation in ``file`` was made, seconds since the epoch, by its name.

    Raises:
        ValueError: its name is none of an evaluation's.
    """
    return calendar.timegm(time.strptime(file.stem, STAMP))


def _read(file: Path) -> KeptEvaluation | None:
    try:
        at = kept_at(file)
        told = read_json(file, follow_links=False)
    except (OSError, ValueError):
        return None
    evidence = told.get("evidence") if isinstance(told, dict) else None
    return KeptEvaluation(at, evidence) if _is_evidence(evidence) else None


def _is_evidence(told: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it has what readers take for granted: parts that are what they are called, and figures that are numbers."""
    if not (isinstance(told, dict) and told.get("arms")):
        return False
    for name, needed in _PARTS.items():
        items = told.get(name)
        if not (
            isinstance(items, list)
            and all(isinstance(item, dict) and item.keys() >= needed for item in items)
        ):
            return False
    figures = [told.get("metrics"), *(arm["metrics"] for arm in told["arms"])]
    return all(isinstance(found, dict) and all(map(_is_figure, found.values())) for found in figures)


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))
