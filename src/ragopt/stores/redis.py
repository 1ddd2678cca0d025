"""The shared layer: a Redis or Valkey server that many processes and machines use."""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from ragopt._imports import require
from ragopt._runtime import PerLoop, Runtime
from ragopt.codecs import seal, unseal
from ragopt.errors import BackendUnavailable, InvalidInput, StorageError
from ragopt.protocols import Clock, Entry
from ragopt.stores.base import BaseKVStore

_CHUNK = 500  # keys in one round trip
_PAGE = 1000  # keys that one SCAN looks at
_MARK = seal(b"", b"", None)[:3]  # the first bytes of every value that ragopt wrote


class RedisStore(BaseKVStore):
    """Bytes on a Redis server, shared by processes and machines.

    The connections are opened at the first use: one pool for sync calls, one for each event loop.
    A call that needs a connection while all are busy waits for one. Nothing is tried again, so a
    server that is gone costs one ``timeout``. Every value carries a checksum; one that fails is
    an absent entry. How much is kept, and what goes first, is the server's ``maxmemory`` and
    ``maxmemory-policy``.

    The database may hold other programs' keys: ``count`` and ``clear`` look only at what a ragopt
    store wrote.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user, password and database.
        timeout: Seconds to wait for a connection, and for each answer.
        max_connections: Bound on the connections of each pool.
        clock: Seconds since the epoch.

    Raises:
        MissingDependency: The redis package is not installed.
        InvalidInput: The URL cannot be read.
        BackendUnavailable: From every operation: the server could not be reached, or did not
            answer in time.
        StorageError: From every operation: the server refused it, since it is full, or the
            password is wrong, or the like. The sentence says which.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 0.25,
        max_connections: int = 64,
        clock: Clock = time.time,
    ) -> None:
        super().__init__(clock=clock)
        self.corrupt_entries = 0
        self._redis = require("redis", "redis")
        self._timeout = timeout
        self._max_connections = max_connections
        self._url = url
        self._address = self._read_address(url)
        self._client = self._connect(self._redis)
        self._clients = PerLoop(self._connect_loop)

    def __repr__(self) -> str:
        return f"RedisStore({self._address!r})"

    async def _get_many(self, io: Runtime, keys: Sequence[bytes]) -> list[Entry | None]:
        blobs: list[bytes | None] = []
        with self._explained():
            client = await self._reach(io)
            for chunk in _chunks(keys):
                blobs += await io.call(client.mget, client.mget, chunk)
        now = self._clock()
        return [self._open(key, blob, now) for key, blob in zip(keys, blobs, strict=True)]

    async def _set_many(
        self, io: Runtime, items: Mapping[bytes, bytes], expires_at: float | None
    ) -> None:
        # At least 1 ms: Redis takes 0 for an error.
        lifetime = (
            None if expires_at is None else max(1, math.ceil((expires_at - self._clock()) * 1000))
        )
        with self._explained():
            client = await self._reach(io)
            for chunk in _chunks(list(items)):
                pipe = client.pipeline(transaction=False)
                for key in chunk:
                    pipe.set(key, seal(key, items[key], expires_at), px=lifetime)
                await io.call(pipe.execute, pipe.execute)

    async def _delete_many(self, io: Runtime, keys: Sequence[bytes]) -> int:
        with self._explained():
            client = await self._reach(io)
            return sum(
                [await io.call(client.unlink, client.unlink, *chunk) for chunk in _chunks(keys)]
            )

    async def _clear(self, io: Runtime, prefix: bytes) -> None:
        with self._explained():
            client = await self._reach(io)
            async for keys in self._scan(io, client, prefix):
                await io.call(client.unlink, client.unlink, *keys)

    async def _count(self, io: Runtime, prefix: bytes) -> int:
        seen: set[bytes] = set()  # SCAN may show a key twice
        with self._explained():
            client = await self._reach(io)
            async for keys in self._scan(io, client, prefix):
                seen.update(keys)
        return len(seen)

    async def _close(self, io: Runtime) -> None:
        """Close the sync connections and, in the async colour, those of the running loop."""
        self._client.close()
        await io.call(lambda: None, self._close_loop_client)

    async def _close_loop_client(self) -> None:
        client = self._clients.pop()
        if client is not None:
            await client.aclose()

    async def _scan(self, io: Runtime, client: Any, prefix: bytes) -> AsyncIterator[list[bytes]]:
        """Yield the keys with a prefix whose values ragopt wrote, page by page."""
        pattern = re.sub(rb"[\\*?\[\]]", rb"\\\g<0>", prefix) + b"*"
        cursor = 0
        while True:
            cursor, keys = await io.call(
                client.scan, client.scan, cursor, match=pattern, count=_PAGE, _type="STRING"
            )
            if keys:
                pipe = client.pipeline(transaction=False)
                for key in keys:
                    pipe.getrange(key, 0, len(_MARK) - 1)
                marks = await io.call(pipe.execute, pipe.execute)
                ours = [key for key, mark in zip(keys, marks, strict=True) if mark == _MARK]
                if ours:
                    yield ours
            if cursor == 0:
                return

    def _open(self, key: bytes, blob: bytes | None, now: float) -> Entry | None:
        if blob is None:
            return None
        entry = unseal(key, blob)
        if entry is None:
            self.corrupt_entries += 1
        elif entry.expires_at is not None and entry.expires_at <= now:
            return None
        return entry

    # -- connections -----------------------------------------------------------------------

    async def _reach(self, io: Runtime) -> Any:
        """Return the client of this colour; both have the same methods."""
        return await io.call(lambda: self._client, self._loop_client)

    async def _loop_client(self) -> Any:
        return self._clients.get()

    def _connect_loop(self) -> Any:
        return self._connect(require("redis.asyncio", "redis"))

    def _connect(self, module: Any) -> Any:
        """Make a client of ``redis`` or ``redis.asyncio``; it connects when it is used."""
        retry = require(f"{module.__name__}.retry", "redis").Retry
        backoff = require("redis.backoff", "redis").NoBackoff
        pool = module.BlockingConnectionPool.from_url(
            self._url,
            timeout=self._timeout,
            max_connections=self._max_connections,
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            retry=retry(backoff(), 0),
            decode_responses=False,
        )
        return module.Redis.from_pool(pool)

    def _read_address(self, url: str) -> str:
        """Return where the server is, without user and password."""
        try:
            options = require("redis.connection", "redis").parse_url(url)
            if "decode_responses" in options:
                raise ValueError("values are bytes")
        except ValueError:
            # The driver's own words may quote a part of the password.
            raise InvalidInput(
                "The URL of a Redis store cannot be read.",
                fix="Write it as redis://user:password@host:6379/0, with special characters of "
                "the password percent-encoded, and without decode_responses.",
            ) from None
        database = options.get("db", 0)
        if "path" in options:
            return f"unix://{options['path']}?db={database}"
        return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}/{database}"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (self._redis.RedisError, OSError) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> StorageError:
        redis, text = self._redis, str(error) or type(error).__name__
        if isinstance(error, (redis.AuthenticationError, redis.exceptions.AuthorizationError)):
            return StorageError(
                f"The Redis server at {self._address} refused the user name or password ({text}).",
                fix="Check both in the URL; special characters must be percent-encoded.",
            )
        if isinstance(error, (redis.TimeoutError, TimeoutError)):
            return BackendUnavailable(
                f"The Redis server at {self._address} did not answer within {self._timeout} s.",
                fix="Check that it is running and not overloaded, or raise timeout.",
            )
        if isinstance(error, (redis.ConnectionError, OSError)):
            return BackendUnavailable(
                f"The Redis server at {self._address} cannot be reached ({text}).",
                fix="Check that it is running and that host and port of the URL are right.",
            )
        if isinstance(error, redis.OutOfMemoryError):
            return StorageError(
                f"The Redis server at {self._address} is full and refuses to store more ({text}).",
                fix="Raise its maxmemory, or set maxmemory-policy to allkeys-lru.",
            )
        return StorageError(
            f"The Redis server at {self._address} refused a command ({text}).",
            fix="Check the permissions of the user, and that the server is not read-only.",
        )


def _chunks(keys: Sequence[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(keys)
    return iter(lambda: list(islice(remaining, _CHUNK)), [])
