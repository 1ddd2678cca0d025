"""What a Redis index is on its server: made by whoever comes first, checked by the others.

Beside the index of the query engine there is one hash, which says what the index was made for. It
holds

* ``schema``: dimension, metric, kind, precision, and a token of this making of the index;
* the name of each NUMERIC field for metadata, with the token of the making that has it;
* ``model``, the name of what made the vectors, where it was told;
* ``version``, replaced with every change, and ``seq``, the number of the last record added;
* ``filling``, while the engine reads the records again that an index lost.

All these keys share a hash tag: a cluster has them on one server. See ``_redis_moving``.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ragopt._redis.connections import Words
from ragopt._redis.servers import RedisServers
from ragopt._runtime import Runtime
from ragopt.errors import (
    BackendUnavailable,
    InvalidInput,
    StorageError,
)
from ragopt.indexes._redis_errors import explaining, in_cluster, is_duplicate, is_missing
from ragopt.indexes._redis_filters import TAGS
from ragopt.indexes._redis_made import Made, Wanted, check_dimension
from ragopt.indexes._redis_postings import BLOCK
from ragopt.indexes._redis_records import PRECISIONS, SEQ, VECTOR
from ragopt.types import Metric

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_PREFIX = re.compile(r"[A-Za-z0-9_.:/-]{0,128}")
_FIELDS = 1_000  # the engine takes 1,024 in all
FILLING = b"filling"
_PAUSE = 0.02  # seconds between two looks at an index that is being filled
TRIES = 3  # times to begin again after another process removed the index


def check_name(name: str, prefix: str) -> None:
    """Raise InvalidInput unless this can be the name of an index, or an alias."""
    if not _NAME.fullmatch(name) or not _PREFIX.fullmatch(prefix):
        raise InvalidInput(
            f"{name!r} with the prefix {prefix!r} cannot be the name of a Redis index.",
            fix="Use up to 128 letters, digits, _ . and - for the name; : and / as well for the "
            "prefix.",
        )


def root_key(prefix: str, name: str, on_cluster: bool) -> bytes:
    """Return the key of the hash that says what an index as a whole was made for."""
    return f"{prefix}{{{name}}}:{'shards' if on_cluster else 'meta'}".encode()


def alias_key(prefix: str, alias: str) -> bytes:
    """Return the key that holds the name of the index with an alias."""
    # No name has a colon, and the tags of shards have a number behind it.
    return f"{prefix}{{{alias}:alias}}".encode()


@dataclass(frozen=True, slots=True)
class Plan:
    """What somebody asked an index to be.

    Args:
        name: Its name.
        prefix: What all its keys begin with.
        wanted: What it is made for.
        m: Links of a node of the HNSW graph.
        ef_construction: Candidates while the graph is built.
        dimension: Length of the vectors, where it is known.
        timeout: Seconds to wait for an index that another process fills.
        text: Whether a new index is for searches by text.
    """

    name: str
    prefix: str
    wanted: Wanted
    m: int
    ef_construction: int
    dimension: int | None
    timeout: float
    text: bool

    def __post_init__(self) -> None:
        check_name(self.name, self.prefix)

    def new(self, dimension: int) -> Made:
        """Return what an index is for that is made now."""
        return Made(dimension, *self.wanted, secrets.token_hex(8), self.text)


class RedisSchema:
    """One index of the query engine, and the hash beside it.

    Args:
        servers: Where it is.
        plan: What it is to be.
        tag: The hash tag of its keys; None for its name.
    """

    block = BLOCK
    """How many places a block of postings is for."""

    def __init__(self, servers: RedisServers, plan: Plan, tag: str | None = None) -> None:
        self._servers = servers
        self._plan = plan
        self.name = plan.name
        # Braces, or ("a.", "b") and ("a", ".b") were one.
        self.index = f"{plan.prefix}{{{tag or plan.name}}}"
        self.records = f"{self.index}:r:"
        self.meta = f"{self.index}:meta".encode()
        self.postings = f"{self.index}:postings"
        self._graph = "M", plan.m, "EF_CONSTRUCTION", plan.ef_construction
        self.dimension = plan.dimension
        self.made: Made | None = None  # as far as is known
        self.fields: frozenset[str] = frozenset()  # NUMERIC ones for metadata
        self._filling = False

    @property
    def text(self) -> bool:
        """Whether the index is, or will be, for searches by text."""
        return self._plan.text if self.made is None else self.made.text

    async def ask(self, io: Runtime, *commands: Words) -> list[Any]:
        """Send commands in one round trip to the server that has the index."""
        return await self._send(io, *commands)

    async def _send(self, io: Runtime, *commands: Words) -> list[Any]:
        replies = self._servers.ask(io, [(self.meta, words) for words in commands])
        return await explaining(replies, self.name, self._servers.name)

    async def query(self, io: Runtime, commands: Sequence[tuple[Any, ...]]) -> list[Any] | None:
        """Send queries about the index; None if there is none, which another process may see to."""
        if not await self.opened(io):
            return None
        try:
            return await self.ask(io, *commands)
        except BackendUnavailable:
            raise
        except StorageError as error:
            # It may have become an index of another dimension, which is the better error.
            if not await self.opened(io, again=True):
                return None
            if not is_missing(error):
                raise
        return await self.ask(io, *commands)

    async def opened(self, io: Runtime, again: bool = False) -> bool:
        """Learn what the index is, unless that is known; False if there is none yet.

        Raises:
            DimensionMismatch: It has another dimension.
            InvalidInput: It was made for another metric, kind or precision.
            StorageError: It was not made by ragopt, there is no query engine, or the server is
                one of a cluster.
        """
        known = self.made is not None and not (again or self._filling)
        return known or await self._open(io)

    async def prepare(
        self, io: Runtime, dimension: int, fields: Collection[str], again: bool = False
    ) -> None:
        """Make what is missing of the index, before records with such vectors and numbers."""
        for left in reversed(range(TRIES)):
            try:
                if not await self.opened(io, again):
                    await self._create(io, dimension)
                assert self.made is not None
                check_dimension(self.made, self.name, dimension)
                await self._add_fields(io, fields)
            except StorageError as error:
                if not is_missing(error) or not left:
                    raise
                again = True  # another process removed it
            else:
                return

    async def _open(self, io: Runtime) -> bool:
        if self.made is None:
            await self._refuse_cluster(io)
        for _ in range(2):
            # In this order: an index that is made meanwhile is never taken for a stranger's.
            is_there = await self._is_there(io)
            if await self.refresh(io):
                await self._complete(io, is_there)
                return True
            if not is_there:
                self.made, self.fields = None, frozenset()
                return False
        raise StorageError(
            f"The Redis index {self.index!r} exists and was not made by ragopt.",
            fix="Nothing was written to it. Give another name or prefix.",
        )

    async def _complete(self, io: Runtime, is_there: bool) -> None:
        """Make what the engine lacks, and wait until it has all of the records."""
        if not is_there:  # somebody died before it was made, or dropped it by hand
            self._filling = True
            await self.ask(io, ("HSET", self.meta, FILLING, 1))
            await self._define(io, scan=True)
        if self._filling:
            await self._filled(io)

    async def refresh(self, io: Runtime) -> bool:
        """Learn which fields there are now; False if there is no index."""
        (meta,) = await self.ask(io, ("HGETALL", self.meta))
        return self._read(dict(zip(meta[::2], meta[1::2], strict=True)))

    def _read(self, values: Mapping[bytes, bytes]) -> bool:
        self._filling = FILLING in values
        if text := values.get(b"schema"):
            self._learn(text, values)
        return text is not None

    async def _refuse_cluster(self, io: Runtime) -> None:
        try:
            (info,) = await self.ask(io, ("INFO", "cluster"))
        except BackendUnavailable:
            raise
        except StorageError:
            return  # the user may not ask; what a cluster does not store is refused all the same
        if b"cluster_enabled:1" in info:
            raise in_cluster(self._servers.name)

    def _learn(self, text: bytes, values: Mapping[bytes, bytes]) -> None:
        made = Made.load(text, self.name)
        self._plan.wanted.check(made, self.name, self.dimension)
        token = made.token.encode()
        fields = frozenset(name.decode() for name, value in values.items() if value == token)
        self.made, self.fields, self.dimension = made, fields, made.dimension

    async def _is_there(self, io: Runtime) -> bool:
        try:
            await self._send(io, ("FT.SEARCH", self.index, "*", "LIMIT", 0, 0))
        except StorageError as error:
            if not is_missing(error):
                raise
            return False
        return True

    async def _create(self, io: Runtime, dimension: int) -> None:
        """Make the index; any number of processes may try at once, and the first one decides."""
        ours = self._plan.new(dimension).dump()
        won, text = await self.ask(
            io, ("HSETNX", self.meta, "schema", ours), ("HGET", self.meta, "schema")
        )
        self._learn(text, {})
        try:
            await self._define(io, scan=not won)
        except BackendUnavailable:
            raise
        except StorageError:
            self.made = None
            if won:  # nobody else has made it either
                await self.ask(io, ("HDEL", self.meta, "schema"))
            raise

    def _definition(self, made: Made, scan: bool) -> tuple[Any, ...]:
        """Return the words of FT.CREATE, without the fields for metadata."""
        how = (
            *("TYPE", PRECISIONS[made.precision], "DIM", made.dimension),
            *("DISTANCE_METRIC", "L2" if made.metric == Metric.L2 else "IP"),
            *(self._graph if made.kind == "hnsw" else ()),
        )
        return (
            *("FT.CREATE", self.index, "ON", "HASH", "PREFIX", 1, self.records),
            *(() if scan else ("SKIPINITIALSCAN",)),
            *("SCHEMA", TAGS, "TAG", "SEPARATOR", ",", "CASESENSITIVE", SEQ, "NUMERIC", "SORTABLE"),
            *(VECTOR, "VECTOR", made.kind.upper(), len(how), *how),
        )

    async def _define(self, io: Runtime, *, scan: bool) -> None:
        assert self.made is not None
        fields = [word for field in sorted(self.fields) for word in (field, "NUMERIC")]
        try:
            await self.ask(io, (*self._definition(self.made, scan), *fields))
        except StorageError as error:
            if not is_duplicate(error):
                raise

    async def _filled(self, io: Runtime) -> None:
        """Wait until an index that found records has taken them all in.

        Only then is the server asked, which takes it half a second for a million records.
        """
        until = time.monotonic() + self._plan.timeout
        while True:
            info = await self.info(io)
            if not int(info.get(b"indexing", 0)):
                await self.ask(io, ("HDEL", self.meta, FILLING))
                self._filling = False
                return
            if time.monotonic() > until:
                share = float(info.get(b"percent_indexed", 0))
                raise BackendUnavailable(
                    f"The Redis index {self.name!r} is being filled again: {share:.0%} is done.",
                    fix="Try again later, or raise timeout.",
                )
            await io.sleep(_PAUSE)

    async def _add_fields(self, io: Runtime, names: Collection[str]) -> None:
        """Make NUMERIC fields before the first record that has them is stored.

        So no record has to be looked at again, which would insert its vector anew. Beyond the
        number of fields that the engine takes, filters are decided in Python.
        """
        assert self.made is not None
        new = sorted(set(names) - self.fields)[: _FIELDS - len(self.fields)]
        if not new:
            return
        try:
            await self._alter(io, new)
        except StorageError as error:
            if not is_duplicate(error):
                raise
            for name in new:  # another process was first with some of them
                try:
                    await self._alter(io, [name])
                except StorageError as again:
                    if not is_duplicate(again):
                        raise
        token = self.made.token
        await self.ask(io, ("HSET", self.meta, *(word for name in new for word in (name, token))))
        self.fields |= set(new)

    async def _alter(self, io: Runtime, names: Iterable[str]) -> None:
        fields = (word for name in names for word in (name, "NUMERIC"))
        await self.ask(io, ("FT.ALTER", self.index, "SKIPINITIALSCAN", "SCHEMA", "ADD", *fields))

    def change(self) -> tuple[Any, ...]:
        """Return the command that replaces the version."""
        return "HSET", self.meta, "version", secrets.token_hex(8)

    def changes(self, last: int) -> list[tuple[Any, ...]]:
        """Return the commands for a change after which records are at places up to ``last``."""
        return [self.change()]

    async def clear(self, io: Runtime) -> int:
        """Remove all records at once, by making the index anew; return how many there were."""
        assert self.made is not None
        new = replace(self.made, token=secrets.token_hex(8))
        *_, outcomes = await self.ask(
            io,
            ("MULTI",),
            ("FT.SEARCH", self.index, "*", "LIMIT", 0, 0),
            ("FT.DROPINDEX", self.index, "DD"),
            ("HSET", self.meta, "schema", new.dump()),
            self._definition(new, scan=False),
            ("UNLINK", self.postings),
            self.change(),
            ("EXEC",),
        )
        counted, _, _, defined, *_ = outcomes
        if isinstance(defined, Exception):  # an index by hand, between the two: all is left to open
            self.made = None
            raise StorageError(
                f"The Redis index {self.name!r} was emptied and not made anew ({defined}).",
                fix="Use it again: what is missing is made at the next operation.",
            )
        self.made, self.fields = new, frozenset()
        return 0 if isinstance(counted, Exception) else int(counted[0])

    async def drop(self, io: Runtime) -> None:
        """Remove the index, its records and what is stored about it; a stranger's stays."""
        (ours,) = await self.ask(io, ("HEXISTS", self.meta, "schema"))
        if ours:
            remove = ("FT.DROPINDEX", self.index, "DD"), ("DEL", self.meta, self.postings)
            await self.ask(io, ("MULTI",), *remove, ("EXEC",))
        self.made, self.fields, self.dimension = None, frozenset(), self._plan.dimension

    async def info(self, io: Runtime) -> dict[bytes, Any]:
        """Return what FT.INFO says."""
        (reply,) = await self.ask(io, ("FT.INFO", self.index))
        return dict(zip(reply[::2], reply[1::2], strict=True))
