"""What later evaluations of an adapter found: files beside its own, which its manifest does not name.

In: a version's directory. Out: when, and the evidence as JSON types. Cost: reading some kilobytes for each evaluation.
"""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gardener.platform.untrusted import read_json

DIRECTORY = "evaluations"
#: An evaluation's file is named by when it was made, in UTC, so that names sort by time.
STAMP = "%Y-%m-%dT%H-%M-%SZ"


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
    return KeptEvaluation(at, evidence) if isinstance(evidence, dict) and evidence.get("arms") else None
