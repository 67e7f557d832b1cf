"""Whether the machine runs on battery; for people who want training to wait for the plug."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class PowerState:
    """``on_battery`` is None for machines without one."""

    on_battery: bool | None


def power_state() -> PowerState:
    """The power state now."""
    if sys.platform == "darwin":
        done = subprocess.run(
            ("/usr/bin/pmset", "-g", "ps"), capture_output=True, text=True, timeout=5, check=False
        )
        return parse_pmset(done.stdout)
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return PowerState(None if battery is None else not battery.power_plugged)


def parse_pmset(text: str) -> PowerState:
    """The state from ``pmset -g ps``; a Mac without a battery lists no InternalBattery."""
    if "InternalBattery" not in text:
        return PowerState(None)
    return PowerState("'Battery Power'" in text)
