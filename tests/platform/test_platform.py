"""Facts of the machine: really read on this one, and parsed from what Macs print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mlx_gardener.errors import DataError
from mlx_gardener.platform import blas, graph_order
from mlx_gardener.platform.device import device_facts, parse_sysctl
from mlx_gardener.platform.files import existing_directory
from mlx_gardener.platform.footprint import (
    process_footprint_bytes,
    process_peak_footprint_bytes,
)
from mlx_gardener.platform.power import parse_pmset

SYSCTL_M4 = "machdep.cpu.brand_string: Apple M4\nhw.ncpu: 10\nhw.memsize: 17179869184\n"
PMSET_MINI = "Now drawing from 'AC Power'\n"
PMSET_PLUGGED = "Now drawing from 'AC Power'\n -InternalBattery-0 (id=4653155)\t100%; charged; 0:00 remaining present: true\n"
PMSET_BATTERY = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=4653155)\t84%; discharging; 5:12 remaining present: true\n"


def test_a_mac_mini_m4_is_recognised() -> None:
    assert parse_sysctl(SYSCTL_M4) == ("Apple M4", 10, 16 * 2**30)


@pytest.mark.parametrize(
    ("text", "on_battery"), [(PMSET_MINI, None), (PMSET_PLUGGED, False), (PMSET_BATTERY, True)]
)
def test_the_power_source_of_a_mac(text: str, on_battery: bool | None) -> None:
    assert parse_pmset(text).on_battery is on_battery


def test_the_footprint_grows_with_what_is_allocated_and_the_peak_stays() -> None:
    before = process_footprint_bytes()
    block = bytearray(80 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    during = process_footprint_bytes()
    del block
    assert during - before > 60 * 2**20
    assert process_peak_footprint_bytes() >= during - 2**20


def test_a_directory_that_no_name_can_be_of_is_refused_like_one_that_is_not_there() -> None:
    for name in ("a" * 5000, "a/" * 3000, "a\0b", "gone"):
        with pytest.raises(DataError, match="Name "):
            existing_directory(Path("/") / name)


def test_this_machine_has_facts() -> None:
    facts = device_facts()
    assert facts.chip and facts.cores >= 1 and facts.memory_bytes == psutil.virtual_memory().total


def _in_a_process(code: str, **environment: str | None) -> str:
    """What a process prints that runs ``code``; None takes a variable out of its environment."""
    import os

    wanted = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in wanted.items() if value is not None},
    )
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MLX brings a fast BLAS on other systems")
def test_the_fast_blas_is_in_place_before_mlx_and_can_be_switched_off() -> None:
    state = (
        "import mlx_gardener, mlx.core; from mlx_gardener.platform import blas; print(blas.state().reason)"
    )
    assert "opened" in _in_a_process(state) or "no fast BLAS" in _in_a_process(state)
    assert "switched off" in _in_a_process(state, MLX_GARDENER_BLAS="none")
    assert "import mlx_gardener first" in _in_a_process("import mlx.core; " + state)


def test_this_test_run_has_the_blas_that_the_environment_offers() -> None:
    assert blas.state().path is not None or not any(path.exists() for path in blas.candidates())


def test_threads_of_the_blas_soon_sleep_unless_the_environment_says_otherwise() -> None:
    openmp = Path(sys.prefix, "lib", "libiomp5.so")
    if "mkl" not in (blas.state().path or "") or not openmp.exists():
        pytest.skip("this BLAS does not use Intel's OpenMP")
    spins = (
        "import ctypes, mlx_gardener, mlx.core as mx; mx.eval(mx.ones((512, 512)) @ mx.ones((512, 512)));"
        f"print(ctypes.CDLL({str(openmp)!r}).kmp_get_blocktime())"
    )
    assert _in_a_process(spins, KMP_BLOCKTIME=None) == "1"
    assert _in_a_process(spins, KMP_BLOCKTIME="7") == "7"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="streams of a CPU")
def test_mlx_orders_by_breadth_unless_the_environment_says_otherwise() -> None:
    import mlx

    width = "import mlx_gardener, os; print(os.environ['MLX_BFS_MAX_WIDTH'])"
    assert _in_a_process(width, MLX_BFS_MAX_WIDTH=None) == str(graph_order.WIDTH)
    assert _in_a_process(width, MLX_BFS_MAX_WIDTH="20") == "20"
    library = next(Path(place, "lib", "libmlx.so") for place in mlx.__path__)
    assert b"MLX_BFS_MAX_WIDTH" in library.read_bytes(), "what MLX reads"
