"""The cache of converted GGUF files and of models from the package index: what is in it, and what of it can go.

A GGUF file is converted once into a model folder of mlx-lm's kind (`model.gguf`), below ``cache/bases``; a model from the package
index is a GGUF file below ``cache/packages`` (`model.package_index`). Both can be made or fetched again, so `registry.garbage` deletes
what nobody has used for long. That is why this is not in the model room: the registry may not import it.

In: the cache's directory. Out: the list of converted files, and what was last used before a time. Cost: a small file is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlx_gardener.platform.locks import is_held
from mlx_gardener.platform.untrusted import read_json

#: In ``cache/bases``: the lock of the process that converts a file, and how the name of the folder begins that it is writing.
LOCK_NAME, STAGED = ".reading.lock", ".reading-"
#: In ``cache/bases``: the list of converted files, sha256 by `identity`.
SOURCES = "sources.json"
#: A converted folder is called NAME-DIGITS.v2: the first 16 digits of the GGUF file's sha256, and the version of the conversion, which
#: counts up whenever the same file would be written in another way.
SUFFIX, DIGITS = ".v2", 16


def identity(files: tuple[Path, ...]) -> str:
    """A key of a GGUF file, or its shards, that is another when a file was replaced: JSON of path, size, mtime and inode of each."""
    stats = [(os.path.realpath(file), file.stat()) for file in files]
    return json.dumps([(place, stat.st_size, stat.st_mtime_ns, stat.st_ino) for place, stat in stats])


def sources(cache_dir: Path) -> dict[str, str]:
    """sha256 of the files that were converted, by `identity`; empty where the list is damaged, since it is only a cache."""
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
    """sha256 and paths of every file that was converted and is still what it was, where it was."""
    for key, digest in sources(cache_dir).items():
        with suppress(OSError, ValueError, TypeError, IndexError):
            files = tuple(Path(entry[0]) for entry in json.loads(key))
            if identity(files) == key:
                yield digest, files


def unused_folders(cache_dir: Path, before: float) -> Iterator[Path]:
    """Converted folders last used before a time (seconds since the epoch) whose GGUF file is still there to be converted again."""
    here = {digest[:DIGITS] for digest, _ in files_here(cache_dir)}
    for folder in sorted(cache_dir.glob("*.v[0-9]*")):  # earlier ways of writing one, too
        digest = folder.stem[-DIGITS:]
        if digest in here and folder.stat().st_mtime < before:
            yield folder


def unused_packages(packages: Path, cache_dir: Path, before: float) -> Iterator[Path]:
    """Models from the package index in ``packages``, and parts of unfinished fetches, last used before a time (as above).

    A model counts as used when it is fetched, and whenever its converted folder in ``cache_dir`` is used.
    """
    known = sources(cache_dir)
    for path in (*sorted(packages.glob("*.gguf")), *sorted(packages.glob(".*.parts"))):
        with suppress(OSError):  # another process is at it
            times = [path.stat().st_mtime, *(inside.stat().st_mtime for inside in path.rglob("*"))]
            if (digest := known.get(identity((path,)))) is not None:
                times += [folder.stat().st_mtime for folder in cache_dir.glob(f"*-{digest[:DIGITS]}{SUFFIX}")]
            if max(times) < before and not is_held(path.with_suffix(".lock")):
                yield path
