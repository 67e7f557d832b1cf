"""Memory pressure: this machine's, that of fake file trees, and what xnu's sysctl would answer."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_gardener.platform import pressure
from mlx_gardener.platform.pressure import (
    Level,
    MemoryPressure,
    cgroup_scope,
    level_from,
    mac_level,
    memory_pressure,
    parse_cgroup_path,
    parse_meminfo,
    parse_psi,
    sysctl_int,
)

GIB = 2**30
#: Linux 6.18 with 24 GB, at rest.
MEMINFO = "MemTotal:       24684084 kB\nMemFree:        23888764 kB\nMemAvailable:   24197744 kB\nBuffers:             640 kB\n"
PSI_AT_REST = "some avg10=0.00 avg60=0.00 avg300=0.00 total=149734\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=97361\n"
#: In the same form, with other figures.
PSI_STUTTER = "some avg10=24.31 avg60=9.02 avg300=2.11 total=8149734\nfull avg10=6.80 avg60=2.40 avg300=0.60 total=97361\n"
PSI_THRASHING = "some avg10=41.02 avg60=30.10 avg300=9.87 total=91497340\nfull avg10=33.47 avg60=21.95 avg300=6.12 total=7973610\n"
CGROUP_HYBRID = "9:name=systemd:/\n4:memory:/process_api/ea9133ba\n1:cpu:/\n0::/\n"
CGROUP_V1 = "4:memory:/docker/ea9133ba\n1:cpu:/\n"
CGROUP_SERVICE = "0::/user.slice/training.service\n"


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _meminfo(available_percent: float) -> str:
    return f"MemTotal: {16 * 2**20} kB\nMemAvailable: {int(16 * 2**20 * available_percent / 100)} kB\n"


def test_meminfo_psi_and_the_cgroup_path_are_read() -> None:
    assert parse_meminfo(MEMINFO) == (24197744 * 1024, 24684084 * 1024)
    assert parse_meminfo("MemTotal:  1 kB\n") is None and parse_meminfo("") is None
    assert parse_psi(PSI_STUTTER) == (24.31, 6.8) and parse_psi("") == (0.0, 0.0)
    assert parse_cgroup_path(CGROUP_HYBRID) == "/" and parse_cgroup_path(CGROUP_V1) is None
    assert parse_cgroup_path(CGROUP_SERVICE) == "/user.slice/training.service"


@pytest.mark.parametrize(
    ("percent", "psi", "level"),
    [
        (50, PSI_AT_REST, "normal"),
        (8.5, PSI_AT_REST, "normal"),
        (7.5, PSI_AT_REST, "warning"),
        (2.5, PSI_AT_REST, "critical"),
        (50, PSI_STUTTER, "warning"),
        (50, PSI_THRASHING, "critical"),
        (2.5, PSI_STUTTER, "critical"),
        (50, "", "normal"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="file trees are Linux's")
def test_the_level_follows_what_is_available_and_what_stalls(
    tmp_path: Path, percent: float, psi: str, level: Level
) -> None:
    root = _tree(tmp_path, {"proc/meminfo": _meminfo(percent), "proc/pressure/memory": psi})
    assert memory_pressure(root) == MemoryPressure(level, int(16 * 2**20 * percent / 100) * 1024, 16 * GIB)


@pytest.mark.skipif(sys.platform == "darwin", reason="file trees are Linux's")
def test_the_limit_of_a_parent_cgroup_holds_and_its_page_cache_is_not_taken_memory(tmp_path: Path) -> None:
    slice_ = "sys/fs/cgroup/user.slice/"
    files = {
        "proc/meminfo": _meminfo(50),
        "proc/self/cgroup": CGROUP_SERVICE,
        slice_ + "training.service/memory.max": "max\n",
        slice_ + "training.service/memory.high": "max\n",
        slice_ + "training.service/memory.current": f"{2 * GIB}\n",
        slice_ + "memory.max": f"{4 * GIB}\n",
        slice_ + "memory.high": "max\n",
        slice_ + "memory.current": f"{4 * GIB - 4096}\n",
        slice_
        + "memory.stat": f"anon {2 * GIB}\nfile {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB}\nworkingset_refault_file 7\n",
    }
    root = _tree(tmp_path, files)
    assert memory_pressure(root) == MemoryPressure("normal", 2 * GIB + 4096, 4 * GIB)
    (root / slice_ / "memory.stat").write_text(f"anon {4 * GIB}\ninactive_file 4096\n")
    assert memory_pressure(root) == MemoryPressure("critical", 8192, 4 * GIB)
    (root / slice_ / "memory.max").write_text("max\n")
    assert memory_pressure(root) == MemoryPressure("normal", 8 * GIB, 16 * GIB)
    _tree(root, {slice_ + "training.service/memory.pressure": PSI_THRASHING})
    assert memory_pressure(root).level == "critical"


def test_memory_high_limits_as_memory_max_does(tmp_path: Path) -> None:
    group = _tree(tmp_path, {"memory.max": "4000\n", "memory.high": "3000\n", "memory.current": "2500\n"})
    assert cgroup_scope(group) == (500, 3000)
    (group / "memory.current").write_text("3500\n")
    assert cgroup_scope(group) == (0, 3000)
    assert cgroup_scope(tmp_path / "missing") is None


@pytest.mark.skipif(sys.platform == "darwin", reason="file trees are Linux's")
@pytest.mark.parametrize("cgroup", ["", CGROUP_V1, "0::/../../system.slice/docker.service\n"])
def test_a_container_that_hides_everything_still_gets_an_answer(tmp_path: Path, cgroup: str) -> None:
    found = memory_pressure(_tree(tmp_path, {"proc/self/cgroup": cgroup}))
    assert found.level in ("normal", "warning", "critical") and 0 < found.available_bytes <= found.total_bytes


def test_no_scope_at_all_is_no_pressure() -> None:
    assert level_from([]) == "normal" and level_from([(0, 0)]) == "normal"


def test_this_machine_tells_and_in_under_a_millisecond() -> None:
    found = memory_pressure()
    assert found.level in ("normal", "warning", "critical") and 0 < found.available_bytes <= found.total_bytes
    took = []
    for _ in range(50):
        start = time.perf_counter()
        memory_pressure()
        took.append(time.perf_counter() - start)
    assert min(took) < 1e-3  # the least, as the cores may be busy with other tests


@pytest.mark.parametrize(
    ("value", "level"), [(1, "normal"), (2, "warning"), (4, "critical"), (3, None), (None, None)]
)
def test_the_levels_of_xnu(value: int | None, level: Level | None) -> None:
    assert mac_level(value) == level


def _library(answer: Callable[[bytes], int | None]) -> SimpleNamespace:
    """A libSystem whose ``sysctlbyname`` is called through C, as the real one is."""

    def sysctlbyname(name: bytes, old: int, size: int, _new: int, _new_size: int) -> int:
        value = answer(name)
        if value is None:
            return -1
        assert ctypes.c_size_t.from_address(size).value == 4
        ctypes.c_int.from_address(old).value = value
        return 0

    pointer = ctypes.c_void_p
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, pointer, pointer, pointer, ctypes.c_size_t)
    return SimpleNamespace(sysctlbyname=prototype(sysctlbyname))


def test_a_sysctl_is_read_through_c() -> None:
    library = _library({b"kern.memorystatus_vm_pressure_level": 4}.get)
    assert sysctl_int("kern.memorystatus_vm_pressure_level", library) == 4
    assert sysctl_int("kern.nothing", library) is None


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has it")
def test_there_is_no_sysctl_on_linux() -> None:
    assert sysctl_int("kern.memorystatus_vm_pressure_level") is None


@pytest.mark.parametrize(("value", "level"), [(2, "warning"), (None, "critical")])
def test_a_mac_is_believed_and_the_share_decides_where_it_is_silent(
    monkeypatch: pytest.MonkeyPatch, value: int | None, level: Level
) -> None:
    monkeypatch.setattr(pressure.sys, "platform", "darwin")
    monkeypatch.setattr(pressure, "sysctl_int", lambda _name: value)
    memory = SimpleNamespace(available=GIB // 4, total=16 * GIB)
    monkeypatch.setattr(pressure.psutil, "virtual_memory", lambda: memory)
    assert memory_pressure() == MemoryPressure(level, GIB // 4, 16 * GIB)
