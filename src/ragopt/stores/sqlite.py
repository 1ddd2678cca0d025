"""The on-disk layer: one SQLite file that threads and processes share."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from ragopt._forks import fork_safe
from ragopt._runtime import Runtime
from ragopt.errors import BackendUnavailable, CorruptData, StorageError
from ragopt.protocols import ChangeLog, Clock, Entry
from ragopt.stores import _sqlite_claims as claims
from ragopt.stores.coordinating import CLAIM
from ragopt.stores.sealed import SealedStore

T = TypeVar("T")

_APPLICATION_ID = 0x7261676F  # "rago", so that somebody else's database is never written to
_SCHEMA_VERSION = 1
_CHUNK = 500  # keys in one statement; SQLite admits 999 and more
_PURGE_EVERY = 256  # write calls between two looks for expired rows


class SqliteStore(SealedStore):
    """Bytes in one file, kept over restarts.

    The file is opened at the first use, in WAL mode: readers and a writer do not wait for each
    other. Every value carries a checksum; one that fails is an absent entry.

    Args:
        path: The file; missing folders are made, for this user alone.
        max_bytes: Bound on the data. Above it the expired entries go, then the oldest.
        timeout: Seconds to wait for another process's write lock.
        secret: At least 16 bytes that sign the entries, so that who can write to the file but
            does not know them cannot plant a value; several as in ``RedisStore``. With a secret,
            entries that are not signed with it are absent; without, signed entries are.
        clock: Seconds since the epoch.

    Raises:
        InvalidInput: A secret is too short.
        StorageError: From every operation: the file is no database or another program's, the
            disk is full, the folder cannot be written. The sentence says which.
        BackendUnavailable: Another process held the write lock for longer than ``timeout``.
    """

    name = "sqlite"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 2**30,
        timeout: float = 0.5,
        secret: bytes | Sequence[bytes] | None = None,
        clock: Clock = time.time,
    ) -> None:
        super().__init__(secret=secret, clock=clock)
        self.path = Path(path).expanduser()
        self.max_bytes = max_bytes
        self.evictions = 0
        """How many entries this process removed before their time, to make room for others."""
        self.timeout = timeout
        self._lock = fork_safe(RLock())
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._writes = 0
        self._session = _Session(self)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file and of the log of writes beside it; 0 before the first use."""
        try:
            files = self.path, Path(f"{self.path}-wal")
            return sum(file.stat().st_size for file in files if file.exists())
        except OSError:  # removed just now, or in a folder that cannot be read
            return 0

    async def _get_many(self, io: Runtime, keys: Sequence[bytes]) -> list[Entry | None]:
        return await io.cpu(self._read, keys) if keys else []

    async def _set_many(
        self, io: Runtime, items: Mapping[bytes, bytes], expires_at: float | None
    ) -> None:
        if items:
            await io.cpu(self._write, items, expires_at)

    async def _delete_many(self, io: Runtime, keys: Sequence[bytes]) -> int:
        return await io.cpu(self._remove, keys) if keys else 0

    async def _clear(self, io: Runtime, prefix: bytes) -> None:
        await io.cpu(self._remove_prefix, prefix)

    async def _count(self, io: Runtime, prefix: bytes) -> int:
        return await io.cpu(self._count_prefix, prefix)

    async def _keys(self, io: Runtime, prefix: bytes) -> list[bytes]:
        return await io.cpu(self._list_prefix, prefix)

    async def _close(self, io: Runtime) -> None:
        await io.cpu(self._disconnect)

    async def _claim(
        self, io: Runtime, key: bytes, seconds: float, over: bytes | None
    ) -> bytes | None:
        return await io.cpu(self._change, claims.claim, key, self._clock(), seconds, over)

    async def _extend(self, io: Runtime, key: bytes, token: bytes, seconds: float) -> bool:
        return await io.cpu(self._change, claims.extend, key, token, self._clock() + seconds)

    async def _commit(
        self, io: Runtime, key: bytes, token: bytes, value: bytes, expires_at: float | None
    ) -> bool:
        blob = self._seal(key, value, expires_at)
        return await io.cpu(self._change, claims.commit, key, token, blob, expires_at)

    async def _release(self, io: Runtime, key: bytes, token: bytes) -> bool:
        return await io.cpu(self._change, claims.release, key, token)

    async def _mark(self, io: Runtime, space: bytes, tags: Sequence[bytes]) -> ChangeLog:
        return await io.cpu(self._change, claims.mark, space, tags)

    async def _last_changes(
        self, io: Runtime, space: bytes, tags: Sequence[bytes]
    ) -> tuple[ChangeLog, list[int]]:
        return await io.cpu(self._ask, claims.last_changes, space, tags)

    async def _changes_since(
        self, io: Runtime, space: bytes, seq: int
    ) -> tuple[ChangeLog, list[bytes]]:
        return await io.cpu(self._ask, claims.changes_since, space, seq)

    # -- blocking work, in place or in a thread --------------------------------------------

    def _read(self, keys: Sequence[bytes]) -> list[Entry | None]:
        with self._session as connection:
            if len(keys) == 1:  # most look-ups, a tenth faster
                found = connection.execute("SELECT value FROM entry WHERE key = ?", keys).fetchone()
                blobs = [found and found[0]]
            else:
                rows: dict[bytes, bytes] = {}
                for chunk in _chunks(keys):
                    rows.update(connection.execute(_select(len(chunk)), chunk))
                blobs = [rows.get(key) for key in keys]
        now = self._clock()
        return [self._unseal(key, blob, now) for key, blob in zip(keys, blobs, strict=True)]

    def _write(self, items: Mapping[bytes, bytes], expires_at: float | None) -> None:
        rows = [
            (key, self._seal(key, value, expires_at), expires_at) for key, value in items.items()
        ]
        with self._session as connection:
            with _transaction(connection):
                connection.executemany("REPLACE INTO entry VALUES (?, ?, ?)", rows)
            self._writes += 1
            if self._writes % _PURGE_EVERY == 0:
                connection.execute("DELETE FROM entry WHERE expires_at <= ?", (self._clock(),))
            self._evict(connection)

    def _evict(self, connection: sqlite3.Connection) -> None:
        while _used_bytes(connection) > self.max_bytes:
            gone = connection.execute("DELETE FROM entry WHERE expires_at <= ?", (self._clock(),))
            if gone.rowcount == 0:
                gone = connection.execute(
                    "DELETE FROM entry WHERE rowid IN (SELECT rowid FROM entry ORDER BY rowid "
                    "LIMIT 1 + (SELECT count(*) FROM entry) / 10)"
                )
                self.evictions += gone.rowcount
            if gone.rowcount == 0:
                return  # empty: what is left is the file's own structure

    def _remove(self, keys: Sequence[bytes]) -> int:
        with self._session as connection, _transaction(connection):
            return sum(
                connection.execute(
                    f"DELETE FROM entry WHERE key IN ({','.join('?' * len(chunk))})", chunk
                ).rowcount
                for chunk in _chunks(keys)
            )

    def _remove_prefix(self, prefix: bytes) -> None:
        with self._session as connection:
            connection.execute(f"DELETE FROM entry WHERE {_BETWEEN}", _bounds(prefix))

    def _count_prefix(self, prefix: bytes) -> int:
        ((number,),) = self._select_prefix("count(*)", prefix)
        return int(number)

    def _list_prefix(self, prefix: bytes) -> list[bytes]:
        return [key for (key,) in self._select_prefix("key", prefix)]

    def _select_prefix(self, columns: str, prefix: bytes) -> list[Any]:
        with self._session as connection:
            return connection.execute(
                f"SELECT {columns} FROM entry WHERE {_BETWEEN} AND substr(value, 1, 3) != ? "
                "AND (expires_at IS NULL OR expires_at > ?)",
                (*_bounds(prefix), CLAIM, self._clock()),
            ).fetchall()

    def _ask(self, question: Callable[..., T], *args: Any) -> T:
        with self._session as connection:
            return question(connection, *args)

    def _change(self, change: Callable[..., T], *args: Any) -> T:
        with self._session as connection, _transaction(connection):
            return change(connection, *args)

    # -- the connection --------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._pid != os.getpid():
            # A connection must not cross a fork: the child opens its own and lets the
            # inherited one be, since closing it would drop the parent's locks.
            self._connection, self._pid = self._connect(), os.getpid()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            self.path, timeout=self.timeout, isolation_level=None, check_same_thread=False
        )
        try:
            # The tables first: whoever made them set the owner in the same transaction.
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (owner,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if tables and (owner != _APPLICATION_ID or version != _SCHEMA_VERSION):
                raise StorageError(
                    f"{self.path} holds another program's data or another version of this cache.",
                    fix="Nothing was written to it. Name another path for the cache.",
                )
            self._use_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA mmap_size = 268435456")
            with _transaction(connection):
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS entry "
                    "(key BLOB PRIMARY KEY, value BLOB NOT NULL, expires_at REAL)"
                )
                connection.execute("CREATE INDEX IF NOT EXISTS expiry ON entry (expires_at)")
                for table in claims.TABLES:
                    connection.execute(table)
        except BaseException:
            connection.close()
            raise
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to WAL, which SQLite refuses at once while another process opens the file."""
        until = time.monotonic() + self.timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return

    def _disconnect(self) -> None:
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def _explain(self, error: sqlite3.Error | OSError) -> StorageError:
        text = str(error)
        code = getattr(error, "sqlite_errorcode", None)
        code = None if code is None else code & 0xFF  # the primary code, without its extension
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return CorruptData(
                f"The cache file {self.path} is damaged or is no SQLite database ({text}).",
                fix="Delete it (what it cached will be computed again), or name another path.",
            )
        if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == 28:
            return StorageError(
                f"The disk of the cache file {self.path} is full.",
                fix="Free some space, lower max_bytes, or name a path on another disk.",
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return BackendUnavailable(
                f"Another process kept the cache file {self.path} locked for {self.timeout} s.",
                fix="Find the process that holds it, or raise timeout.",
            )
        return StorageError(
            f"The cache file {self.path} cannot be used ({text}).",
            fix="Check that the folder exists, is writable and lies on a local disk.",
        )


class _Session:
    """The connection, alone, with the driver's errors turned into sentences.

    A class, since entering a generator would take a twentieth of a look-up.
    """

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def __enter__(self) -> sqlite3.Connection:
        self._store._lock.acquire()
        try:
            return self._store._open()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._store._lock.release()
        if isinstance(error, (sqlite3.Error, OSError)):
            raise self._store._explain(error) from error


_BETWEEN = "key >= ? AND (? IS NULL OR key < ?)"


def _bounds(prefix: bytes) -> tuple[bytes, bytes | None, bytes | None]:
    """Return the first key with a prefix and, twice, the first key after all of those."""
    stem = prefix.rstrip(b"\xff")
    end = stem[:-1] + bytes([stem[-1] + 1]) if stem else None
    return prefix, end, end


@cache
def _select(number: int) -> str:
    return f"SELECT key, value FROM entry WHERE key IN ({','.join('?' * number)})"


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))


def _used_bytes(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite rolls back by itself when the disk is full
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
