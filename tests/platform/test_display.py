"""Whether a display is on, from what Macs print and from Linux's sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.platform import display
from mlx_gardener.platform.display import display_is_on, parse_assertions

#: A Mac in use, in November 2025 (jbranchaud/til, mac/inspect-assertions-preventing-sleep.md), shortened.
LIT = """\
2025-11-02 13:20:57 -0600
Assertion status system-wide:
   BackgroundTask                 0
   ApplePushServiceTask           0
   UserIsActive                   1
   PreventUserIdleDisplaySleep    0
   PreventSystemSleep             0
   ExternalMedia                  0
   PreventUserIdleSystemSleep     1
   NetworkClientActive            0
Listed by owning process:
   pid 98217(caffeinate): [0x00045477000194b3] 00:00:03 PreventUserIdleSystemSleep named: "caffeinate command-line tool"
   pid 80(powerd): [0x00044f2f00019216] 00:22:34 PreventUserIdleSystemSleep named: "Powerd - Prevent sleep while display is on"
"""
#: The same without what its daemon holds while a display is lit: the lid is closed, caffeinate keeps it awake.
DARK = "".join(line for line in LIT.splitlines(keepends=True) if "powerd" not in line)
FILM = DARK.replace("PreventUserIdleDisplaySleep    0", "PreventUserIdleDisplaySleep    1")


@pytest.mark.parametrize(
    ("text", "on"), [(LIT, True), (DARK, False), (FILM, True), ("", None), ("pmset: no\n", None)]
)
def test_what_a_mac_says(text: str, on: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_assertions(text) is on
    monkeypatch.setattr(display.sys, "platform", "darwin")
    monkeypatch.setattr(display, "pmset", {"assertions": text}.__getitem__)
    assert display_is_on() is on


@pytest.mark.parametrize(
    ("connectors", "on"),
    [
        ({"card0-eDP-1": ("connected", "On"), "card0-HDMI-A-1": ("disconnected", "Off")}, True),
        ({"card0-eDP-1": ("connected", "Off"), "card0-HDMI-A-1": ("disconnected", "Off")}, False),
        ({"card1-DP-1": ("disconnected", "On")}, False),
        ({}, None),
    ],
)
def test_what_linux_says_of_its_connectors(
    connectors: dict[str, tuple[str, str]], on: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display.sys, "platform", "linux")
    for name, (status, power) in connectors.items():
        place = tmp_path / "sys/class/drm" / name
        place.mkdir(parents=True)
        (place / "status").write_text(status + "\n")
        (place / "dpms").write_text(power + "\n")
    (tmp_path / "sys/class/drm/card0").mkdir(parents=True, exist_ok=True)  # the card itself is no connector
    assert display_is_on(tmp_path) is on


def test_this_machine_answers() -> None:
    assert display_is_on() in (None, True, False)
