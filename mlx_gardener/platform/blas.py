"""Put a fast BLAS in place of the reference one in MLX's Linux CPU wheels.

MLX's ``libmlx.so`` for Linux CPUs resolves ``cblas_sgemm`` dynamically. A library opened with ``RTLD_GLOBAL`` before
``mlx.core`` is imported wins the symbol look-up: about 5 GFLOP/s become 150 to 280 on two cores. Nothing happens on
macOS (Accelerate) or when MLX is already loaded. Cost: under 50 ms, and no memory until the first matrix product.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Debian's packages and the usual prefixes; the wheel of MKL lies in the environment's own ``lib``.
_SYSTEM_LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib/x86_64-linux-gnu/libopenblas.so.0",
    "/usr/lib/aarch64-linux-gnu/libopenblas.so.0",
    "/usr/lib64/libopenblas.so.0",
)
#: How long a thread of Intel's OpenMP spins before it sleeps, unless the environment says otherwise. Its own 200 ms take
#: the cores from the machine's owner and from MLX's other threads: with two processes on two cores, the same evaluation
#: took 33 s with 200 and 17 s with 1; alone, a training step takes the same (2.65 s). 0 made small steps a third slower.
_SPIN_MILLISECONDS = "1"


@dataclass(frozen=True)
class BlasState:
    """Which BLAS this process multiplies with, and why."""

    path: str | None
    reason: str


_state = BlasState(None, "not looked for yet")


def candidates() -> Iterator[Path]:
    """Fast BLAS libraries on this machine, best first: the setting, MKL from the environment, system OpenBLAS."""
    chosen = os.environ.get("MLX_GARDENER_BLAS")
    if chosen:
        yield Path(chosen)
    for prefix in dict.fromkeys((sys.prefix, sys.base_prefix)):
        yield from sorted(Path(prefix, "lib").glob("libmkl_rt.so*"), reverse=True)
    yield from (Path(name) for name in _SYSTEM_LIBRARIES)


def preload() -> BlasState:
    """Open the first fast BLAS that loads, for the whole process; called once by ``import mlx_gardener``.

    ``MLX_GARDENER_BLAS`` names a library to use, or ``none`` to keep the one MLX came with.
    """
    global _state
    if not sys.platform.startswith("linux"):
        _state = BlasState(None, "not needed on this system: MLX brings a fast BLAS")
    elif os.environ.get("MLX_GARDENER_BLAS", "").lower() == "none":
        _state = BlasState(None, "switched off by MLX_GARDENER_BLAS=none")
    elif _state.path is None and "mlx.core" in sys.modules:
        _state = BlasState(None, "mlx was imported before mlx_gardener: import mlx_gardener first")
    elif _state.path is None:
        _state = _open_first()
    return _state


def _open_first() -> BlasState:
    failures = []
    os.environ.setdefault("KMP_BLOCKTIME", _SPIN_MILLISECONDS)
    # MKL's own default picks Intel's OpenMP, which its wheel brings; GNU's is kept out of the process.
    for path in candidates():
        if not path.exists():
            continue
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            failures.append(f"{path.name}: {error}")
            continue
        return BlasState(str(path), f"opened {path.name}")
    if failures:
        return BlasState(None, "no fast BLAS could be opened (" + "; ".join(failures) + ")")
    return BlasState(None, "no fast BLAS found: pip install mkl, or install libopenblas0-pthread")


def state() -> BlasState:
    """The BLAS chosen when the package was imported."""
    return _state


#: (reads, sets) the number of threads: MKL's and OpenBLAS's own names.
_THREAD_CALLS = (
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
)


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """While this lasts, the preloaded BLAS multiplies with ``count`` threads; nothing happens without one.

    When several streams multiply at once, each with all cores, they wait for each other.
    """
    if _state.path is None:
        yield
        return
    library = ctypes.CDLL(_state.path)
    for get_name, set_name in _THREAD_CALLS:
        if hasattr(library, get_name):
            before = int(getattr(library, get_name)())
            getattr(library, set_name)(ctypes.c_int(count))
            try:
                yield
            finally:
                getattr(library, set_name)(ctypes.c_int(before))
            return
    yield
