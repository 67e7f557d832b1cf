"""Folders that GGUF files were converted into, found again: a file is converted once (`read_gguf`), wherever it lies later.

In: a GGUF file and the directory of such folders (``cache/bases``; `platform.read_folders` says what is in it). Out: the file's
folder, by path, size and time where the list knows them, else by sha256. A folder's mtime is that of its last use. Cost: a small
file is read; a sha256 takes a second a gigabyte or two.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from mlx_gardener.model.gguf.reader import Gguf, shards_of
from mlx_gardener.platform.files import write_whole
from mlx_gardener.platform.read_folders import DIGITS, SOURCES, SUFFIX, files_here, identity, sources
from mlx_gardener.platform.untrusted import read_json

#: In a folder: what it was read from.
SOURCE_NAME = "gguf.json"


def source_of(folder: Path) -> str | None:
    """What a folder that `read_gguf` wrote is called for people: its source's name; None for every other folder."""
    return _noted(folder, "name")


def source_sha256(folder: Path) -> str | None:
    """sha256 of the file that `read_gguf` wrote a folder from; None for every other folder."""
    return _noted(folder, "sha256")


def source_files(folder: Path) -> tuple[Path, ...] | None:
    """The file that `read_gguf` wrote a folder from, or its shards; None where it is not there any more, or changed."""
    digest = source_sha256(folder)
    return next((files for known, files in files_here(folder.parent) if known == digest), None)


def _noted(folder: Path, key: str) -> str | None:
    try:
        found = read_json(folder / SOURCE_NAME)[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def folder_name(name: str, digest: str) -> str:
    """What the folder of a file of that name and sha256 is called."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name.removesuffix(".gguf")).strip("-.")[:60] or "model"
    return f"{stem}-{digest[:DIGITS]}{SUFFIX}"


def known_folder(path: Path, cache_dir: Path) -> Path | None:
    """The folder of a file that the list knows and that has not changed since; nothing of the file is read. Marks it as used."""
    try:
        files = shards_of(path)
        digest = sources(cache_dir).get(identity(files))
    except OSError:
        return None
    folder = None if digest is None else _folder_of(cache_dir, digest)
    if folder is not None:
        with suppress(OSError):  # a home that may only be read
            os.utime(folder)
    return folder


def found_folder(gguf: Gguf, cache_dir: Path) -> Path | None:
    """The folder of a file by its sha256: it was converted before, in another place or under another name, which is noted."""
    from mlx_gardener.model.gguf.write import sha256_of

    if not any(cache_dir.glob(f"*{SUFFIX}")):
        return None
    digest = sha256_of(gguf.files)
    folder = _folder_of(cache_dir, digest)
    if folder is not None:
        note_source(gguf.files, cache_dir, digest)
    return folder


def _folder_of(cache_dir: Path, digest: str) -> Path | None:
    return next(iter(cache_dir.glob(f"*-{digest[:DIGITS]}{SUFFIX}")), None)


def note_source(files: tuple[Path, ...], cache_dir: Path, digest: str) -> None:
    """Remember the sha256 of what was read, for `known_folder`.

    Raises:
        OSError: it cannot be written.
    """
    known = sources(cache_dir) | {identity(files): digest}
    write_whole(cache_dir / SOURCES, json.dumps(known, indent=1), lasting=False)
