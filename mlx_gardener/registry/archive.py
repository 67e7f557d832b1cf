"""Backup and restore: projects, history and adapters in one file.

The file is a plain tar archive of regular files: ``registry.sqlite3`` (a consistent snapshot by SQLite's backup), every
registered adapter's files under ``projects/NAME/adapters/VERSION/``, and last ``index.json``, with the format's version
and size and sha256 of every other member; an archive without it was cut off. Runs, their checkpoints and caches are not
in it. Format 1; a newer one is refused. Cost: reading and writing every byte once, and a second time on disk.

An archive may come from anywhere: nothing in it is believed. Names, kinds, hashes, the database's schema and every path
in it are compared with what this program writes before anything takes its place, by a rename.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mlx_gardener.errors import ConfigError, GardenerError, RegistryError
from mlx_gardener.platform.files import fsync_path
from mlx_gardener.platform.locks import hold, is_held
from mlx_gardener.registry.adapter_files import MANIFEST_NAME, differences, is_inner_name
from mlx_gardener.registry.database import (
    DATABASE_NAME,
    LOCK_NAME,
    Database,
    alone,
    apply_migrations,
    newest_version,
    schema_of,
)
from mlx_gardener.registry.names import check_project_name

if TYPE_CHECKING:
    from mlx_gardener.registry.registry import ProjectRegistry

INDEX_NAME = "index.json"
FORMAT = "mlx-gardener-backup"
FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 20
_MAX_INDEX_BYTES = 256 * 2**20
_MEMBER = re.compile(r"projects/([^/]+)/adapters/([^/]+)/(.+)")
#: Adapters may be removed while an archive is written: so often it is begun anew.
_TRIES = 5

Tell = Callable[[str], None]


def _no_words(text: str) -> None:
    """Nobody listens."""


def backup(
    registry: ProjectRegistry, database: Database, file: Path, *, replace: bool, tell: Tell | None = None
) -> int:
    """Write an archive, whole or not at all; trainings may go on meanwhile and are not in it.

    Args:
        file: its place, outside of the home.
        replace: whether a file that is there may be replaced.
        tell: called with what is written next.

    Returns:
        Its size in bytes.

    Raises:
        ConfigError: ``file`` exists, or lies in the home.
        RegistryError: an adapter is damaged, or something cannot be read or written.
    """
    file = Path(file).absolute()
    if file.resolve().is_relative_to(registry.home.resolve()):
        raise ConfigError(
            f"{str(file)!r} lies in the registry's home.", next_step="Name a place outside of it."
        )
    if file.exists() and not replace:
        raise ConfigError(f"{str(file)!r} exists already.", next_step="Name a new file, or say --force.")
    staged = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        for attempt in range(_TRIES):
            if _write(registry, database, staged, tell or _no_words, last=attempt == _TRIES - 1):
                break
        size = staged.stat().st_size
        staged.replace(file)
        fsync_path(file.parent)
        return size
    except (OSError, sqlite3.Error) as error:
        raise RegistryError(
            f"The backup {str(file)!r} cannot be written ({error}).",
            next_step="Free disk space, or name another place.",
        ) from error
    finally:
        staged.unlink(missing_ok=True)


def _write(registry: ProjectRegistry, database: Database, staged: Path, tell: Tell, *, last: bool) -> bool:
    """One try; False when an adapter was removed meanwhile."""
    with tempfile.TemporaryDirectory(prefix="mlx-gardener-") as scratch:
        snapshot = Path(scratch) / DATABASE_NAME
        adapters = _snapshot(database, snapshot)
        index: dict[str, dict[str, Any]] = {}
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            _add(tar, DATABASE_NAME, snapshot, index)
            for directory, manifest_sha256 in adapters:
                tell(directory)
                wrong = _add_adapter(tar, registry.home, directory, index) or _compare(
                    index, directory, manifest_sha256
                )
                if not wrong:
                    continue
                if not last and not _is_registered(database, directory, manifest_sha256):
                    return False
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
    with database.write() as connection:  # nobody is about to remove it
        question = "SELECT 1 FROM adapters WHERE directory = ? AND manifest_sha256 = ?"
        return connection.execute(question, (directory, manifest_sha256)).fetchone() is not None


def _add_adapter(tar: tarfile.TarFile, home: Path, directory: str, index: dict[str, dict[str, Any]]) -> str:
    """Add the manifest and what it names; what is wrong, empty where nothing is."""
    try:
        manifest = json.loads((home / directory / MANIFEST_NAME).read_text(encoding="utf-8"))
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
        return str(error)
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


def restore(file: Path, home: Path, *, replace: bool = False, tell: Tell | None = None) -> Path | None:
    """Put the registry of an archive at ``home``, whole or not at all.

    Args:
        replace: whether a home that is in use may be replaced; it is kept beside, under another name.
        tell: called with what is done next.

    Returns:
        Where the replaced home is now; None where there was none.

    Raises:
        ConfigError: ``home`` is not empty, and ``replace`` is off.
        RegistryError: the archive is damaged or not one of ours, somebody uses the registry, or it cannot be written.
            ``home`` is as it was.
    """
    home = Path(home).resolve()
    in_use = home.exists() and any(path.name != LOCK_NAME for path in home.iterdir())
    if in_use and not replace:
        raise ConfigError(
            f"The home {home} is not empty.",
            next_step="With --replace it is moved aside; or name another one in MLX_GARDENER_HOME.",
        )
    staged = home.parent / f".{home.name}.restore-{uuid.uuid4().hex[:8]}"
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        staged.mkdir(mode=0o700)
        with hold(staged):
            _extract(Path(file), staged, tell or _no_words)
            (tell or _no_words)("comparing the adapters with the database")
            _verify(staged)
            return _put_in_place(staged, home)
    except OSError as error:
        raise RegistryError(
            f"The backup {str(file)!r} cannot be restored ({error}).",
            next_step="Check its path, rights and disk space.",
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _sweep(home: Path) -> None:
    """Delete what a restore that was killed left beside."""
    for leftover in home.parent.glob(f".{home.name}.restore-*"):
        if leftover.is_dir() and not is_held(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _damaged(what: str) -> RegistryError:
    return RegistryError(f"The backup cannot be restored: {what}.", next_step="Take another backup.")


def _extract(file: Path, staged: Path, tell: Tell) -> None:
    """Write the members below ``staged``, and compare them with the index."""
    index: dict[str, Any] | None = None
    written: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    try:
        with tarfile.open(file, mode="r:") as tar:
            for member in tar:
                if index is not None:
                    raise _damaged(f"{member.name!r} comes after the index")
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                    raise _damaged(f"{member.name!r} is no regular file")
                if member.name.casefold() in seen:
                    raise _damaged(f"{member.name!r} is in it twice")
                seen.add(member.name.casefold())
                stream = tar.extractfile(member)
                assert stream is not None
                if member.name == INDEX_NAME:
                    if member.size > _MAX_INDEX_BYTES:
                        raise _damaged("its index is too large")
                    index = json.loads(stream.read())
                    continue
                _check_name(member.name)
                tell(member.name)
                if member.size > shutil.disk_usage(staged).free:
                    raise OSError("there is no space for it on the disk")
                written[member.name] = _extract_one(stream, staged / member.name)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise _damaged(f"it is damaged or no backup ({error})") from error
    if index is None:
        raise _damaged("it was cut off, its index is missing")
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise _damaged("it is no backup of mlx-gardener")
    if index.get("format_version") != FORMAT_VERSION:
        raise RegistryError("The backup was written by another version.", next_step="Update mlx-gardener.")
    if index.get("files") != written:
        raise _damaged("a file in it is not the one that was written")


def _check_name(name: str) -> None:
    if name == DATABASE_NAME:
        return
    match = _MEMBER.fullmatch(name)
    try:
        if match is None or not is_inner_name(name):
            raise ConfigError("")
        check_project_name(match[1])
        check_project_name(match[2])  # versions are made of the same characters
    except ConfigError:
        raise _damaged(f"{name!r} has no place in a registry") from None


def _extract_one(stream: IO[bytes], path: Path) -> dict[str, Any]:
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(mode=0o700)
    size, sha256 = 0, hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        while chunk := stream.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size += len(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(descriptor)
    return {"sha256": sha256.hexdigest(), "bytes": size}


def _verify(staged: Path) -> None:
    """Compare the database with what this program writes, and every adapter with the database."""
    path = staged / DATABASE_NAME
    if not path.is_file():
        raise _damaged("it has no database")
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA trusted_schema = OFF")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > newest_version():
                raise RegistryError(
                    "The backup was written by a newer version of mlx-gardener.",
                    next_step="Update mlx-gardener.",
                )
            with closing(sqlite3.connect(":memory:")) as ours:
                apply_migrations(ours, upto=version)
                if schema_of(connection) != schema_of(ours):
                    raise _damaged("its database has another schema")
            if [row[0] for row in connection.execute("PRAGMA integrity_check(1)")] != ["ok"]:
                raise _damaged("its database is damaged")
            if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
                raise _damaged("its database is damaged")
            connection.execute("BEGIN")
            apply_migrations(connection)
            connection.execute("COMMIT")
            adapters = connection.execute("SELECT * FROM adapters").fetchall()
            runs = connection.execute("SELECT project, run_dir FROM trainings").fetchall()
            names = [row["name"] for row in connection.execute("SELECT name FROM projects")]
    except (sqlite3.Error, TypeError) as error:
        raise _damaged(f"its database is damaged ({error})") from error
    _verify_rows(staged, names, adapters, runs)
    for directory in [*(item for item in staged.rglob("*") if item.is_dir()), staged]:
        fsync_path(directory)


def _verify_rows(
    staged: Path, names: list[Any], adapters: list[sqlite3.Row], runs: list[sqlite3.Row]
) -> None:
    """Every path that the database names is one that the registry itself would have made."""
    try:
        for name in names:
            check_project_name(name)
        for row in runs:
            _, _, run = str(row["run_dir"]).rpartition("/")
            check_project_name(run)
            if row["run_dir"] != f"projects/{row['project']}/runs/{run}":
                raise ConfigError("")
        for row in adapters:
            check_project_name(row["version"])
            if row["directory"] != f"projects/{row['project']}/adapters/{row['version']}":
                raise ConfigError("")
    except (GardenerError, TypeError) as error:
        raise _damaged("its database names a place outside of the home") from error
    known = {row["directory"] for row in adapters}
    there = {path.relative_to(staged).as_posix() for path in staged.glob("projects/*/adapters/*")}
    if known != there:
        raise _damaged("its files are not those of its database")
    for row in adapters:
        wrong = differences(staged / row["directory"], row["manifest_sha256"])
        if wrong:
            raise _damaged(f"in {row['directory']}, {wrong[0]}")


def _put_in_place(staged: Path, home: Path) -> Path | None:
    if not home.exists():
        staged.rename(home)
        fsync_path(home.parent)
        return None
    with ExitStack() as stack:
        stack.enter_context(alone(home))
        aside = home.with_name(
            f"{home.name}.replaced-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        )
        home.rename(aside)
        try:
            staged.rename(home)
        except OSError:
            aside.rename(home)
            raise
        fsync_path(home.parent)
    if [path.name for path in aside.iterdir()] == [LOCK_NAME]:
        shutil.rmtree(aside)
        return None
    return aside
