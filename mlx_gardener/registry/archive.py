"""Backup: projects, history and adapters in one file, which `restore` puts back.

The file is a plain tar archive of regular files: ``registry.sqlite3`` (a consistent snapshot by SQLite's backup), every
registered adapter's files under ``projects/NAME/adapters/VERSION/``, and last ``index.json``, with the format's version
and size and sha256 of every other member; an archive without it was cut off. Runs, their checkpoints and caches are not
in it. Format 1. It is written in a directory beside its place; what a backup that was killed left of that, the next one to
the same place deletes. Cost: reading and writing every byte once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from mlx_gardener.errors import ConfigError, RegistryError
from mlx_gardener.platform.beside import staged_beside
from mlx_gardener.platform.files import fsync_path, resolved
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.registry.adapter_files import MANIFEST_NAME, is_inner_name, read_manifest_file
from mlx_gardener.registry.database import DATABASE_NAME, Database
from mlx_gardener.registry.row_repair import bad_rows

INDEX_NAME = "index.json"
FORMAT = "mlx-gardener-backup"
FORMAT_VERSION = 1
#: An archive is begun anew when an adapter that it is to hold is removed meanwhile; after so many tries the backup fails. In a test in
#: which another process removed and registered an adapter without a pause, 5 tries were too few in one of some hundred backups.
_TRIES = 50

#: Told what is done next, for people.
Tell = Callable[[str], None]


def tell_nobody(text: str) -> None:
    """The `Tell` of callers that gave none."""


def backup(database: Database, file: Path, *, replace: bool, tell: Tell | None = None) -> int:
    """Write an archive, whole or not at all; trainings may go on meanwhile and are not in it.

    Args:
        file: its place, outside of the home.
        replace: whether a file that is there may be replaced.
        tell: called with what is written next.

    Returns:
        Its size in bytes.

    Raises:
        ConfigError: ``file`` exists, or lies in the home.
        RegistryError: an adapter is damaged, adapters are removed all the time, or something cannot be read or written.
    """
    file = Path(file).absolute()
    if resolved(file).is_relative_to(resolved(database.home)):
        raise ConfigError(
            f"{str(file)!r} lies in the registry's home.", next_step="Name a place outside of it."
        )
    if file.exists() and not replace:
        raise ConfigError(f"{str(file)!r} exists already.", next_step="Name a new file, or say --force.")
    bad = next(bad_rows(database), None)
    if bad is not None:
        raise RegistryError(
            bad.message, next_step="`mlx-gardener registry repair` puts it out of use; then back up again."
        )
    try:
        with staged_beside(file) as scratch:
            staged = scratch / file.name
            for attempt in range(_TRIES):
                if _write(database, staged, tell or tell_nobody, last=attempt == _TRIES - 1):
                    break
            size = staged.stat().st_size
            staged.replace(file)
            fsync_path(file.parent)
            return size
    except (OSError, sqlite3.Error) as error:
        raise RegistryError(
            f"The backup {str(file)!r} cannot be written ({reason_of(error)}).",
            next_step="Free disk space, or name another place.",
        ) from error


def _write(database: Database, staged: Path, tell: Tell, *, last: bool) -> bool:
    """One try; False when an adapter was removed meanwhile."""
    snapshot = staged.with_name(f"snapshot-{DATABASE_NAME}")
    snapshot.unlink(missing_ok=True)
    adapters = _snapshot(database, snapshot)
    index: dict[str, dict[str, Any]] = {}
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        _add(tar, DATABASE_NAME, snapshot, index)
        for directory, manifest_sha256 in adapters:
            tell(directory)
            wrong = _add_adapter(tar, database.home, directory, index) or _compare(
                index, directory, manifest_sha256
            )
            if not wrong:
                continue
            if not _is_registered(database, directory, manifest_sha256):
                if not last:
                    return False
                raise RegistryError(
                    f"Adapters are being removed all the time, lately {directory}, so no backup of one moment can be made.",
                    next_step="Try again when that is over.",
                )
            raise RegistryError(
                f"The adapter in {directory} is damaged ({wrong}), so it cannot be backed up.",
                next_step="`mlx-gardener registry repair` takes it out of use; then back up again.",
            )
        body = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": index,
        }
        content = json.dumps(body, indent=1, sort_keys=True).encode()
        tar.addfile(_member(INDEX_NAME, len(content)), io.BytesIO(content))
    fsync_path(staged)
    return True


def _snapshot(database: Database, target: Path) -> list[tuple[str, str]]:
    """Copy the database as it is at one moment; the directories and manifest hashes of its adapters."""
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        with database.read() as connection:
            connection.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute(
            "UPDATE trainings SET status = 'failed', phase = 'failed', finished_at = ?, pid = NULL, "
            "message = 'It was under way when this backup was made, which holds no runs.' "
            "WHERE finished_at IS NULL",
            (time.time(),),
        )
        copy.execute("UPDATE queue SET training_id = NULL, begun = 0")
        copy.execute("VACUUM")  # nothing of what was deleted
        rows = copy.execute("SELECT directory, manifest_sha256 FROM adapters ORDER BY directory").fetchall()
    return [(row[0], row[1]) for row in rows]


def _is_registered(database: Database, directory: str, manifest_sha256: str) -> bool:
    with database.settled() as connection:  # nobody is about to remove it
        question = "SELECT 1 FROM adapters WHERE directory = ? AND manifest_sha256 = ?"
        return connection.execute(question, (directory, manifest_sha256)).fetchone() is not None


def _add_adapter(tar: tarfile.TarFile, home: Path, directory: str, index: dict[str, dict[str, Any]]) -> str:
    """Add the manifest and what it names; what is wrong, empty where nothing is."""
    try:
        _, manifest = read_manifest_file(home / directory)
        names = list(manifest["files"])
        if not all(is_inner_name(name) for name in names):
            return "its manifest names files outside of it"
        for name in [MANIFEST_NAME, *names]:
            _add(tar, f"{directory}/{name}", home / directory / name, index)
            if (
                name != MANIFEST_NAME
                and index[f"{directory}/{name}"]["sha256"] != manifest["files"][name]["sha256"]
            ):
                return f"{name!r} is not the one that was written"
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        return reason_of(error)
    return ""


def _compare(index: dict[str, dict[str, Any]], directory: str, manifest_sha256: str) -> str:
    same = index[f"{directory}/{MANIFEST_NAME}"]["sha256"] == manifest_sha256
    return "" if same else f"{MANIFEST_NAME} is not the one that was written"


def _add(tar: tarfile.TarFile, name: str, path: Path, index: dict[str, dict[str, Any]]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as stream:
        size = os.fstat(descriptor).st_size
        reader = _Hashing(stream)
        tar.addfile(_member(name, size), reader)  # type: ignore[arg-type]  # takes whatever reads
    index[name] = {"sha256": reader.sha256.hexdigest(), "bytes": size}


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A member that says nothing of this machine or its user."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    return member


class _Hashing:
    """A file that hashes what is read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.sha256.update(data)
        return data
