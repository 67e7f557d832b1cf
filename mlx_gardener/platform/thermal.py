"""How hot the machine is, in the four words of Apple's ``ProcessInfo.ThermalState``.

macOS is asked through notify(3)'s ``com.apple.system.thermalpressurelevel``: two C calls that need neither root, nor
Foundation, nor a run loop, and that read the state of this moment. ``NSProcessInfo.thermalState`` needs the Objective-C
runtime and calls both "moderate" and "heavy" *fair* on Apple silicon, though only heavy is throttling as users feel it
(measured by MacThrottle's author: stanislas.blog/2025/12/macos-thermal-throttling-app).
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

ThermalState = Literal["nominal", "fair", "serious", "critical"]

_STATES: tuple[ThermalState, ...] = ("nominal", "fair", "serious", "critical")
_MAC_KEY = "com.apple.system.thermalpressurelevel"
#: ``OSThermalPressureLevel`` of macOS's <libkern/OSThermalNotification.h>: nominal, moderate, heavy, trapping, sleeping.
_MAC_LEVELS: tuple[ThermalState, ...] = ("nominal", "fair", "serious", "critical", "critical")
#: Millidegrees below a trip point that count as near it (judgement): training can hold back before the kernel does.
NEAR_MILLIDEGREES = 5000


def thermal_state(root: Path = Path("/")) -> ThermalState | None:
    """The state now, None where the machine does not tell; ``root`` holds Linux's ``sys``."""
    if sys.platform == "darwin":
        return mac_state(notify_state(_MAC_KEY))
    zones = (zone_state(*_zone(path)) for path in (root / "sys/class/thermal").glob("thermal_zone*"))
    return max((state for state in zones if state), key=_STATES.index, default=None)


def mac_state(level: int | None) -> ThermalState | None:
    """The state behind a thermal pressure level; None for a level that macOS does not have today."""
    return _MAC_LEVELS[level] if level is not None and 0 <= level < len(_MAC_LEVELS) else None


def notify_state(name: str, library: Any = None) -> int | None:
    """The number published under a notify(3) key of macOS, 0 for one never set; None where it cannot be read."""
    token, state = ctypes.c_int(0), ctypes.c_uint64(0)
    try:
        system = library or ctypes.CDLL(None)
        if system.notify_register_check(name.encode(), ctypes.byref(token)) != 0:
            return None
        failed = system.notify_get_state(token, ctypes.byref(state))
        system.notify_cancel(token)
    except (AttributeError, OSError):
        return None
    return None if failed else state.value


def zone_state(millidegrees: int | None, trips: Iterable[tuple[str, int]]) -> ThermalState | None:
    """The state of one Linux thermal zone from its (type, millidegrees) trip points; None where these say nothing.

    The kernel throttles from "passive" on, warns at "hot" and switches off at "critical": being near that is critical here.
    "active" ones start fans, which is no reason to hold back. Firmware marks unused points with 0 or less.
    """
    if millidegrees is None:
        return None
    state: ThermalState | None = None
    for kind, trip in trips:
        if trip <= 0 or kind not in ("passive", "hot", "critical"):
            continue
        reached: ThermalState = "nominal"
        if kind == "passive":
            near = millidegrees >= trip - NEAR_MILLIDEGREES
            reached = "serious" if millidegrees >= trip else "fair" if near else "nominal"
        elif millidegrees >= trip - (NEAR_MILLIDEGREES if kind == "critical" else 0):
            reached = "critical"
        state = reached if state is None else max(state, reached, key=_STATES.index)
    return state


def _zone(path: Path) -> tuple[int | None, list[tuple[str, int]]]:
    trips = []
    for kind in path.glob("trip_point_*_type"):
        temperature = _number(kind.with_name(kind.name.removesuffix("type") + "temp"))
        if temperature is not None:
            trips.append((_read(kind), temperature))
    return _number(path / "temp"), trips


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _read(path: Path) -> str:
    """The file's text; empty where it is missing or the sensor sleeps (EAGAIN, EINVAL, ENODATA)."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
