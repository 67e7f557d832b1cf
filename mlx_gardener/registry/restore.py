"""Restoring an archive that `archive.backup` wrote, whole or not at all.

An archive may come from anywhere: nothing in it is believed. Sizes in headers, names, kinds, hashes, the database's schema,
every value of its rows and every path in it are compared with what this program writes before anything takes its place,
by a rename. Cost: reading and writing every byte once.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import tarfile
import time
import uuid
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any

from mlx_gardener.errors import ConfigError, RegistryError
from mlx_gardener.platform.beside import staged_beside
from mlx_gardener.platform.files import fsync_path, resolved
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import open_regular, parse_json
from mlx_gardener.registry.adapter_files import differences, is_inner_name, named_files
from mlx_gardener.registry.archive import FORMAT, FORMAT_VERSION, INDEX_NAME, Tell, tell_nobody
from mlx_gardener.registry.database import DATABASE_NAME, LOCK_NAME, alone
from mlx_gardener.registry.names import check_project_name
from mlx_gardener.registry.rows import TABLES, label, surrogates, wrong_in
from mlx_gardener.registry.schema import apply_migrations, newest_version, schema_of

_CHUNK_BYTES = 1 << 20
_MAX_INDEX_BYTES = 256 * 2**20
#: Long names are written in members of their own (PAX); no name of ours is longer than some file systems' 4096 bytes.
_MAX_NAME_BYTES = 1 << 16
_NAMES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MEMBER = re.compile(r"projects/([^/]+)/adapters/([^/]+)/(.+)")


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
    home = resolved(Path(home))
    in_use = home.exists() and any(path.name != LOCK_NAME for path in home.iterdir())
    if in_use and not replace:
        raise ConfigError(
            f"The home {home} is not empty.",
            next_step="With --replace it is moved aside; or name another one in MLX_GARDENER_HOME.",
        )
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with staged_beside(home) as staged:
            _extract(Path(file), staged, tell or tell_nobody)
            (tell or tell_nobody)("comparing the adapters with the database")
            _verify(staged)
            return _put_in_place(staged, home)
    except OSError as error:
        raise RegistryError(
            f"The backup {str(file)!r} cannot be restored ({reason_of(error)}).",
            next_step="Check its path, rights and disk space.",
        ) from error


def _damaged(what: str) -> RegistryError:
    return RegistryError(f"The backup cannot be restored: {what}.", next_step="Take another backup.")


def _extract(file: Path, staged: Path, tell: Tell) -> None:
    """Write the members below ``staged``, and compare them with the index."""
    index: dict[str, Any] | None = None
    written: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    try:
        _check_sizes(file)
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
                    index = parse_json(stream.read())
                    continue
                _check_name(member.name)
                tell(member.name)
                if member.size > shutil.disk_usage(staged).free:
                    raise OSError("there is no space for it on the disk")
                written[member.name] = _extract_one(stream, staged / member.name)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _damaged(f"it is damaged or no backup ({error})") from error
    if index is None:
        raise _damaged("it was cut off, its index is missing")
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise _damaged("it is no backup of mlx-gardener")
    if index.get("format_version") != FORMAT_VERSION:
        raise RegistryError("The backup was written by another version.", next_step="Update mlx-gardener.")
    if index.get("files") != written:
        raise _damaged("a file in it is not the one that was written")


def _check_sizes(file: Path) -> None:
    """Refuse headers that claim more than there is, before anybody tries to read or allocate that.

    Raises:
        RegistryError: one does.
        tarfile.TarError: one is none.
    """
    with open_regular(file) as stream:
        end = os.fstat(stream.fileno()).st_size
        while len(block := stream.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE and block.strip(b"\0"):
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if not 0 <= header.size <= end - stream.tell():
                raise _damaged(f"{header.name!r} claims {header.size:,} bytes, which it has not")
            if header.type in _NAMES and header.size > _MAX_NAME_BYTES:
                raise _damaged(f"a name in it claims {header.size:,} bytes")
            stream.seek(-(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, os.SEEK_CUR)


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
            connection.row_factory, connection.text_factory = sqlite3.Row, surrogates
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
            for table in TABLES:
                for row in connection.execute(f"SELECT * FROM {table}"):
                    if wrong := wrong_in(table, row):
                        raise _damaged(
                            f"its database has a row of another kind ({label(table, row)}: {wrong})"
                        )
            adapters = connection.execute("SELECT * FROM adapters").fetchall()
    except (sqlite3.Error, TypeError) as error:
        raise _damaged(f"its database is damaged ({error})") from error
    _verify_files(staged, adapters)
    for directory in [*(item for item in staged.rglob("*") if item.is_dir()), staged]:
        fsync_path(directory)


def _verify_files(staged: Path, adapters: list[sqlite3.Row]) -> None:
    """The files are those of the rows, and every one is what its manifest says; there is no other."""
    known = {row["directory"] for row in adapters}
    there = {path.relative_to(staged).as_posix() for path in staged.glob("projects/*/adapters/*")}
    if known != there:
        raise _damaged("its files are not those of its database")
    for row in adapters:
        wrong = differences(staged / row["directory"], row["manifest_sha256"])
        if wrong:
            raise _damaged(f"in {row['directory']}, {wrong[0]}")
        directory = staged / row["directory"]
        found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
        if unnamed := sorted(found - named_files(directory)):
            raise _damaged(f"no manifest names {row['directory']}/{unnamed[0]}")


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
