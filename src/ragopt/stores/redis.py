"""The shared layer: a Redis or Valkey server that many processes and machines use."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from ragopt._redis.servers import RedisServers
from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.codecs import STAMP_SIZE, seal, unseal
from ragopt.errors import BackendUnavailable
from ragopt.protocols import ChangeLog, Clock, Entry
from ragopt.stores import _redis_claims as claims
from ragopt.stores._redis_stats import RedisServerStats
from ragopt.stores.coordinating import CLAIM, is_claim, new_claim
from ragopt.stores.sealed import SealedStore

__all__ = ["RedisServerStats", "RedisStore"]

_CHUNK = 500  # keys in one round trip
_PAGE = 1000  # keys that one SCAN looks at
_MOST_UNSURE = 1000
_MARK = seal(b"", b"", None)[:3]  # the first bytes of every value that ragopt wrote


class RedisStore(SealedStore):
    """Bytes on Redis or Valkey servers, shared by processes and machines.

    | URL | Servers |
    |---|---|
    | `redis://user:password@host:6379/0` | one server |
    | `rediss://host:6379/0?ssl_ca_certs=ca.pem` | one server, over TLS |
    | `unix:///run/redis.sock?db=0&username=user&password=password` | one server on this machine |
    | `redis://host1:6379,host2:6379?cluster=true` | a cluster; any of its servers will do |
    | `redis+sentinel://host1:26379,host2:26379/mymaster/0` | the master that a Sentinel names |

    `rediss` takes redis-py's options `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` and
    `ssl_check_hostname`, and goes with clusters and Sentinels (`rediss+sentinel`) as well. User
    and password are also shown to the Sentinels, and left out where those refuse them. The
    database of a cluster is always 0.

    The connections are opened at the first use: to each server, one pool for sync calls and one
    for each event loop. A call that needs a connection while all are busy waits for one. Nothing
    is tried again, so a server that is gone costs one ``timeout``; where a Sentinel or a cluster
    has to be asked for another one first, the next call pays a second. Only the redirections
    of a cluster are followed at once.

    Every value carries a checksum; one that fails is an absent entry. How much is kept, and what
    goes first, is the server's ``maxmemory`` and ``maxmemory-policy``. The database may hold other
    programs' keys: ``count`` and ``clear`` look only at what a ragopt store wrote.

    Args:
        url: Where the servers are.
        timeout: Seconds to wait for a connection, and for each answer.
        max_connections: Bound on the connections of each pool.
        compress_above: Compress longer values with zstd, in bytes; None for none. Without it,
            compressed entries can be read where zstandard is installed.
        secret: At least 16 bytes that sign the entries, so that who can write to the server but
            does not know them cannot plant a value. Of several the first one signs and all
            verify: to replace a secret, first add the new one at the end everywhere, then move it
            to the front, then drop the old one. With a secret, entries that are not signed with
            it are absent; without, signed entries are.
        clock: Seconds since the epoch.

    Raises:
        MissingDependency: The redis package is not installed, or zstandard with
            ``compress_above``.
        InvalidInput: The URL cannot be read, ``compress_above`` is below 0, or a secret is too
            short.
        BackendUnavailable: From every operation: a server could not be reached, or did not
            answer in time.
        StorageError: From every operation: a server refused it, since it is full, or the
            password is wrong, or the like. The sentence says which.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 0.25,
        max_connections: int = 64,
        compress_above: int | None = None,
        secret: bytes | Sequence[bytes] | None = None,
        clock: Clock = time.time,
    ) -> None:
        super().__init__(secret=secret, compress_above=compress_above, clock=clock)
        self.timeout = timeout
        self._servers = RedisServers(url, timeout=timeout, max_connections=max_connections)
        self._unsure: dict[bytes, bytes] = {}  # claims without an answer, token under key

    def __repr__(self) -> str:
        return f"RedisStore({self._servers.name!r})"

    def server_stats(self) -> RedisServerStats:
        """Return the servers' own figures, added up over all masters of a cluster.

        Raises:
            BackendUnavailable: A server could not be reached, or did not answer in time.
            StorageError: A server refused the command INFO.
        """
        return run(self._server_stats(SYNC))

    async def aserver_stats(self) -> RedisServerStats:
        """Return the servers' own figures; see ``server_stats``."""
        return await self._server_stats(ASYNC)

    async def _server_stats(self, io: Runtime) -> RedisServerStats:
        ask = self._servers.ask_server
        masters = await self._servers.masters(io)
        return RedisServerStats.from_info([await ask(io, each, "INFO") for each in masters])

    async def _get_many(self, io: Runtime, keys: Sequence[bytes]) -> list[Entry | None]:
        blobs = [blob for found in await self._for_keys(io, "MGET", keys) for blob in found]
        now = self._clock()
        return [self._unseal(key, blob, now) for key, blob in zip(keys, blobs, strict=True)]

    async def _set_many(
        self, io: Runtime, items: Mapping[bytes, bytes], expires_at: float | None
    ) -> None:
        lifetime: tuple[Any, ...] = ()
        if expires_at is not None:
            lifetime = "PX", claims.milliseconds(expires_at - self._clock())
        for chunk in _chunks(list(items)):
            blobs = (self._seal(key, items[key], expires_at) for key in chunk)
            await self._servers.ask(
                io,
                [
                    (key, ("SET", key, blob, *lifetime))
                    for key, blob in zip(chunk, blobs, strict=True)
                ],
            )

    async def _delete_many(self, io: Runtime, keys: Sequence[bytes]) -> int:
        return sum(await self._for_keys(io, "UNLINK", keys))

    async def _clear(self, io: Runtime, prefix: bytes) -> None:
        async for keys in self._scan(io, prefix, (_MARK, CLAIM)):
            await self._delete_many(io, keys)

    async def _count(self, io: Runtime, prefix: bytes) -> int:
        return len(await self._keys(io, prefix))

    async def _keys(self, io: Runtime, prefix: bytes) -> list[bytes]:
        seen: set[bytes] = set()  # SCAN may show a key twice
        async for keys in self._scan(io, prefix):
            seen.update(keys)
        return list(seen)

    async def _close(self, io: Runtime) -> None:
        """Close the sync connections and, in the async colour, those of the running loop."""
        await self._servers.close(io)

    # -- claims and logs -------------------------------------------------------------------

    async def _claim(
        self, io: Runtime, key: bytes, seconds: float, over: bytes | None
    ) -> bytes | None:
        token = new_claim()
        lifetime = claims.milliseconds(seconds)
        unsure = self._unsure.pop(key, None)
        try:
            if await self._run_script(io, claims.CLAIM, key, token, lifetime, over or b""):
                return token
        except BackendUnavailable:
            # A server that answers late may have set it, and nobody would ever release it.
            if len(self._unsure) >= _MOST_UNSURE:
                self._unsure.clear()
            self._unsure[key] = token
            raise
        ((blob,),) = await self._servers.ask(io, [(key, ("MGET", key))])
        if blob is None:
            return None
        if blob != unsure and (is_claim(blob) or unseal(key, blob, self._secrets) is not None):
            return None
        # What nobody can read must not keep the key from being computed.
        stamp = blob[:STAMP_SIZE]
        taken = await self._run_script(io, claims.CLAIM, key, token, lifetime, stamp)
        return token if taken else None

    async def _extend(self, io: Runtime, key: bytes, token: bytes, seconds: float) -> bool:
        lifetime = claims.milliseconds(seconds)
        return bool(await self._run_script(io, claims.EXTEND, key, token, lifetime))

    async def _commit(
        self, io: Runtime, key: bytes, token: bytes, value: bytes, expires_at: float | None
    ) -> bool:
        lifetime: int | bytes = b""
        if expires_at is not None:
            lifetime = claims.milliseconds(expires_at - self._clock())
        blob = self._seal(key, value, expires_at)
        return bool(await self._run_script(io, claims.COMMIT, key, token, blob, lifetime))

    async def _release(self, io: Runtime, key: bytes, token: bytes) -> bool:
        return bool(await self._run_script(io, claims.RELEASE, key, token))

    async def _mark(self, io: Runtime, space: bytes, tags: Sequence[bytes]) -> ChangeLog:
        reply = await self._run_log(io, claims.MARK, space, *map(claims.member, tags))
        return claims.state(reply)

    async def _last_changes(
        self, io: Runtime, space: bytes, tags: Sequence[bytes]
    ) -> tuple[ChangeLog, list[int]]:
        reply = await self._run_log(io, claims.LAST_CHANGES, space, *map(claims.member, tags))
        return claims.state(reply), [int(float(seq)) for seq in reply[3]]

    async def _changes_since(
        self, io: Runtime, space: bytes, seq: int
    ) -> tuple[ChangeLog, list[bytes]]:
        reply = await self._run_log(io, claims.CHANGES_SINCE, space, seq)
        return claims.state(reply), claims.tags(reply[3])

    async def _run_log(self, io: Runtime, script: str, space: bytes, *words: Any) -> Any:
        return await self._run_script(io, script, claims.log_key(space), claims.new_id(), *words)

    async def _run_script(self, io: Runtime, script: str, key: bytes, *words: Any) -> Any:
        (reply,) = await self._servers.ask(io, [(key, ("EVAL", script, 1, key, *words))])
        return reply

    # -- many keys -------------------------------------------------------------------------

    async def _for_keys(self, io: Runtime, name: str, keys: Sequence[bytes]) -> list[Any]:
        """Send a command for many keys, in as few parts as one round trip to each server takes."""
        replies: list[Any] = []
        for chunk in _chunks(keys):
            # A cluster takes several keys in a command only where they share a slot.
            parts = [[key] for key in chunk] if self._servers.is_cluster else [chunk]
            replies += await self._servers.ask(io, [(part[0], (name, *part)) for part in parts])
        return replies

    async def _scan(
        self, io: Runtime, prefix: bytes, begin: tuple[bytes, ...] = (_MARK,)
    ) -> AsyncIterator[list[bytes]]:
        """Yield the keys with a prefix whose values begin as ragopt's do, page by page."""
        pattern = re.sub(rb"[\\*?\[\]]", rb"\\\g<0>", prefix) + b"*"
        options = "MATCH", pattern, "COUNT", _PAGE, "TYPE", "STRING"
        for server in await self._servers.masters(io):
            cursor: int | None = None
            while cursor != 0:
                after, keys = await self._servers.ask_server(
                    io, server, "SCAN", cursor or 0, *options
                )
                cursor = int(after)
                begins = [(key, ("GETRANGE", key, 0, len(_MARK) - 1)) for key in keys]
                marks = await self._servers.ask(io, begins) if keys else []
                ours = [key for key, mark in zip(keys, marks, strict=True) if mark in begin]
                if ours:
                    yield ours


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
