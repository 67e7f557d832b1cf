"""The SQLite file: one connection per thread, and transactions that retry while others write.

WAL lets readers and one writer work at once; ``synchronous=NORMAL`` loses at most the last progress rows in a power
cut and never damages the file (https://www.sqlite.org/wal.html). A committed write takes about 0.1 ms.

Whoever has the file open shares a lock on ``registry.lock``; who puts another file in its place (`alone`) has to have it
alone, as SQLite's log would else be mixed up with the new file's (https://www.sqlite.org/howtocorrupt.html, 2.4).
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_gardener.errors import RegistryError, RegistryUnavailableError
from mlx_gardener.platform.locks import take_lock
from mlx_gardener.registry.rows import surrogates
from mlx_gardener.registry.scarcity import keep_reserve, open_read_only
from mlx_gardener.registry.schema import apply_migrations, newest_version

DATABASE_NAME = "registry.sqlite3"
LOCK_NAME = "registry.lock"
BUSY_TIMEOUT_SECONDS = 5.0
#: The file is opened by other means than SQLite only before anybody in this process uses it: closing any descriptor of a
#: file drops all of a process's locks on it, after which another process takes the log away under its connections
#: (https://www.sqlite.org/howtocorrupt.html, 2.2).
_creation = threading.Lock()
#: What SQLite says where tables or columns are not those that `schema` makes.
_OTHER_SCHEMA = re.compile(r"no such (table|column)|(table|index) \w+ already exists|\w+ has \d+ columns but")


def is_damage(error: BaseException | None) -> bool:
    """Whether an error says that the file's content is not what SQLite wrote."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    return (
        code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or _OTHER_SCHEMA.match(str(error)) is not None
    )


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Have the registry of ``home`` to oneself: nobody, this process included, has its file open meanwhile.

    Raises:
        RegistryError: somebody has.
    """
    lock = _lock_file(home)
    descriptor = take_lock(lock)
    if descriptor is None:
        raise RegistryError(
            f"Another program has the registry in {home} open.",
            next_step="End trainings, notebooks and services that use it, then try again.",
        )
    try:
        yield
    finally:
        os.close(descriptor)


def _lock_file(home: Path) -> Path:
    """Where the lock is; where it can neither be found nor made (a read-only home), its directory stands in for it."""
    lock = home / LOCK_NAME
    try:
        if not lock.exists():
            os.close(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        if not (home / DATABASE_NAME).exists():
            raise
        return home
    return lock


def _when_free(connection: sqlite3.Connection, statement: str, seconds: float) -> None:
    """Execute a statement for which the file has to be free, again and again while it is not, for so many seconds in all."""
    until = time.monotonic() + seconds
    try:
        connection.execute(statement)
        return
    except sqlite3.Error as error:
        if not _is_busy(error) or time.monotonic() >= until:
            raise
    # It brings asyncio along, which every command would wait for.
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    Retrying(
        retry=retry_if_exception(_is_busy),
        stop=stop_after_delay(until - time.monotonic()),
        wait=wait_random_exponential(multiplier=0.002, max=0.1),
        reraise=True,
    )(connection.execute, statement)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))


def _is_of_the_disk(error: BaseException) -> bool:
    """Whether the system refused something; another time it may not."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    refused = (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    )
    return code in refused or "disk is full" in str(error)


class Database:
    """Connections to one registry file; safe to share between threads, and after a fork.

    Args:
        home: its directory; made (0700) on first use.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / DATABASE_NAME
        self._local = threading.local()
        self._gate_lock = threading.Lock()
        self._gate: tuple[int, weakref.finalize[[int], Database]] | None = (
            None  # process, and what opens it again
        )

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries.

        Raises:
            RegistryError: the file cannot be opened or read.
        """
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise self._explain(error) from error

    @contextmanager
    def write(self, *, patience_seconds: float = BUSY_TIMEOUT_SECONDS) -> Iterator[sqlite3.Connection]:
        """One transaction: committed when the block ends, undone when it raises.

        Args:
            patience_seconds: how long others may write first.

        Raises:
            RegistryUnavailableError: others wrote for so long, or the disk takes nothing at the moment.
            RegistryError: the file cannot be opened or written.
        """
        try:
            if self.is_read_only:
                self._close()  # it may be otherwise by now; else this raises
            connection = self._connection(to_write=True)
            connection.execute(f"PRAGMA busy_timeout = {round(patience_seconds * 1000)}")
            _when_free(connection, "BEGIN IMMEDIATE", patience_seconds)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # where the disk was full, SQLite may have undone it by itself
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._explain(error) from error

    @contextmanager
    def settled(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries while no transaction of others is under way; where nothing can be written, there is none.

        Raises:
            RegistryError: the file cannot be read.
        """
        with self.read() as connection:
            read_only = self.is_read_only
            if read_only:
                yield connection
        if not read_only:
            with self.write() as connection:
                yield connection

    @property
    def is_read_only(self) -> bool:
        """Whether the calling thread's connection can only read: home read-only, or disk full."""
        return getattr(self._local, "connection", None) is not None and bool(self._local.read_only)

    def _connection(self, *, to_write: bool = False) -> sqlite3.Connection:
        cached = getattr(self._local, "connection", None)
        if cached is not None and self._local.pid == os.getpid():
            connection: sqlite3.Connection = cached
            return connection
        first = self._enter()
        try:
            return self._open(to_write=to_write)
        except BaseException:
            if first:
                self.leave()
            raise

    def _enter(self) -> bool:
        """Say that this process has the file open; whether it was not said before."""
        with self._gate_lock:
            if self._gate is not None and self._gate[0] == os.getpid():
                return False
            try:
                self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = _lock_file(self.home)
                descriptor = take_lock(lock, shared=True, wait_seconds=BUSY_TIMEOUT_SECONDS)
                if descriptor is not None and not _is_at(descriptor, lock):
                    os.close(descriptor)  # another home was put in its place while this one waited
                    descriptor = take_lock(_lock_file(self.home), shared=True)
                with _creation:
                    if descriptor is not None and not self.path.exists():
                        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
                keep_reserve(self.home)
            except OSError as error:
                raise RegistryError(
                    f"The registry {self.path} cannot be opened ({error.strerror}).",
                    next_step="Make the directory writable, or name another one in MLX_GARDENER_HOME.",
                ) from error
            if descriptor is None:
                raise RegistryError(
                    f"The registry {self.path} is being replaced.",
                    next_step="Try again when `mlx-gardener registry restore` or `repair` has ended.",
                )
            self._gate = (os.getpid(), weakref.finalize(self, os.close, descriptor))
            return True

    def leave(self) -> None:
        """Say that nobody uses this object's connections any more; the calling thread's is closed."""
        self._close()
        with self._gate_lock:
            gate, self._gate = self._gate, None
        if gate is not None and gate[0] == os.getpid():
            gate[1]()

    def _close(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None and self._local.pid == os.getpid():
            connection.close()
        self._local.connection = None

    def _open(self, *, to_write: bool) -> sqlite3.Connection:
        try:
            connection, read_only = self._open_file(), False
        except sqlite3.OperationalError as error:
            found = None if to_write or not _is_of_the_disk(error) else open_read_only(self.path)
            if found is None:
                raise
            connection, read_only = found, True
        connection.row_factory, connection.text_factory = sqlite3.Row, surrogates
        if not read_only:
            self._migrate(connection)
        elif connection.execute("PRAGMA user_version").fetchone()[0] != newest_version():
            raise RegistryError(
                f"The registry {self.path} is of another version, and cannot be brought up to date where it is.",
                next_step="Make the directory writable, or free disk space.",
            )
        self._local.connection, self._local.pid = connection, os.getpid()
        self._local.read_only = read_only
        return connection

    def _open_file(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
        # It needs the file for a moment, and does not wait by itself.
        _when_free(connection, "PRAGMA journal_mode = WAL", BUSY_TIMEOUT_SECONDS)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(
            "SELECT count(*) FROM sqlite_master"
        ).fetchone()  # where it cannot be read, that is said now
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > newest_version():
            raise RegistryError(
                f"The registry {self.path} was written by a newer version of mlx-gardener.",
                next_step="Update mlx-gardener, or name another directory in MLX_GARDENER_HOME.",
            )
        if version == newest_version():
            return
        if version < 0:
            raise sqlite3.DatabaseError(f"no such table as version {version} of the schema had")
        connection.execute("BEGIN IMMEDIATE")
        try:
            apply_migrations(connection)  # another process may have been faster, and left nothing to do
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _explain(self, error: sqlite3.Error) -> RegistryError:
        if _is_busy(error):
            return RegistryUnavailableError(
                f"The registry {self.path} was busy for {BUSY_TIMEOUT_SECONDS:g} seconds.",
                next_step="Try again; if it stays so, look for a hanging process that uses it.",
            )
        if is_damage(error):
            what = "no database any more" if "not a database" in str(error) else "damaged"
            return RegistryError(
                f"The registry {self.path} is {what} ({error}).",
                next_step="`mlx-gardener registry repair` saves what can be read; the adapters' files are still there.",
            )
        kind = RegistryUnavailableError if _is_of_the_disk(error) else RegistryError
        return kind(
            f"The registry {self.path} cannot be used: {error}.",
            next_step=f"Check its rights, or free disk space: `{self.home / 'cache'}` may be deleted.",
        )


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
