"""Repositories that a base model of September 2024 or earlier cannot have seen: `unseen.toml` names them, this fetches them.

    python -m benchmarks.unseen [DIRECTORY]

Source archives from PyPI by pip, without what they depend on. Cost: some MB and a minute.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_suffix(".toml")
#: Where they go unless said otherwise.
SOURCES = Path(__file__).parents[1] / ".quickstart" / "unseen"


@dataclass(frozen=True)
class Package:
    """A source archive: its name and version on PyPI, the day of the first release, its licence, and what it is."""

    name: str
    version: str
    first_release: str
    licence: str
    about: str


def packages() -> dict[str, Package]:
    """All that are listed, by name."""
    found = tomllib.loads(LIST.read_text(encoding="utf-8"))["package"]
    return {entry["name"]: Package(**entry) for entry in found}


def fetch(package: Package, sources: Path = SOURCES) -> Path:
    """The unpacked archive in a directory of the package's name, below one of its version; fetched where it is not there."""
    target = sources / f"{package.name}-{package.version}" / package.name
    if target.is_dir():
        return target
    sources.mkdir(parents=True, exist_ok=True)
    stem = f"{package.name.replace('-', '_')}-{package.version}"
    archive = sources / f"{stem}.tar.gz"
    if not archive.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--dest", str(sources), f"{package.name}=={package.version}"], check=True)
    unpacked = sources / f"{stem}.unpacked"
    with tarfile.open(archive) as opened:
        opened.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        opened.extractall(unpacked)
    target.parent.mkdir(exist_ok=True)
    (unpacked / stem).rename(target)
    unpacked.rmdir()
    return target


def main() -> None:
    """Fetch all, and say where they are."""
    sources = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCES
    for package in packages().values():
        print(fetch(package, sources))


if __name__ == "__main__":
    main()
