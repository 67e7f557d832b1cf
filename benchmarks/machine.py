"""The machine's description, as every result carries it, and the writing of results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from mlx_gardener.platform.device import device_facts

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system, versions, and how busy the machine was."""
    facts = device_facts()
    return {
        "chip": facts.chip,
        "cores": facts.cores,
        "memory_gib": round(facts.memory_bytes / 2**30, 1),
        "system": facts.system,
        "backend": facts.backend,
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "other_processes_cpu_percent": round(psutil.cpu_percent(interval=1.0), 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with minimum and maximum."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "rounds": len(values),
    }


def bar(measure: str, against: str, wanted: str, seen: str, met: bool | None) -> dict[str, Any]:
    """A row of the table of bars; ``met`` None where nothing decides."""
    return {"measure": measure, "against": against, "bar": wanted, "seen": seen, "met": met}


def save(name: str, result: dict[str, Any]) -> Path:
    """Write a result as JSON into ``benchmarks/results``."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path
