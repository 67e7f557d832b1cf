"""Energy that the chip took, from what the system measures anyway: `powermetrics` on macOS, RAPL on Linux.

A meter runs beside the work and keeps (time, joules so far); `Energy.between` reads off what any stretch of it took, by
linear interpolation. It counts the whole chip (CPU, GPU and neural engine on Apple silicon, the package on Linux), whoever
used it, so other programs should be quiet. Where nothing may be read there is no meter and a sentence says why. Needs
nothing of this project. Cost: one line or file a second.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

SECONDS_BETWEEN = 1.0
_POWER = re.compile(r"^Combined Power \(CPU \+ GPU \+ ANE\): (\d+) mW")
_ELAPSED = re.compile(r"^\*{3} Sampled system activity .*\(([\d.]+)ms elapsed\)")


@dataclass
class Energy:
    """Joules so far at points in time (seconds since the epoch), both rising; ``unavailable`` says why there are none."""

    source: str
    unavailable: str = ""
    samples: list[tuple[float, float]] = field(default_factory=list)
    _stop: Callable[[], None] = field(default=lambda: None, repr=False)

    def between(self, start: float, end: float) -> float | None:
        """Joules from ``start`` to ``end`` (seconds since the epoch); None where the samples do not reach so far."""
        samples = list(self.samples)
        if len(samples) < 2 or start < samples[0][0] or end > samples[-1][0] + 2 * SECONDS_BETWEEN:
            return None
        return _joules_at(samples, end) - _joules_at(samples, start)

    def stop(self) -> None:
        """End the meter; what it has seen stays."""
        self._stop()


def _joules_at(samples: list[tuple[float, float]], moment: float) -> float:
    """Between the two samples around ``moment``; beyond the last one its own value."""
    for (before, low), (after, high) in pairwise(samples):
        if moment <= after:
            return low + (high - low) * (moment - before) / max(after - before, 1e-9)
    return samples[-1][1]


def start_energy(root: Path = Path("/")) -> Energy:
    """A running meter, or one that says why it is none; ``root`` holds Linux's ``sys``."""
    return start_powermetrics() if sys.platform == "darwin" else start_rapl(root)


def start_powermetrics(command: tuple[str, ...] = ("sudo", "-n", "/usr/bin/powermetrics")) -> Energy:
    """macOS's own meter, which only root may run: used where ``sudo -n`` asks for no password.

    Args:
        command: what starts it; its first words are also what may end it.
    """
    arguments = ("--samplers", "cpu_power", "--sample-rate", str(int(1000 * SECONDS_BETWEEN)))
    try:
        process = subprocess.Popen(
            [*command, *arguments, "--buffer-size", "1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        return Energy("powermetrics", f"powermetrics cannot be started ({error.strerror})")
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
        return Energy("powermetrics", "powermetrics needs root: run `sudo -v` before, in the same terminal")
    energy = Energy("powermetrics")

    def read() -> None:
        assert process.stdout is not None
        energy.samples.append((time.time(), 0.0))
        for joules in powermetrics_joules(process.stdout):
            energy.samples.append((time.time(), energy.samples[-1][1] + joules))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def stop() -> None:
        try:
            process.terminate()
        except PermissionError:  # it runs as root; sudo hands the signal on
            subprocess.run([*command[:2], "kill", str(process.pid)], check=False, capture_output=True)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        reader.join(timeout=5)

    energy._stop = stop
    return energy


def powermetrics_joules(lines: Iterable[str]) -> Iterator[float]:
    """Joules of each sample in the text of ``powermetrics --samplers cpu_power``: its mean power times its length."""
    seconds = 0.0
    for line in lines:
        if found := _ELAPSED.match(line):
            seconds = float(found[1]) / 1000
        elif found := _POWER.match(line):
            yield int(found[1]) / 1000 * seconds


def start_rapl(root: Path = Path("/")) -> Energy:
    """Linux's running average power limit counters of all processor packages; root's on most systems."""
    zones = [zone for zone in sorted((root / "sys/class/powercap").glob("*rapl:*")) if _is_package(zone)]
    if not zones:
        return Energy("RAPL", "this machine shows no RAPL counters under /sys/class/powercap")
    try:
        counters = [_Counter(zone) for zone in zones]
    except OSError as error:
        return Energy("RAPL", f"the RAPL counters cannot be read ({error.strerror}); most systems need root")
    energy, done = Energy("RAPL"), threading.Event()

    def read() -> None:
        energy.samples.append((time.time(), sum(counter.joules() for counter in counters)))

    def watch() -> None:
        while not done.wait(SECONDS_BETWEEN):
            read()

    read()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()

    def stop() -> None:
        done.set()
        watcher.join()
        read()

    energy._stop = stop
    return energy


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text(encoding="ascii").startswith("package")
    except OSError:
        return False


class _Counter:
    """A counter in microjoules that starts again at 0 beyond its range."""

    def __init__(self, zone: Path) -> None:
        self.file = zone / "energy_uj"
        self.range = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        self.last = int(self.file.read_text(encoding="ascii"))
        self.total = 0

    def joules(self) -> float:
        """Since it was made."""
        now = int(self.file.read_text(encoding="ascii"))
        self.total += now - self.last if now >= self.last else now - self.last + self.range
        self.last = now
        return self.total / 1e6
