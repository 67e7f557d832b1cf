"""Files that must be there after a power cut, and files that only their owner may read.

What quotes source (logs, journals, caches, checkpoints, adapters, reports) is made 0600 in directories of 0700, whatever
the umask; what a user exports follows the umask.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from mlx_gardener.errors import DataError
from mlx_gardener.platform.reasons import reason_of


def resolved(path: Path) -> Path:
    """``path`` in full, with links followed; what is not there (yet) may be named.

    Raises:
        DataError: it is, or lies behind, a symbolic link that leads back to itself; or no file can be called so.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        # Python up to 3.12 says RuntimeError of a loop; ValueError is a NUL.
        loops = isinstance(error, RuntimeError) or getattr(error, "errno", None) == errno.ELOOP
        why = "it is a symbolic link that leads back to itself" if loops else reason_of(error)
        raise DataError(f"{str(path)!r} leads nowhere ({why}).", next_step="Name another place.") from error


def path_of_address(sent: str) -> str:
    """The path that a ``file://`` address names, of whatever host; anything else as it is."""
    if not sent.startswith("file://"):
        return sent
    _, _, path = sent.removeprefix("file://").partition("/")  # a host's name may stand before it
    return unquote(f"/{path}")


def expanded(path: str | Path) -> Path:
    """``path`` with ``~`` as the user's home; that of a user who does not exist stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's own raises for such a user


def is_directory(path: Path) -> bool:
    """Whether there is a directory; what may not be looked at, or no file can be called, is none (`Path.is_dir` raises)."""
    try:
        return path.is_dir()
    except OSError:
        return False


def existing_directory(path: Path, next_step: str = "Name the root directory of a repository.") -> Path:
    """A directory that was named, in full.

    Raises:
        DataError: there is no such directory, or it cannot be looked at.
    """
    place = resolved(path)
    try:
        is_there, is_directory = place.exists(), place.is_dir()
    except OSError as error:  # a name that no file can have, a directory that may not be entered
        raise DataError(
            f"{str(path)[:200]!r} cannot be looked at ({reason_of(error)}).", next_step=next_step
        ) from error
    if not is_directory:
        what = "is not a directory" if is_there else "does not exist"
        raise DataError(f"{str(path)!r} {what}.", next_step=next_step)
    return place


def fsync_path(path: Path) -> None:
    """Ask the system to put a file or directory on disk before going on.

    Raises:
        OSError: it cannot be opened or written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private(directory: Path) -> None:
    """Make ``directory`` and all missing ones above it, each 0700; those that exist stay as they are.

    Raises:
        OSError: one cannot be made, or is a file.
    """
    missing = []
    for path in (directory, *directory.parents):
        if path.is_dir():
            break
        missing.append(path)
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)  # another process may have been faster


def private(path: str, flags: int) -> int:
    """An opener (``open(file, "w", opener=private)``) whose new files are 0600."""
    return os.open(path, flags, 0o600)


def write_private(file: Path, content: str | bytes) -> None:
    """Write a file of 0600, also where one of other rights lay.

    Raises:
        OSError: it cannot be written.
    """
    with open(file, "wb", opener=private) as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(content.encode() if isinstance(content, str) else content)


def write_whole(place: Path, content: str | bytes, *, lasting: bool = True) -> None:
    """Write a file of 0600 beside its place and rename it there: whoever reads it sees the old one or the new one, whole.

    Writers that are killed leave ``.NAME.PID.new`` (`registry.remnants`).

    Args:
        lasting: whether it must be there after a power cut; it then is on disk when this returns.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    staged = place.with_name(f".{place.name}.{os.getpid()}.new")
    try:
        write_private(staged, content)
        if lasting:
            fsync_path(staged)
        staged.replace(place)
        if lasting:
            fsync_path(place.parent)
    except OSError:
        with suppress(OSError):  # the first error is the one to tell
            staged.unlink(missing_ok=True)
        raise


def make_tree_private(directory: Path) -> None:
    """Give ``directory`` and everything in it back to the owner alone: files 0600, directories 0700.

    Raises:
        OSError: the rights of one cannot be changed.
    """
    directory.chmod(0o700)
    for path in directory.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
