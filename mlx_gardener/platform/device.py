"""Facts of the machine: system, chip, cores, memory, and the backend MLX computes on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class DeviceFacts:
    """The machine; memory in bytes. ``backend`` is "cpu", "metal" or "cuda"."""

    system: str
    chip: str
    cores: int
    memory_bytes: int
    backend: str


def device_facts() -> DeviceFacts:
    """Facts of this machine; imports mlx."""
    if sys.platform == "darwin":
        command = ("/usr/sbin/sysctl", "machdep.cpu.brand_string", "hw.ncpu", "hw.memsize")
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        chip, cores, memory = parse_sysctl(done.stdout)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        chip = parse_cpuinfo(cpuinfo.read_text()) if cpuinfo.exists() else platform.processor()
        cores, memory = os.cpu_count() or 1, psutil.virtual_memory().total
    return DeviceFacts(f"{platform.system()} {platform.release()}", chip, cores, memory, backend())


def backend() -> str:
    """What MLX computes on by default: "metal", "cuda" or "cpu"."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def parse_sysctl(text: str) -> tuple[str, int, int]:
    """(chip, cores, memory in bytes) from ``sysctl machdep.cpu.brand_string hw.ncpu hw.memsize``."""
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    return (
        values.get("machdep.cpu.brand_string", "unknown"),
        int(values.get("hw.ncpu", "1")),
        int(values.get("hw.memsize", "0")),
    )


def parse_cpuinfo(text: str) -> str:
    """The processor's name from Linux's /proc/cpuinfo."""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else platform.machine()
