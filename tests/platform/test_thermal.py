"""Heat: this machine's, recorded trip points of Linux machines, and what macOS's notify(3) would answer."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_gardener.platform import thermal
from mlx_gardener.platform.thermal import ThermalState, mac_state, notify_state, thermal_state, zone_state

KEY = "com.apple.system.thermalpressurelevel"
#: A laptop's ACPI zone: fans from 50 to 98 °C, throttling at 101 °C, power off at 108 °C.
LAPTOP = [("critical", 108000), ("passive", 101000), ("active", 98000), ("active", 50000)]
#: A desktop's, whose firmware fills in what it does not use.
DESKTOP = [("critical", 127000), ("hot", 127000), ("passive", 0)]
#: Intel's package sensor: two points for user space to set.
PACKAGE = [("passive", -274000), ("passive", 0)]


@pytest.mark.parametrize(
    ("millidegrees", "trips", "state"),
    [
        (45000, LAPTOP, "nominal"),
        (99000, LAPTOP, "fair"),
        (101000, LAPTOP, "serious"),
        (103000, LAPTOP, "critical"),
        (28000, DESKTOP, "nominal"),
        (127000, DESKTOP, "critical"),
        (96000, [("critical", 99000)], "critical"),
        (91000, [("hot", 90000), ("critical", 110000)], "critical"),
        (60000, PACKAGE, None),
        (60000, [], None),
        (None, LAPTOP, None),
    ],
)
def test_a_zone_is_as_hot_as_its_trip_points_say(
    millidegrees: int | None, trips: list[tuple[str, int]], state: ThermalState | None
) -> None:
    assert zone_state(millidegrees, trips) == state


def _zone(root: Path, number: int, temperature: str | None, trips: list[tuple[str, int]]) -> None:
    zone = root / f"sys/class/thermal/thermal_zone{number}"
    zone.mkdir(parents=True)
    if temperature is not None:
        (zone / "temp").write_text(temperature)
    for index, (kind, trip) in enumerate(trips):
        (zone / f"trip_point_{index}_type").write_text(kind + "\n")
        (zone / f"trip_point_{index}_temp").write_text(f"{trip}\n")


@pytest.mark.skipif(sys.platform == "darwin", reason="file trees are Linux's")
def test_the_hottest_zone_decides_and_broken_ones_are_left_out(tmp_path: Path) -> None:
    assert thermal_state(tmp_path) is None
    _zone(tmp_path, 0, "45000\n", PACKAGE)
    _zone(tmp_path, 1, None, LAPTOP)
    _zone(tmp_path, 2, "unknown\n", LAPTOP)
    (tmp_path / "sys/class/thermal/thermal_zone2/trip_point_0_temp").unlink()
    assert thermal_state(tmp_path) is None
    _zone(tmp_path, 3, "28000\n", DESKTOP)
    assert thermal_state(tmp_path) == "nominal"
    _zone(tmp_path, 4, "101500\n", LAPTOP)
    assert thermal_state(tmp_path) == "serious"


def test_this_machine_answers() -> None:
    assert thermal_state() in ("nominal", "fair", "serious", "critical", None)


@pytest.mark.parametrize(
    ("level", "state"),
    [(0, "nominal"), (1, "fair"), (2, "serious"), (3, "critical"), (4, "critical"), (5, None), (None, None)],
)
def test_the_thermal_pressure_levels_of_macos(level: int | None, state: ThermalState | None) -> None:
    assert mac_state(level) == state


def _library(published: dict[bytes, int], cancelled: list[int], register: int = 0) -> SimpleNamespace:
    """A libSystem whose notify(3) is called through C, as the real one is."""
    tokens = dict(enumerate(published, start=7))
    token_type, address = ctypes.c_int, ctypes.c_void_p

    @ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_char_p, address)
    def notify_register_check(name: bytes, token: int) -> int:
        ctypes.c_int.from_address(token).value = next(number for number in tokens if tokens[number] == name)
        return register

    @ctypes.CFUNCTYPE(ctypes.c_uint32, token_type, address)
    def notify_get_state(token: int, state: int) -> int:
        ctypes.c_uint64.from_address(state).value = published[tokens[token]]
        return 0

    @ctypes.CFUNCTYPE(ctypes.c_uint32, token_type)
    def notify_cancel(token: int) -> int:
        cancelled.append(token)
        return 0

    return SimpleNamespace(
        notify_register_check=notify_register_check,
        notify_get_state=notify_get_state,
        notify_cancel=notify_cancel,
    )


def test_a_notify_key_is_read_through_c_and_its_token_given_back() -> None:
    cancelled: list[int] = []
    assert notify_state(KEY, _library({b"other": 9, KEY.encode(): 2}, cancelled)) == 2
    assert cancelled == [8]
    assert notify_state(KEY, _library({KEY.encode(): 2}, cancelled, register=1000000)) is None


def test_a_mac_is_asked_for_its_thermal_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thermal.sys, "platform", "darwin")
    monkeypatch.setattr(thermal, "notify_state", {KEY: 2}.get)
    assert thermal_state() == "serious"


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has it")
def test_there_is_no_notify_on_linux() -> None:
    assert notify_state(KEY) is None
