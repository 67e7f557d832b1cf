"""Low Power Mode, from what ``pmset -g live`` prints on Macs; the power source is in test_platform."""

from __future__ import annotations

import pytest

from mlx_gardener.platform import power
from mlx_gardener.platform.power import PowerState, parse_low_power_mode, power_state

#: A Mac mini with macOS 14, which lists no mode.
LIVE_MINI = """\
System-wide power settings:
Currently in use:
 disksleep            10
 powernap             1
 womp                 1
 networkoversleep     0
 sleep                10 (sleep prevented by sharingd, powerd, bluetoothd)
 Sleep On Power Button 1
 ttyskeepawake        1
 tcpkeepalive         1
 autorestart          1
 standby              0
 displaysleep         10
"""
#: The line as older and newer Macs print it, between others.
LIVE_LOW = LIVE_MINI.replace(" standby ", " lowpowermode         1\n standby ")
LIVE_NOT_LOW = LIVE_LOW.replace("lowpowermode         1", "lowpowermode         0")
LIVE_AUTOMATIC = LIVE_LOW.replace("lowpowermode         1", "powermode            0")
LIVE_LOW_OF_THREE = LIVE_LOW.replace("lowpowermode         1", "powermode            1")
LIVE_HIGH = LIVE_LOW.replace("lowpowermode         1", "powermode            2")


@pytest.mark.parametrize(
    ("text", "low"),
    [
        (LIVE_MINI, None),
        ("", None),
        (LIVE_LOW, True),
        (LIVE_NOT_LOW, False),
        (LIVE_AUTOMATIC, False),
        (LIVE_LOW_OF_THREE, True),
        (LIVE_HIGH, False),
    ],
)
def test_the_power_mode_of_a_mac(text: str, low: bool | None) -> None:
    assert parse_low_power_mode(text) is low


def test_a_mac_is_asked_for_source_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power.sys, "platform", "darwin")
    monkeypatch.setattr(power, "pmset", {"ps": "Now drawing from 'AC Power'\n", "live": LIVE_LOW}.__getitem__)
    assert power_state() == PowerState(on_battery=None, low_power_mode=True)


def test_this_machine_answers() -> None:
    assert power_state().on_battery in (None, True, False)
