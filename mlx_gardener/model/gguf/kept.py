"""Folders that GGUF files were read into: found again, and told from those that can go.

In: the directory of such folders. Out: the folder of a file, by its place, size and time where it was read before, else by
its sha256. A folder's time is that of its last use. Cost: a small file is read; a sha256 takes a second a gigabyte or two.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlx_gardener.model.gguf.reader import Gguf, shards_of
from mlx_gardener.platform.files import write_private
from mlx_gardener.platform.untrusted import read_json

#: In a folder: what it was read from.
SOURCE_NAME = "gguf.json"
#: In the cache: held by whoever reads a file, and how the folder begins that he writes.
LOCK_NAME, STAGED = ".reading.lock", ".reading-"
#: In the cache: sha256 of files that were read.
_SOURCES = "sources.json"
#: Ends a folder's name, after digits of the source's sha256; another number when the same file is written in another way.
_SUFFIX, _DIGITS = ".v1", 16


def source_of(folder: Path) -> str | None:
    """What a folder that `read_gguf` wrote is called for people: its source's name; None for every other folder."""
    try:
        name = read_json(folder / SOURCE_NAME)["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


def folder_name(name: str, digest: str) -> str:
    """What the folder of a file of that name and sha256 is called."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name.removesuffix(".gguf")).strip("-.")[:60] or "model"
    return f"{stem}-{digest[:_DIGITS]}{_SUFFIX}"


def known_folder(path: Path, cache_dir: Path) -> Path | None:
    """The folder of a file that was read before and has not changed since, by place, size and time; nothing of it is read."""
    try:
        files = shards_of(path)
        digest = _sources(cache_dir).get(identity(files))
    except OSError:
        return None
    folder = None if digest is None else _folder_of(cache_dir, digest)
    if folder is not None:
        with suppress(OSError):  # a home that may only be read
            os.utime(folder)
    return folder


def found_folder(gguf: Gguf, cache_dir: Path) -> Path | None:
    """The folder of a file that was read before, maybe in another place."""
    from mlx_gardener.model.gguf.write import sha256_of

    if not any(cache_dir.glob(f"*{_SUFFIX}")):
        return None
    digest = sha256_of(gguf.files)
    folder = _folder_of(cache_dir, digest)
    if folder is not None:
        note_source(gguf.files, cache_dir, digest)
    return folder


def _folder_of(cache_dir: Path, digest: str) -> Path | None:
    return next(iter(cache_dir.glob(f"*-{digest[:_DIGITS]}{_SUFFIX}")), None)


def identity(files: tuple[Path, ...]) -> str:
    """What changes when a file is another one: place, size, time of the last change, and number on the disk."""
    stats = [(str(file.resolve()), file.stat()) for file in files]
    return json.dumps([(place, stat.st_size, stat.st_mtime_ns, stat.st_ino) for place, stat in stats])


def _sources(cache_dir: Path) -> dict[str, str]:
    """sha256 of files that were read, by `identity`; empty where the list is damaged, since it is only a cache."""
    try:
        found = read_json(cache_dir / _SOURCES)
    except (OSError, ValueError):
        return {}
    return (
        {key: value for key, value in found.items() if isinstance(value, str)}
        if isinstance(found, dict)
        else {}
    )


def note_source(files: tuple[Path, ...], cache_dir: Path, digest: str) -> None:
    """Remember the sha256 of what was read, for `known_folder`.

    Raises:
        OSError: it cannot be written.
    """
    beside = cache_dir / f".{_SOURCES}"
    write_private(beside, json.dumps(_sources(cache_dir) | {identity(files): digest}, indent=1))
    beside.replace(cache_dir / _SOURCES)


def unused_folders(cache_dir: Path, before: float) -> Iterator[Path]:
    """Folders that were last used before a time, and whose file is still where it was: it can be read again."""
    here = set()
    for key, digest in _sources(cache_dir).items():
        with suppress(OSError, ValueError, TypeError, IndexError):
            if identity(tuple(Path(entry[0]) for entry in json.loads(key))) == key:
                here.add(digest[:_DIGITS])
    for folder in sorted(cache_dir.glob(f"*{_SUFFIX}")):
        digest = folder.name.removesuffix(_SUFFIX)[-_DIGITS:]
        if digest in here and folder.stat().st_mtime < before:
            yield folder
