"""How long reading a GGUF file takes beside copying it, and how much memory: ``python benchmarks/gguf_reading.py FILE.gguf``.

Both are written to the disk to the end (fsync); copying comes first, so that reading finds the file in the page cache. On a machine
that has other work the seconds of the processor say more.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def seconds_of(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    began, used = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - began, time.process_time() - used


def copy(file: Path, place: Path) -> None:
    """Copy the file, until the disk has it."""
    with file.open("rb") as source, (place / "copy").open("wb") as target:
        shutil.copyfileobj(source, target, 2**20)
        target.flush()
        os.fsync(target.fileno())


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--times", default=3, show_default=True, help="The best of so many.")
def main(file: Path, times: int) -> None:
    """Copy FILE and read it, turn by turn; print the best of each and the peak memory."""
    from mlx_gardener.model.gguf import read_gguf

    copies, reads = [], []
    with tempfile.TemporaryDirectory(dir=file.parent if os.access(file.parent, os.W_OK) else None) as name:
        place = Path(name)
        for _ in range(times):
            copies.append(seconds_of(lambda: copy(file, place)))
            (place / "copy").unlink()
            reads.append(seconds_of(lambda: read_gguf(file, place / "cache")))
            (folder,) = (place / "cache").glob("*.v[0-9]*")
            written = sum(path.stat().st_size for path in folder.iterdir())
            shutil.rmtree(place / "cache")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    clock, processor = ([min(values[at] for values in turns) for turns in (copies, reads)] for at in (0, 1))
    print(f"clock: copying {clock[0]:.2f} s, reading {clock[1]:.2f} s ({clock[1] / clock[0]:.2f} times)")
    print(f"processor: copying {processor[0]:.2f} s, reading {processor[1]:.2f} s")
    print(f"{file.stat().st_size / 1e6:,.0f} MB in, {written / 1e6:,.0f} MB out, peak {peak / 1e6:,.0f} MB")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; the least of {times} turns")


if __name__ == "__main__":
    main()
