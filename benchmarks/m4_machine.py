"""The machine's description with what decides a Mac's speed: model, GPU cores, power, heat. Nothing that names its owner."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from typing import Any

from machine import describe

from mlx_gardener.platform.power import power_state
from mlx_gardener.platform.thermal import thermal_state


def machine_facts() -> dict[str, Any]:
    """`describe`, with what matters for speed on a Mac: model, GPU cores, power, heat."""
    power = power_state()
    facts = describe() | {
        "on_battery": power.on_battery,
        "low_power_mode": power.low_power_mode,
        "thermal_before": thermal_state(),
    }
    if sys.platform == "darwin":
        facts |= {"macos": platform.mac_ver()[0], "mac": _said("/usr/sbin/sysctl", "-n", "hw.model").strip()}
        facts["gpu_cores"] = gpu_cores(_said("/usr/sbin/system_profiler", "SPDisplaysDataType"))
    return facts


def gpu_cores(text: str) -> int | None:
    """The number that ``system_profiler SPDisplaysDataType`` tells on Apple silicon."""
    found = re.search(r"Total Number of Cores: (\d+)", text)
    return int(found[1]) if found else None


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
