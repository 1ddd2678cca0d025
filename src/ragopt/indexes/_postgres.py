"""Connections to PostgreSQL: one pool for each event loop, and errors as sentences."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from ragopt._imports import require
from ragopt._portal import portal
from ragopt._runtime import PerLoop, Runtime
from ragopt.errors import BackendUnavailable, InvalidInput, RagoptError, StorageError

P = ParamSpec("P")
T = TypeVar("T")

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_OLDEST = (0, 8)  # the first pgvector with iterative scans


class Postgres:
    """A database with pgvector, reached from threads and from event loops.

    asyncpg is async only. An operation of a sync call runs on the portal's loop, which all sync
    calls of the process share.

    Args:
        dsn: ``postgresql://user:password@host:5432/database``.
        purpose: What the connections are for, in errors: ``"the table 'docs'"``.
        max_connections: Bound on the connections of each pool.
        timeout: Seconds to wait for a connection.
        command_timeout: Seconds to wait for each statement; None for as long as it takes.
        statement_cache_size: Prepared statements that a connection keeps.

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
        statement_cache_size: int,
    ) -> None:
        self._asyncpg = require("asyncpg", "postgres")
        _check_dsn(dsn)
        self._purpose = purpose
        self._timeout = timeout
        self._hopped = False
        self._pools = PerLoop(
            lambda: self._asyncpg.create_pool(
                dsn,
                min_size=0,  # so that opening the pool neither connects nor waits
                max_size=max_connections,
                timeout=timeout,
                command_timeout=command_timeout,
                statement_cache_size=statement_cache_size,
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

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Lend a connection of the running loop's pool.

        Raises:
            BackendUnavailable: The server could not be reached, or did not answer in time.
            StorageError: The server refused a statement.
        """
        with self._explained():
            pool = await self._pools.get()
            async with pool.acquire(timeout=self._timeout) as connection:
                yield connection

    async def close(self, io: Runtime) -> None:
        """Close the pool of sync calls and, in the async colour, that of the running loop."""
        if self._hopped:
            await io.cpu(lambda: portal().call(self._close_pool))
        await io.call(lambda: None, self._close_pool)

    async def _close_pool(self) -> None:
        pool = self._pools.pop()
        if pool is not None:
            await pool.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        asyncpg = self._asyncpg
        try:
            yield
        except RagoptError:
            raise
        except asyncpg.exceptions.ClientConfigurationError:
            raise _bad_dsn() from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> StorageError:
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
            return StorageError(
                f"What belongs to {self._purpose} is gone ({text}).",
                fix="Make a new index object, which makes the table anew, and add the records.",
            )
        return StorageError(
            f"PostgreSQL refused a statement, for {self._purpose} ({text}).",
            fix="Nothing was changed. Check the permissions of the user and the free space.",
        )


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
    if parts.scheme not in ("postgresql", "postgres"):
        raise _bad_dsn()


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
