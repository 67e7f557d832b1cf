"""Whether a display is on, for people who want training to wait until nobody looks.

macOS is asked through ``pmset -g assertions``: its power daemon holds one named "Prevent sleep while display is on" as long
as one is lit, on Apple silicon too, where the driver that older Macs told it by (IODisplayWrangler) is gone. Linux says it per
connector in ``/sys/class/drm``; a machine without a graphics driver there tells nothing. Cost: a process of some
milliseconds on a Mac, some small files on Linux.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mlx_gardener.platform.power import pmset

_MAC_LIT = "Prevent sleep while display is on"
#: Held by programs that show something, such as a film: the display is on then whatever the daemon says.
_MAC_KEPT_ON = re.compile(r"^\s*PreventUserIdleDisplaySleep\s+1\s*$", re.MULTILINE)


def display_is_on(root: Path = Path("/")) -> bool | None:
    """Whether one is on now, None where the machine does not tell; ``root`` holds Linux's ``sys``."""
    if sys.platform == "darwin":
        return parse_assertions(pmset("assertions"))
    states = [
        (_read(connector / "status"), _read(connector / "dpms"))
        for connector in (root / "sys/class/drm").glob("card*-*")
    ]
    if not any(status for status, _ in states):
        return None
    return any(status == "connected" and power == "On" for status, power in states)


def parse_assertions(text: str) -> bool | None:
    """The state from ``pmset -g assertions``; None where that is not what it printed."""
    if "Assertion status system-wide" not in text:
        return None
    return _MAC_LIT in text or _MAC_KEPT_ON.search(text) is not None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""  # a connector that went away meanwhile
