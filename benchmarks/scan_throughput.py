"""How fast a large repository is scanned, and in how much memory.

    python benchmarks/scan_throughput.py PATH [PATH ...] [--rounds 3]

Each round is ``mlx-gardener``'s scan in a process of its own; memory is the sum over it and its workers, sampled
every 50 ms. Aim: at least 5 MB/s in less than 500 MB on two cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import click
import psutil
from machine import describe, save, spread

CODE = """
import json, sys
from pathlib import Path
import mlx_gardener
from mlx_gardener.config import DataConfig
from mlx_gardener.source import scan_repository
if __name__ == "__main__":
    found = scan_repository(Path(sys.argv[1]), DataConfig(), quality_threshold=0.5).to_json()
    print(json.dumps({name: found[name] for name in
                      ("files_seen", "bytes_seen", "files_kept", "bytes_kept", "chunks_kept", "seconds")}))
"""


def measure(path: Path, script: Path) -> dict[str, float]:
    """One scan: its own account, and the peak memory of its processes in MB."""
    process = subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, text=True)
    parent, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        total = 0
        try:
            for one in (parent, *parent.children(recursive=True)):
                total += one.memory_info().rss
        except psutil.NoSuchProcess:
            pass  # one of them ended while it was asked
        peak = max(peak, total)
        time.sleep(0.05)
    assert process.stdout is not None
    found: dict[str, float] = json.loads(process.stdout.read())
    return {
        **found,
        "megabytes_per_second": found["bytes_seen"] / 1e6 / found["seconds"],
        "peak_mb": peak / 1e6,
    }


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=3, show_default=True)
def main(paths: tuple[Path, ...], rounds: int) -> None:
    """Scan each PATH a few times and write the result."""
    machine, trees = describe(), []
    script = Path(__file__).parent / ".scan_once.py"
    script.write_text(CODE)
    try:
        for path in paths:
            runs = [measure(path, script) for _ in range(rounds)]
            trees.append(
                {
                    "tree": path.name,
                    "megabytes": round(runs[0]["bytes_seen"] / 1e6, 1),
                    "files": runs[0]["files_seen"],
                    "chunks_kept": runs[0]["chunks_kept"],
                    "megabytes_per_second": spread([run["megabytes_per_second"] for run in runs]),
                    "kept_megabytes_per_second": spread(
                        [run["bytes_kept"] / 1e6 / run["seconds"] for run in runs]
                    ),
                    "peak_mb": spread([run["peak_mb"] for run in runs]),
                }
            )
            print(json.dumps(trees[-1], indent=1))
    finally:
        script.unlink()
    print("wrote", save("scan_throughput", {"machine": machine, "trees": trees}))


if __name__ == "__main__":
    main()
