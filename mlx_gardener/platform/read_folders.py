"""Folders that model files were read into, and models that were fetched, as the registry sees them: which can go since they can be
made or fetched again.

In: the directory of such folders. Out: names of theirs, and those that nobody used since a time. Cost: a small file is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlx_gardener.platform.locks import is_held
from mlx_gardener.platform.untrusted import read_json

#: In the cache: held by whoever reads a file, and how the folder begins that he writes.
LOCK_NAME, STAGED = ".reading.lock", ".reading-"
#: In the cache: sha256 of files that were read.
SOURCES = "sources.json"
#: Ends a folder's name, after digits of the source's sha256; another number when the same file is written in another way.
SUFFIX, DIGITS = ".v2", 16


def identity(files: tuple[Path, ...]) -> str:
    """What changes when a file is another one: place, size, time of the last change, and number on the disk."""
    stats = [(os.path.realpath(file), file.stat()) for file in files]
    return json.dumps([(place, stat.st_size, stat.st_mtime_ns, stat.st_ino) for place, stat in stats])


def sources(cache_dir: Path) -> dict[str, str]:
    """sha256 of files that were read, by `identity`; empty where the list is damaged, since it is only a cache."""
    try:
        found = read_json(cache_dir / SOURCES)
    except (OSError, ValueError):
        return {}
    return (
        {key: value for key, value in found.items() if isinstance(value, str)}
        if isinstance(found, dict)
        else {}
    )


def files_here(cache_dir: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Files that were read and are still where and what they were, each with its sha256."""
    for key, digest in sources(cache_dir).items():
        with suppress(OSError, ValueError, TypeError, IndexError):
            files = tuple(Path(entry[0]) for entry in json.loads(key))
            if identity(files) == key:
                yield digest, files


def unused_folders(cache_dir: Path, before: float) -> Iterator[Path]:
    """Folders that were last used before a time, and whose file is still where it was: it can be read again."""
    here = {digest[:DIGITS] for digest, _ in files_here(cache_dir)}
    for folder in sorted(cache_dir.glob("*.v[0-9]*")):  # earlier ways of writing one, too
        digest = folder.stem[-DIGITS:]
        if digest in here and folder.stat().st_mtime < before:
            yield folder


def unused_packages(packages: Path, cache_dir: Path, before: float) -> Iterator[Path]:
    """Models that came from the package index into ``packages``, and parts of such, that were last used before a time.

    A model is used when it is fetched, and whenever the folder below ``cache_dir`` is that it was read into.
    """
    known = sources(cache_dir)
    for path in (*sorted(packages.glob("*.gguf")), *sorted(packages.glob(".*.parts"))):
        with suppress(OSError):  # another process is at it
            times = [path.stat().st_mtime, *(inside.stat().st_mtime for inside in path.rglob("*"))]
            if (digest := known.get(identity((path,)))) is not None:
                times += [folder.stat().st_mtime for folder in cache_dir.glob(f"*-{digest[:DIGITS]}{SUFFIX}")]
            if max(times) < before and not is_held(path.with_suffix(".lock")):
                yield path
