"""Which shards a Redis index has: one on a single server, several on a cluster.

On a cluster each shard is what an index on a single server is, with a hash tag of its own, so that
transactions and scripts hold within it. Where a record is follows from its id. What the index is as
a whole is in one more hash, the root, which whoever makes the index writes first. It holds

* ``schema``: what all shards are made for, and how many there are;
* ``whole``, the token of the making once all of them were made: from then on one that is not there
  was lost;
* ``seq``, the place of the last record added to any of them, and ``model``.

All shards are asked at once. A sync call is handed to the portal's event loop for that.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

from ragopt._redis.connections import Words
from ragopt._redis.servers import RedisServers
from ragopt._runtime import ASYNC, Runtime
from ragopt.errors import BackendUnavailable, StorageError
from ragopt.indexes._redis_errors import explaining
from ragopt.indexes._redis_made import Made, check_dimension, model_name, name_model
from ragopt.indexes._redis_moving import ShardGone
from ragopt.indexes._redis_records import SEQ
from ragopt.indexes._redis_schema import TRIES, Plan, root_key
from ragopt.indexes._redis_shard import RedisShard
from ragopt.indexes._redis_writing import Batch

P = ParamSpec("P")
T = TypeVar("T")

Operation: TypeAlias = Callable[[Runtime, RedisShard], Coroutine[Any, Any, T]]
"""What is done with a shard, in the colour that it is given."""


class Shards(Protocol):
    """What an index needs of its shards."""

    @property
    def dimension(self) -> int | None:
        """Length of the vectors, where it is known."""
        ...

    @property
    def text(self) -> bool:
        """Whether the index is, or will be, for searches by text."""
        ...

    async def each(self, io: Runtime, operation: Operation[T]) -> list[T]:
        """Return the results of an operation on all shards, none where there is no index yet."""
        ...

    async def add(self, io: Runtime, batch: Batch) -> None:
        """Store records, after what is missing of the index was made."""
        ...

    async def made_by(self, io: Runtime, model: str | None, replace: bool) -> str | None:
        """Name the model; see ``name_model``. None where there is no index yet."""
        ...

    async def model(self, io: Runtime) -> str | None:
        """Return the name of the model, of an index that is there."""
        ...

    async def drop(self, io: Runtime) -> None:
        """Remove the index."""
        ...


class OneShard:
    """The shards of an index on a single server.

    Args:
        shard: The only one.
    """

    def __init__(self, shard: RedisShard) -> None:
        self.shard = shard
        self._schema = shard.schema

    @property
    def dimension(self) -> int | None:
        """Length of the vectors, where it is known."""
        return self._schema.dimension

    @property
    def text(self) -> bool:
        """Whether the index is, or will be, for searches by text."""
        return self._schema.text

    async def each(self, io: Runtime, operation: Operation[T]) -> list[T]:
        """Return the result of an operation, or none where there is no index yet."""
        return [await operation(io, self.shard)] if await self._schema.opened(io) else []

    async def add(self, io: Runtime, batch: Batch) -> None:
        """Store records; an error says from which one on they were not."""
        number = len(batch.rows)
        stored: set[int] = set()
        try:
            await self._schema.prepare(io, batch.dimension, batch.fields)
            (last,) = await self._schema.ask(io, ("HINCRBY", self._schema.meta, SEQ, number))
            first = int(last) - number + 1
            await self.shard.writer.store(io, batch, range(number), first, stored)
        except StorageError as error:
            raise batch.not_stored(error, stored) from error

    async def made_by(self, io: Runtime, model: str | None, replace: bool) -> str | None:
        """Name the model; None where there is no index yet."""
        there = await self._schema.opened(io)
        if not there:
            return None
        return await name_model(partial(self._schema.ask, io), self._schema.meta, model, replace)

    async def model(self, io: Runtime) -> str | None:
        """Return the name of the model, of an index that is there."""
        return model_name(*await self._schema.ask(io, ("HGET", self._schema.meta, "model")))

    async def drop(self, io: Runtime) -> None:
        """Remove the index."""
        await self._schema.drop(io)


class _Known(NamedTuple):
    """What is known of an index on a cluster.

    Args:
        made: What all shards are made for, and how many there are.
        whole: Whether all of them have been made.
        shards: They.
    """

    made: Made
    whole: bool
    shards: list[RedisShard]


def _on_loop(
    method: Callable[Concatenate[ClusterShards, Runtime, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[ClusterShards, Runtime, P], Coroutine[Any, Any, T]]:
    """Run an operation on the caller's event loop or, for a sync call, on the portal's."""

    async def on_loop(self: ClusterShards, io: Runtime, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def hop() -> T:
            return self._servers.hop(lambda: method(self, ASYNC, *args, **kwargs))

        return await io.call(hop, lambda: method(self, io, *args, **kwargs))

    return on_loop


class ClusterShards:
    """The shards of an index on a cluster.

    Args:
        servers: The cluster.
        plan: What the index is to be.
        new: Makes a shard from what the index is to be, its number, and how many there are.
        shards: How many a new index has; None for one on each master.
    """

    def __init__(
        self,
        servers: RedisServers,
        plan: Plan,
        new: Callable[[Plan, int, int], RedisShard],
        shards: int | None,
    ) -> None:
        self._servers = servers
        self._plan = plan
        self._name = plan.name
        self._root = root_key(plan.prefix, plan.name, on_cluster=True)
        self._new = new
        self._dimension = plan.dimension
        self._number = shards
        self._known: _Known | None = None

    @property
    def dimension(self) -> int | None:
        """Length of the vectors, where it is known."""
        return self._dimension

    @property
    def text(self) -> bool:
        """Whether the index is, or will be, for searches by text."""
        known = self._known
        return self._plan.text if known is None else known.made.text

    @_on_loop
    async def each(self, io: Runtime, operation: Operation[T]) -> list[T]:
        """Return the results of an operation on all shards, none where there is no index yet."""
        for left in reversed(range(TRIES)):
            try:
                shards = await self._opened(io)
                return await io.gather(operation(io, shard) for shard in shards)
            except ShardGone:
                if not left:
                    raise
                self._forget()
        raise AssertionError("the last try raises")

    @_on_loop
    async def add(self, io: Runtime, batch: Batch) -> None:
        """Store records; an error says how many were not, and the first of them."""
        for left in reversed(range(TRIES)):
            stored: set[int] = set()
            try:
                await self._add(io, batch, stored)
                return
            except ShardGone as error:
                self._forget()
                if not left:
                    raise batch.not_stored(error, stored) from error
            except StorageError as error:
                raise batch.not_stored(error, stored) from error

    @_on_loop
    async def made_by(self, io: Runtime, model: str | None, replace: bool) -> str | None:
        """Name the model; None where there is no index yet."""
        if not (self._known or await self._learn(io)):
            return None
        return await name_model(partial(self._ask, io), self._root, model, replace)

    @_on_loop
    async def model(self, io: Runtime) -> str | None:
        """Return the name of the model, of an index that is there."""
        return model_name(*await self._ask(io, ("HGET", self._root, "model")))

    @_on_loop
    async def drop(self, io: Runtime) -> None:
        """Remove the index and whatever is left of it."""
        (text,) = await self._ask(io, ("HGET", self._root, "schema"))
        number = Made.load(text, self._name).shards if text else await self._guess(io)
        # Without it, a shard that is not there is no error for those who read meanwhile.
        await self._ask(io, ("HDEL", self._root, "whole"))
        shards = (self._new(self._plan, each, number) for each in range(number))
        await io.gather(shard.schema.drop(io) for shard in shards)
        await self._ask(io, ("DEL", self._root))
        self._forget()
        self._dimension = self._plan.dimension

    # -- what there is -------------------------------------------------------------------------

    async def _ask(self, io: Runtime, *commands: Words) -> list[Any]:
        replies = self._servers.ask_together(io, self._root, commands)
        return await explaining(replies, self._name, self._servers.name)

    async def _opened(self, io: Runtime) -> list[RedisShard]:
        """Return the shards; none of an index that is being made, or dropped."""
        known = self._known
        if known is None or not known.whole:
            known = await self._learn(io)
        if known is None or not known.whole:
            return []
        if not all([await shard.schema.opened(io) for shard in known.shards]):
            raise ShardGone(
                f"A shard of the Redis index {self._name!r} is not there any more.",
                fix="Try again.",
            )
        return known.shards

    async def _learn(self, io: Runtime) -> _Known | None:
        """Read what the index is; None if there is none yet."""
        for _ in range(TRIES):
            # A server without the query engine says so here.
            commands = ("HMGET", self._root, "schema", "whole"), ("FT._LIST",)
            (text, whole), _ = await self._ask(io, *commands)
            made = Made.load(text, self._name) if text else None
            number = await self._guess(io) if made is None else made.shards
            # One that somebody left half made is for texts if the others are.
            plan = self._plan if made is None else replace(self._plan, text=made.text)
            shards = [self._new(plan, each, number) for each in range(number)]
            if made is not None:
                self._plan.wanted.check(made, self._name, self._dimension)
            complete = made is not None and whole == made.token.encode()
            there = [True]
            if made is None or complete:
                there = await io.gather(shard.schema.opened(io) for shard in shards)
            if made is None and not any(there):
                return None
            if made is not None and all(there):
                self._known = known = _Known(made, complete, shards)
                self._dimension = made.dimension
                return known
            # Unless somebody makes or drops the index just now, so that it soon is another one.
        raise BackendUnavailable(
            f"Of the {number} shards of the Redis index {self._name!r} {sum(there)} are there, "
            f"{'with' if made else 'without'} what is stored about all of them: a server has lost "
            "its data.",
            fix="Bring the data of that server back; or drop() the index, and add all records "
            "again.",
        )

    async def _guess(self, io: Runtime) -> int:
        """Return how many shards a new index has."""
        return self._number or len(await self._servers.masters(io))

    def _forget(self) -> None:
        self._known = None

    # -- adding --------------------------------------------------------------------------------

    async def _make(self, io: Runtime, dimension: int) -> _Known:
        """Write what the index is, unless another process did, and make the shards."""
        ours = replace(self._plan.new(dimension), shards=await self._guess(io))
        (won,) = await self._ask(io, ("HSETNX", self._root, "schema", ours.dump()))
        try:
            known = await self._learn(io)
            if known is None:
                raise ShardGone(
                    f"The Redis index {self._name!r} was dropped while it was made.",
                    fix="Try again.",
                )
            return await self._prepared(io, known, dimension, frozenset())
        except BackendUnavailable:
            raise
        except StorageError:
            if won:  # it cannot be made like this: by others neither
                await self.drop(io)
            raise

    async def _prepared(
        self, io: Runtime, known: _Known, dimension: int, fields: frozenset[str]
    ) -> _Known:
        """Return the index with what was missing of its shards."""
        check_dimension(known.made, self._name, dimension)
        await io.gather(shard.schema.prepare(io, dimension, fields) for shard in known.shards)
        if not known.whole:
            await self._ask(io, ("HSET", self._root, "whole", known.made.token))
            self._known = known = known._replace(whole=True)
        return known

    async def _add(self, io: Runtime, batch: Batch, stored: set[int]) -> None:
        known = self._known or await self._learn(io) or await self._make(io, batch.dimension)
        known = await self._prepared(io, known, batch.dimension, batch.fields)
        number = len(batch.rows)
        (last,) = await self._ask(io, ("HINCRBY", self._root, SEQ, number))
        first = int(last) - number + 1
        errors: list[StorageError] = []

        async def store(shard: RedisShard) -> None:
            try:
                await shard.writer.store(io, batch, shard.mine(batch.ids), first, stored)
            except StorageError as error:
                errors.append(error)

        await io.gather(store(shard) for shard in known.shards)
        if errors:
            raise next((each for each in errors if isinstance(each, ShardGone)), errors[0])
        (text,) = await self._ask(io, ("HGET", self._root, "schema"))
        if text != known.made.dump():
            raise ShardGone(
                f"Other processes made the Redis index {self._name!r} anew.",
                fix="Do not drop it while records are added.",
            )
