"""How the near layers of one process learn what another one deleted or replaced."""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

from ragopt._forks import fork_safe
from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput
from ragopt.protocols import ChangeLog
from ragopt.stores.memory import MemoryStore

if TYPE_CHECKING:
    from ragopt.cache.tiers import TieredCache

_SPACE = b"ragopt:keys"
_KEY, _PREFIX = b"k", b"p"  # what a tag names: one key, or all that begin so


class Coherence:
    """Follows the log of deleted and replaced keys, and drops those from the near layers.

    The log is read when a look-up comes and the last reading is ``max_staleness`` seconds old.
    There is no connection to lose and no message to miss: after any interruption the reading
    goes on where it stopped, or drops everything if the log has begun anew.

    Args:
        cache: The cache whose last layer keeps the log.
        max_staleness: Seconds; 0 reads the log at every look-up.
    """

    def __init__(self, cache: TieredCache, max_staleness: float) -> None:
        if cache.coordinator is None:
            raise InvalidInput(
                f"The last layer, {cache.layers[-1].name}, cannot tell what others deleted.",
                fix="Use a SqliteStore or RedisStore there, or leave max_staleness out.",
            )
        self._cache = cache
        self._store = cache.coordinator
        self._max_staleness = max_staleness
        self._lock = fork_safe(Lock())
        self._reader = 0  # the process that reads just now
        self._read_at = float("-inf")
        self._log: ChangeLog | None = None

    async def catch_up(self, io: Runtime) -> None:
        """Drop what was changed elsewhere, if the last look at the log is too long ago."""
        begun = monotonic()
        if begun - self._read_at < self._max_staleness:
            return
        with self._lock:
            if self._reader == os.getpid() and self._max_staleness:
                return  # another thread or task is at it
            self._reader = os.getpid()
        try:
            await self._read(io, begun)
        finally:
            self._reader = 0

    async def _read(self, io: Runtime, begun: float) -> None:
        known, store = self._log, self._store
        near = self._cache.layers[:-1]
        if known is None and all(isinstance(layer, MemoryStore) for layer in near):
            # Nothing was in them before this process began, so only the log's end matters.
            first = await self._cache.attempt(
                io, store.last_changes, store.alast_changes, _SPACE, ()
            )
            if isinstance(first, tuple):
                self._log, self._read_at = first[0], begun
            return
        seq = 0 if known is None else known.seq
        found = await self._cache.attempt(
            io, store.changes_since, store.achanges_since, _SPACE, seq
        )
        if not isinstance(found, tuple):
            return
        log, tags = found
        if seq < log.low or (known is not None and known.id != log.id):
            tags = [_PREFIX]  # what happened meanwhile is not known: all may have changed
        self._log = log
        keys = [tag[1:] for tag in tags if tag[:1] == _KEY]
        if tags:  # before they go, so that nobody who has just read one puts it back
            self._cache.changes += 1
        for layer in near:
            if keys:
                await io.call(layer.delete_many, layer.adelete_many, keys)
            for tag in tags:
                if tag[:1] == _PREFIX:
                    await io.call(layer.clear, layer.aclear, tag[1:])
        self._read_at = begun

    async def changed(self, io: Runtime, keys: Sequence[bytes]) -> None:
        """Write down that keys were deleted or replaced."""
        if keys:
            await self._mark(io, [_KEY + key for key in keys])

    async def cleared(self, io: Runtime, prefix: bytes) -> None:
        """Write down that all keys with a prefix were deleted."""
        await self._mark(io, [_PREFIX + prefix])

    async def _mark(self, io: Runtime, tags: Sequence[bytes]) -> None:
        await io.call(self._store.mark, self._store.amark, _SPACE, tags)
