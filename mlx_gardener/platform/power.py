"""Whether the machine runs on battery or saves power; for people who want training to wait for the plug.

In: what the system says, macOS by ``pmset``, Linux by psutil. Out: `PowerState`, for `doctor` and for `throttling.pause_on`.
Cost: two processes of some milliseconds on macOS, a read of some small files on Linux.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class PowerState:
    """``on_battery`` is None for machines without one, ``low_power_mode`` for those that do not tell (Linux)."""

    on_battery: bool | None
    low_power_mode: bool | None = None


def power_state() -> PowerState:
    """The power state now."""
    if sys.platform == "darwin":
        return PowerState(parse_pmset(pmset("ps")).on_battery, parse_low_power_mode(pmset("live")))
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return PowerState(None if battery is None else not battery.power_plugged)


def parse_pmset(text: str) -> PowerState:
    """The state from ``pmset -g ps``; a Mac without a battery lists no InternalBattery."""
    if "InternalBattery" not in text:
        return PowerState(None)
    return PowerState("'Battery Power'" in text)


def parse_low_power_mode(text: str) -> bool | None:
    """Whether ``pmset -g live`` says Low Power Mode; None for Macs that have none.

    It is called ``lowpowermode`` (0, 1) or ``powermode`` (0 automatic, 1 low, 2 high), by model and macOS version.
    """
    modes = re.findall(r"^\s*(?:low)?powermode\s+(\d+)\s*$", text, flags=re.MULTILINE)
    return "1" in modes if modes else None


def pmset(what: str) -> str:
    """What macOS's ``pmset -g`` prints of something.

    Raises:
        OSError, subprocess.TimeoutExpired: it cannot be run, or takes over 5 seconds.
    """
    command = ("/usr/bin/pmset", "-g", what)
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
