"""The schema of a shard on a cluster, whose slot may move to another server while it is in use.

The server that a slot comes to has no index of the engine for it. Or it has an old one, from when
the slot was there before, without the fields that were made since: an answer by it would lack
records, and nobody would notice. So at each place that a shard comes to it has an index of a new
name, made over the records that are there. The hash beside it has

* ``home``: the number in that name, ``:``, and the id of the cluster's shard where it was made (a
  master and its replicas: to promote one of them makes nothing new).

Before every command ``home`` is read, and whether the engine is still reading the records. So
whoever knows an old home notices, and the answer is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from ragopt._redis.connections import Words
from ragopt._redis.servers import SLOTS, RedisServers
from ragopt._runtime import Runtime
from ragopt.errors import BackendUnavailable, StorageError
from ragopt.indexes._redis_errors import explaining, is_missing
from ragopt.indexes._redis_made import Made
from ragopt.indexes._redis_postings import BLOCK, LARGEST_BLOCK
from ragopt.indexes._redis_schema import FILLING, TRIES, Plan, RedisSchema

_HOME = b"home"

# KEYS: what is stored about the shard. ARGV: the home that is known, the new one. One of those who
# find the shard somewhere else gives it the new name.
_MOVE = """
if (redis.call('HGET', KEYS[1], 'home') or '') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'home', ARGV[2])
end
"""

# The same keys. ARGV: a place. The last place of any record here, whoever was first to store.
_REACH = """
if tonumber(ARGV[1]) > tonumber(redis.call('HGET', KEYS[1], 'seq') or 0) then
  redis.call('HSET', KEYS[1], 'seq', ARGV[1])
end
"""


class ShardGone(BackendUnavailable):
    """A shard that was there is not there any more, or not on this cluster."""


class MovingSchema(RedisSchema):
    """One shard of an index on a cluster.

    Args:
        servers: The cluster.
        plan: What the index is to be.
        number: Which shard it is, from 0.
        shards: How many there are.
    """

    def __init__(self, servers: RedisServers, plan: Plan, number: int, shards: int) -> None:
        super().__init__(servers, plan, _tag(servers, plan.name, number, shards))
        # Places are counted over all shards, of which this one has a part.
        self.block = min(BLOCK * shards, LARGEST_BLOCK)
        self._home = b""
        self._here = b""  # the shard of the cluster, as it was last seen

    @property
    def _moves(self) -> int:
        return int(self._home.partition(b":")[0] or -1)

    async def ask(self, io: Runtime, *commands: Words) -> list[Any]:
        """Send commands in one round trip; an answer by an index that is no more is not used."""
        names_index, reads = any(map(_names_index, commands)), any(map(_reads, commands))
        for _ in range(TRIES):
            known, guard = self._home, ("HMGET", self.meta, _HOME, FILLING)
            (home, filling), *replies = await self._send(io, guard, *commands)
            if home == known and not (filling and reads):
                return replies
            if not await self._open(io):
                raise self._gone()
            if home and not names_index:
                return replies
        raise self._restless()

    async def query(self, io: Runtime, commands: Sequence[tuple[Any, ...]]) -> list[Any] | None:
        """Send queries about the shard.

        Raises:
            ShardGone: There is none.
        """
        replies = await super().query(io, commands)
        if replies is None:
            raise self._gone()
        return replies

    async def _send(self, io: Runtime, *commands: Words) -> list[Any]:
        index = f"{self.index}:{self._moves}"
        named = [(c[0], index, *c[2:]) if _names_index(c) else c for c in commands]
        replies = self._servers.ask_together(io, self.meta, named)
        return await explaining(replies, self.name, self._servers.name)

    async def _open(self, io: Runtime) -> bool:
        for _ in range(2 * TRIES):
            values = await self._values(io)
            known, self._home = self.made, values.get(_HOME, b"")
            if not values.get(b"schema"):
                self.made, self.fields = None, frozenset()
                if known is not None:
                    raise self._gone()
                return False
            self._read(values)
            if await self._settled(io):
                return True
        raise self._restless()

    async def _values(self, io: Runtime) -> dict[bytes, bytes]:
        """Return what is stored about the shard, and learn where it is."""
        words = ("HGETALL", self.meta), ("CLUSTER", "MYSHARDID")
        meta, self._here = await self._send(io, *words)
        return dict(zip(meta[::2], meta[1::2], strict=True))

    async def _settled(self, io: Runtime) -> bool:
        """See to it that the engine has an index here; False if that is to be looked at again."""
        if self._home.partition(b":")[2] != self._here:
            home = b"%d:%b" % (self._moves + 1, self._here)
            await self._send(io, ("EVAL", _MOVE, 1, self.meta, self._home, home))
            return False
        is_there = await self._is_there(io)
        if not is_there:
            await self._drop_older(io)
        await self._complete(io, is_there)
        return is_there  # where one was made, the shard may have gone on meanwhile

    async def _drop_older(self, io: Runtime) -> None:
        """Drop what the engine has of earlier stays here, which would take time and memory."""
        start = f"{self.index}:".encode()
        (names,) = await self._servers.ask_together(io, self.meta, [("FT._LIST",)])
        for name in names:
            number = name.removeprefix(start)
            if name.startswith(start) and number.isdigit() and int(number) < self._moves:
                try:
                    await self._servers.ask_together(io, self.meta, [("FT.DROPINDEX", name)])
                except StorageError as error:
                    if not is_missing(error):
                        raise

    async def _create(self, io: Runtime, dimension: int) -> None:
        await self._send(
            io,
            ("MULTI",),
            ("HSETNX", self.meta, "schema", self._plan.new(dimension).dump()),
            ("HSETNX", self.meta, _HOME, b"0:%b" % self._here),
            ("EXEC",),
        )
        if not await self._open(io):
            raise self._gone()

    def changes(self, last: int) -> list[tuple[Any, ...]]:
        """Return the commands for a change after which records are at places up to ``last``."""
        return [self.change(), ("EVAL", _REACH, 1, self.meta, last)]

    async def clear(self, io: Runtime) -> int:
        """Remove all records of the shard at once; return how many there were."""
        if not await self._open(io):
            raise self._gone()
        probe = "FT.SEARCH", self.index, "*", "LIMIT", 0, 0
        *_, (outcome,) = await self.ask(io, ("MULTI",), probe, ("EXEC",))
        if isinstance(outcome, Exception):  # nothing was done yet
            raise StorageError(
                f"The servers of the Redis cluster {self._servers.name} do not search in "
                f"transactions, as clear has to ({outcome}). Nothing was removed.",
                fix="Delete the records by a filter, or drop the index.",
            )
        return await super().clear(io)

    async def drop(self, io: Runtime) -> None:
        """Remove the shard, whatever it was made for."""
        for _ in range(2 * TRIES):
            values = await self._values(io)
            self._home = values.get(_HOME, b"")
            if not (text := values.get(b"schema")):
                break
            self.made, self._filling = Made.load(text, self.name), True
            try:
                # The engine removes the records that it has an index over.
                if not await self._settled(io):
                    continue
                await self._send(io, ("FT.DROPINDEX", self.index, "DD"))
            except StorageError as error:
                # Another process has dropped it; or it cannot be made, and so never had records.
                dropped, never = is_missing(error), b"seq" not in values
                if isinstance(error, BackendUnavailable) or not (dropped or never):
                    raise
            await self._send(io, ("DEL", self.meta, self.postings))
            break
        else:
            raise self._restless()
        self.made, self.fields, self.dimension = None, frozenset(), self._plan.dimension
        self._home = b""

    def _gone(self) -> ShardGone:
        return ShardGone(
            f"A shard of the Redis index {self.name!r} is not there any more.",
            fix="Another process may have dropped the index. Try again.",
        )

    def _restless(self) -> BackendUnavailable:
        return BackendUnavailable(
            f"A shard of the Redis index {self.name!r} is moved, or made anew, again and again.",
            fix="Try again when the slots of the cluster rest.",
        )


def _names_index(words: Words) -> bool:
    """Whether a command is one of the query engine."""
    return type(words) is tuple and words[0].startswith("FT.")


def _reads(words: Words) -> bool:
    """Whether a command is a search."""
    return type(words) is tuple and words[0] in ("FT.SEARCH", "FT.AGGREGATE")


def _tag(servers: RedisServers, name: str, number: int, shards: int) -> str:
    """Return a hash tag whose slot is in a stretch of the slots that is the shard's alone."""
    # No name has a colon, so no other index has such a tag.
    tags = (f"{name}:{number}/{shards}:{salt}" for salt in count())
    return next(tag for tag in tags if servers.slot(tag.encode()) * shards // SLOTS == number)
