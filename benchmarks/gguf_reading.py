"""How long reading a GGUF file takes beside copying it, and how much memory: ``python benchmarks/gguf_reading.py FILE.gguf``.

Both are written to the disk to the end (fsync); the file is read once before, so that both find it in the page cache.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click


def copy_seconds(file: Path, place: Path) -> float:
    """Seconds that copying takes, until the disk has it."""
    began = time.monotonic()
    with file.open("rb") as source, (place / "copy").open("wb") as target:
        shutil.copyfileobj(source, target, 2**20)
        target.flush()
        os.fsync(target.fileno())
    seconds = time.monotonic() - began
    (place / "copy").unlink()
    return seconds


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
            copies.append(copy_seconds(file, place))
            began = time.monotonic()
            folder = read_gguf(file, place / "cache")
            reads.append(time.monotonic() - began)
            written = sum(path.stat().st_size for path in folder.iterdir())
            shutil.rmtree(place / "cache")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(
        f"copying {min(copies):.2f} s, reading {min(reads):.2f} s ({min(reads) / min(copies):.2f} times), ",
        end="",
    )
    print(f"{file.stat().st_size / 1e6:,.0f} MB in, {written / 1e6:,.0f} MB out, peak {peak / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
