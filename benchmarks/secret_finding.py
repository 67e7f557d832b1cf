"""What finding secrets costs a scan, against the scan without it and the scan as it was before whole files were searched.

    python benchmarks/secret_finding.py PATH [PATH ...] [--rounds 3] [--before COMMIT]

Three scans of each PATH in turn, each a process of its own without worker processes: as it is; the same with the secret
rules left out; and that of an earlier COMMIT, whose package is taken out of this repository's history. By default the last
one that used detect-secrets, which must be installed then (``pip install 'detect-secrets>=1.5,<2'``); ``--before ""`` leaves it
out. Told are seconds of the processor for a MB that was read, which others' work on the machine hardly changes. Aim: a scan
takes at most twice the time of the earlier one.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
from machine import bar, describe, save, spread

ROOT = Path(__file__).parents[1]
#: The parent of the commit that searches whole files; the last one with detect-secrets.
BEFORE = "fde942a~1"
MOST_TIMES = 2.0
CODE = """
import json, sys, time
from pathlib import Path
import mlx_gardener
from mlx_gardener.config import DataConfig
from mlx_gardener.source import scan, scan_repository
if sys.argv[2] == "without":
    scan.find_secrets = lambda *arguments: []
    scan.names_with_secrets = lambda paths: set()
scan_repository(Path(sys.argv[3]), DataConfig(), quality_threshold=0.5, processes=1)  # once, for what is loaded and read first
began = time.process_time()
found = scan_repository(Path(sys.argv[1]), DataConfig(), quality_threshold=0.5, processes=1)
print(json.dumps({
    "seconds": time.process_time() - began,
    "bytes": found.bytes_seen,
    "kept": found.chunks_kept,
    "secrets": len(found.secrets),
    "package": mlx_gardener.__file__,
}))
"""


def package_of(commit: str, directory: Path) -> Path:
    """This package as it was at a commit, written below ``directory``, which is returned.

    Raises:
        subprocess.CalledProcessError: there is no such commit here, as in a clone without history.
    """
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "mlx_gardener"], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(directory)
    return directory


def scan_once(path: Path, package: Path, *, with_secrets: bool = True) -> dict[str, Any]:
    """One scan by the package in the directory ``package``: its seconds of the processor, bytes, chunks and secrets."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "warm.py").write_text(
            "token = 'a value'\n\n\ndef first(one, two):\n    return one + two\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(path), "with" if with_secrets else "without", name],
            env={**os.environ, "PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"},
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout)
    if not Path(found["package"]).is_relative_to(package):
        raise click.ClickException(f"{found['package']} was scanned with, and not the package in {package}.")
    return found


def measure(path: Path, packages: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Scans of ``path`` in turn: seconds for a MB of each, what was found, and how many times as long the scan takes now.

    Args:
        packages: ``now``, and ``before`` where there is an earlier one.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name in ("now", "without", *(["before"] if "before" in packages else [])):
            scanned = scan_once(
                path, packages["before" if name == "before" else "now"], with_secrets=name != "without"
            )
            seconds[name].append(scanned["seconds"] / (scanned["bytes"] / 1e6))
            found[name] = scanned
    told = {name: spread(values) for name, values in seconds.items()}
    return {
        "tree": path.name,
        "megabytes": round(found["now"]["bytes"] / 1e6, 2),
        "secrets": {name: one["secrets"] for name, one in found.items()},
        "chunks_kept": {name: one["kept"] for name, one in found.items()},
        "seconds_for_a_megabyte": told,
        "secrets_seconds_for_a_megabyte": round(told["now"]["median"] - told["without"]["median"], 4),
        "times": {
            name: round(told["now"]["median"] / told[name]["median"], 2) for name in told if name != "now"
        },
    }


@click.command()
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--before", default=BEFORE, show_default=True, help="The commit to compare with; empty for none."
)
def main(paths: tuple[Path, ...], rounds: int, before: str) -> None:
    """Scan each PATH in the three ways, a few times, and write the result."""
    machine, trees = describe(), []
    with tempfile.TemporaryDirectory() as directory:
        packages = {"now": ROOT}
        if before:
            packages["before"] = package_of(before, Path(directory))
        for path in paths:
            trees.append(measure(path, packages, rounds))
            print(json.dumps(trees[-1], indent=1))
    bars = []
    if before:
        worst = max(tree["times"]["before"] for tree in trees)
        wanted, met = f"at most {MOST_TIMES:g} times", worst <= MOST_TIMES
        bars = [bar("time of a scan", f"the scan of {before}", wanted, f"{worst:g} times", met)]
        print(f"The scan takes {worst:g} times as long as that of {before}; wanted: {wanted}.")
    print("wrote", save("secret_finding", {"machine": machine, "trees": trees, "bars": bars}))


if __name__ == "__main__":
    main()
