"""A directory to write something in that is renamed to its place when it is whole, and that no crash leaves for ever.

`replace_file` does so for a single file of others, as an editor's settings.

It lies beside the place, locked by whoever writes; the next one with the same place deletes what nobody holds.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_gardener.platform.files import fsync_path, private
from mlx_gardener.platform.locks import hold, is_held

#: A directory is made a moment before it can be locked.
_YOUNG_SECONDS = 60.0


@contextmanager
def staged_beside(place: Path, *, mode: int = 0o700) -> Iterator[Path]:
    """A new directory beside ``place``, deleted with what is left in it when the block ends.

    Args:
        mode: its rights, as far as the umask lets them be.

    Raises:
        OSError: it cannot be made.
    """
    sweep_beside(place)
    staged = place.parent / f".{place.name}.{uuid.uuid4().hex[:8]}.new"
    staged.mkdir(mode=mode)
    try:
        with hold(staged):
            yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def sweep_beside(place: Path) -> None:
    """Delete what `left_beside` finds; what cannot be deleted is in nobody's way."""
    for leftover in left_beside(place):
        shutil.rmtree(leftover, ignore_errors=True)


def replace_file(place: Path, content: bytes, *, mode: int) -> None:
    """Write a file whole or not at all, with exactly the rights ``mode``; it is on disk when this returns.

    Raises:
        OSError: it cannot be written.
    """
    with staged_beside(place) as directory:
        staged = directory / "file"
        with open(staged, "wb", opener=private) as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        staged.chmod(mode)
        staged.replace(place)
        fsync_path(place.parent)


def left_beside(place: Path) -> list[Path]:
    """What writers of ``place`` that are gone have left beside it."""
    name = re.compile(re.escape(f".{place.name}.") + r"[0-9a-f]{8}\.new")
    found = sorted(path for path in place.parent.glob(".*.new") if name.fullmatch(path.name))
    return [
        path
        for path in found
        if path.is_dir() and not path.is_symlink() and not is_held(path) and not is_young(path)
    ]


def is_young(path: Path) -> bool:
    """Whether a directory is empty and may just have been made, to be locked in a moment; True where it is gone."""
    try:
        return not any(path.iterdir()) and time.time() - path.stat().st_mtime < _YOUNG_SECONDS
    except FileNotFoundError:
        return True
