"""What later evaluations of an adapter found: files beside its own, which its manifest does not name.

In: a version's directory. Out: when, and the evidence as JSON types. Cost: reading some kilobytes for each evaluation.
"""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from mlx_gardener.platform.untrusted import read_json

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


def newest_evaluation(directory: Path) -> KeptEvaluation | None:
    """The newest of them; None where the version was not measured again since its training."""
    return next(reversed(kept_evaluations(directory)), None)


def _read(file: Path) -> KeptEvaluation | None:
    try:
        at = calendar.timegm(time.strptime(file.stem, STAMP))
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
