"""Connections to PostgreSQL: one pool for each event loop, and errors as sentences."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from ragopt._imports import require
from ragopt._portal import portal
from ragopt._runtime import ASYNC, PerLoop, Runtime
from ragopt.errors import BackendUnavailable, InvalidInput, StorageError

P = ParamSpec("P")
T = TypeVar("T")

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_WRITTEN = 1_000  # records that command_timeout is meant for: HNSW takes some ms for each
_STATEMENTS = 100  # that a direct connection keeps
_OLDEST = (0, 8)  # the first pgvector with iterative scans

# By SQLSTATE, or by the class that it begins with.
_FIXES = {
    "42501": "Grant it to the user of the DSN, or connect as another one.",
    "53": "Make room on the server: disk space, memory or connections.",
    "3D": "Create the database, or name another one in the DSN.",
    "3F": "Create the schema, or name another one: schema=...",
}
_OTHERWISE = "The reason is in brackets; the log of the server may say more."
_ANOTHER = "22000"  # what pgvector says of vectors of another dimension


class Stale(StorageError):
    """A statement failed as it does where a table is gone, or is another one than was known."""


class Postgres:
    """A database with pgvector, reached from threads and from event loops.

    asyncpg is async only. An operation of a sync call runs on the portal's loop, which all sync
    calls of the process share.

    Args:
        dsn: ``postgresql://user:password@host:5432/database``.
        purpose: What the connections are for, in errors: ``"the table 'docs'"``.
        max_connections: Bound on the connections of each pool.
        timeout: Seconds to wait for a connection.
        command_timeout: Seconds to wait for each statement, and for each 1,000 records of one that
            writes; None for as long as it takes.
        statement_cache_size: Prepared statements that a connection keeps; None for some on a
            direct connection, and none behind a pooler.
        session: Settings for the planner, as SQL. Connections without prepared statements go
            without, since others may have them next.

    Raises:
        MissingDependency: asyncpg is not installed.
        InvalidInput: The DSN cannot be read.
    """

    def __init__(
        self,
        dsn: str,
        *,
        purpose: str,
        max_connections: int,
        timeout: float,
        command_timeout: float | None,
        statement_cache_size: int | None,
        session: str,
    ) -> None:
        self._asyncpg = require("asyncpg", "postgres")
        _check_dsn(dsn)
        self._dsn = dsn
        self._purpose = purpose
        self._timeout = timeout
        self._command_timeout = command_timeout
        self._cache_size = statement_cache_size
        self._session = session
        self._pooled = False  # as far as is known
        self._hopped = False
        self._pools = PerLoop(
            lambda: self._asyncpg.create_pool(
                dsn,
                min_size=0,  # so that opening the pool neither connects nor waits
                max_size=max_connections,
                timeout=timeout,
                command_timeout=command_timeout,
                connect=self._connect,
                init=_prepare,
                reset=_leave_as_it_is,
            )
        )

    async def run(
        self,
        io: Runtime,
        operation: Callable[P, Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation on the caller's event loop or, for a sync call, on the portal's."""

        def hop() -> T:
            self._hopped = True
            return portal().call(operation, *args, **kwargs)

        return await io.call(hop, lambda: operation(*args, **kwargs))

    def connection(
        self, opened: Callable[[Any], Coroutine[Any, Any, None]] | None = None
    ) -> AbstractAsyncContextManager[Any]:
        """Lend a connection of the running loop's pool.

        Args:
            opened: What is awaited with it first.

        Raises:
            BackendUnavailable: The server could not be reached, or did not answer in time.
            Stale: The table seems to be gone, or another one by now.
            StorageError: The server refused a statement.
        """
        return _Lending(self, opened)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[tuple[Any, bool]]:
        """Open a connection of its own for one long piece of work, and close it after that.

        Yields:
            The connection, which waits as long as it takes, and whether its settings and locks
            are its own: behind a pooler they are only within a transaction.

        Raises:
            BackendUnavailable: The server could not be reached.
            StorageError: The server refused a statement.
        """
        try:
            connection = await self._asyncpg.connect(
                self._dsn, timeout=self._timeout, statement_cache_size=0
            )
            try:
                yield connection, not await _is_pooled(connection)
                await connection.close()
            finally:
                connection.terminate()  # no more than that if it is closed
        except Exception as error:
            self.explain(error)
            raise

    async def close(self, io: Runtime) -> None:
        """Close the pool of sync calls and, in the async colour, that of the running loop."""
        if self._hopped:
            await io.cpu(lambda: portal().call(self._close_pool))
        await io.call(lambda: None, self._close_pool)

    async def _connect(self, *args: Any, **options: Any) -> Any:
        """Open a connection, with prepared statements where it has a server process of its own."""
        size = self._cache_size
        if size is None:
            size = 0 if self._pooled else _STATEMENTS
        connection = await self._asyncpg.connect(*args, statement_cache_size=size, **options)
        if not size:
            return connection
        try:
            self._pooled = self._cache_size is None and await _is_pooled(connection)
            if not self._pooled:
                await connection.execute(self._session)
                return connection
        except BaseException:
            connection.terminate()
            raise
        await connection.close()
        return await self._connect(*args, **options)

    async def _close_pool(self) -> None:
        pool = self._pools.pop()
        if pool is not None:
            await pool.close()

    def patience(self, records: int) -> float | None:
        """Return the seconds to wait for a statement that writes so many records."""
        if self._command_timeout is None:
            return None
        return self._command_timeout * max(1.0, records / _WRITTEN)

    async def take(self) -> tuple[Any, Any]:
        """Wait for a connection; return it and the pool that it goes back to."""
        pool = await self._pools.get()
        # asyncpg's own timeout starts a task for each call.
        async with ASYNC.limit(self._timeout):
            return await pool.acquire(), pool

    def explain(self, error: BaseException, *, undone: bool = False) -> None:
        """Raise what an error means, if it comes from the driver or the server.

        Args:
            error: What was raised.
            undone: Whether all that the server refused stood in a transaction.
        """
        asyncpg = self._asyncpg
        if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
            raise _bad_dsn() from None
        if isinstance(error, (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            raise self._explain(error, undone) from error

    def _explain(self, error: Exception, undone: bool) -> StorageError:
        asyncpg, text = self._asyncpg, str(error) or type(error).__name__
        if isinstance(error, (asyncpg.QueryCanceledError, TimeoutError)):
            return BackendUnavailable(
                f"PostgreSQL did not answer in time, for {self._purpose}.",
                fix="Check that it runs and is not overloaded, or raise timeout, command_timeout "
                "or max_connections.",
            )
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            return StorageError(
                f"PostgreSQL refused the user name or password, for {self._purpose} ({text}).",
                fix="Check both in the DSN; special characters must be percent-encoded.",
            )
        unreachable = (
            OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError,
            asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError,
            asyncpg.AdminShutdownError, asyncpg.CrashShutdownError,
        )  # fmt: skip
        if isinstance(error, unreachable):
            return BackendUnavailable(
                f"PostgreSQL cannot be reached, for {self._purpose} ({text}).",
                fix="Check that it is running, that it has a connection to spare, and that host "
                "and port of the DSN are right.",
            )
        if isinstance(error, asyncpg.UndefinedTableError):
            return gone(self._purpose, f" ({text})")
        state = getattr(error, "sqlstate", None) or ""
        # A plan that was made for the columns of another table can be made anew, too.
        stale = state == _ANOTHER or isinstance(error, asyncpg.InvalidCachedStatementError)
        return (Stale if stale else StorageError)(
            f"PostgreSQL refused a {'statement' if undone else 'request'}, for {self._purpose} "
            f"({text}).{' Its transaction was undone.' if undone else ''}",
            fix=_FIXES.get(state) or _FIXES.get(state[:2], _OTHERWISE),
        )


class _Lending:
    """A connection as a context. No generator: 200 searches may come to this at the same time."""

    def __init__(
        self, postgres: Postgres, opened: Callable[[Any], Coroutine[Any, Any, None]] | None
    ) -> None:
        self._postgres = postgres
        self._opened = opened
        self._connection: Any = None

    async def __aenter__(self) -> Any:
        try:
            self._connection, self._pool = await self._postgres.take()
            if self._opened is not None:
                await self._opened(self._connection)
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return self._connection

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if self._connection is not None:
                await self._pool.release(self._connection)
        except Exception as failure:
            self._postgres.explain(failure)
            raise
        if error is not None:
            self._postgres.explain(error, undone=self._connection is not None)


async def _is_pooled(connection: Any) -> bool:
    """Whether a pooler, such as pgbouncer, stands between and shares out server processes.

    It answers for many of them, and so it names a process of its own making when a client
    connects. The statement has no name, since a process might keep a named one for others.
    """
    statement = await connection.prepare("SELECT pg_backend_pid()", name="")
    return bool(await statement.fetchval() != connection.get_server_pid())


async def _prepare(connection: Any) -> None:
    """Look for the extension, and let vectors travel as the bytes that they are."""
    extension = await connection.fetchrow(
        "SELECT nspname, extversion FROM pg_extension "
        "JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"
    )
    if extension is None or _release(extension["extversion"]) < _OLDEST:
        found = f"has pgvector {extension['extversion']}" if extension else "lacks pgvector"
        raise StorageError(
            f"The PostgreSQL database {found}; version 0.8 or newer is needed.",
            fix="As its owner, run: CREATE EXTENSION vector; or, if it is there: "
            "ALTER EXTENSION vector UPDATE;",
        )
    for name in ("vector", "halfvec", "sparsevec"):
        await connection.set_type_codec(
            name, schema=extension["nspname"], encoder=bytes, decoder=bytes, format="binary"
        )


async def _leave_as_it_is(connection: Any) -> None:
    """Spare a round trip: every setting and temporary table here ends with its transaction."""


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _check_dsn(dsn: str) -> None:
    try:
        parts = urlsplit(dsn)
        parts.port  # noqa: B018 - it is read from the text only now
    except ValueError:
        raise _bad_dsn() from None
    scheme, driver, _ = parts.scheme.partition("+")
    if scheme not in ("postgresql", "postgres"):
        raise _bad_dsn()
    if driver:
        raise InvalidInput(
            f"The DSN of a PostgreSQL index cannot name a driver, as {parts.scheme}:// does.",
            fix=f"Leave out the part after {scheme}: it begins with {scheme}://.",
        )


def gone(what: str, why: str = "") -> Stale:
    """Return the error for a table, or what is kept of it, that is not there any more."""
    return Stale(
        f"What belongs to {what} is gone{why}.",
        fix="If it was removed on purpose, call drop(), which forgets the rest, and add the "
        "records again.",
    )


def _bad_dsn() -> InvalidInput:
    # Without the parser's own words, which may quote a part of the password.
    return InvalidInput(
        "The DSN of a PostgreSQL index cannot be used.",
        fix="Write it as postgresql://user:password@host:5432/database, with special characters "
        "of the password percent-encoded.",
    )


def quoted(identifier: str) -> str:
    """Return an identifier for use in SQL; InvalidInput if it cannot be one."""
    if not _IDENTIFIER.fullmatch(identifier):
        raise InvalidInput(
            f"{identifier!r} cannot be the name of a table or a schema.",
            fix="Begin with a letter or _, then up to 62 letters, digits or _.",
        )
    return f'"{identifier}"'
