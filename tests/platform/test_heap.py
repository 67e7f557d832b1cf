"""Buffers that are freed go back to the system, also after large ones were freed before."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
if sys.argv[1] == "with":
    import mlx_gardener
from psutil import Process
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
MIB = 2**20

def buffer(size):
    address = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(ctypes.c_void_p(address), 1, size)
    return address

libc.free(buffer(16 * MIB))  # from here on glibc left alone keeps what is smaller
buffers = [buffer(MIB) for _ in range(100)]
full = Process().memory_info().rss
for address in buffers[:-1]:
    libc.free(address)
print((full - Process().memory_info().rss) / MIB)
"""


def returned_mib(how: str) -> float:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other allocators need no word")
def test_freed_buffers_go_back_to_the_system() -> None:
    assert returned_mib("with") > 90
    assert returned_mib("without") < 50, "glibc gives back by itself now: mlx_gardener.platform.heap can go"
