"""How the near layers of one process learn what another one deleted or replaced."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

from ragopt._runtime import Runtime
from ragopt.protocols import ChangeLog, Coordinator
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
        self._cache = cache
        self._max_staleness = max_staleness
        self._lock = Lock()
        self._reading = False
        self._read_at = float("-inf")
        self._log: ChangeLog | None = None

    @property
    def position(self) -> ChangeLog | None:
        """Up to where the log was read; what is read from the last layer is at least as new."""
        return self._log

    async def catch_up(self, io: Runtime, store: Coordinator) -> None:
        """Drop what was changed elsewhere, if the last look at the log is too long ago."""
        begun = monotonic()
        if begun - self._read_at < self._max_staleness:
            return
        with self._lock:
            if self._reading and self._max_staleness:
                return  # another thread or task is at it
            self._reading = True
        try:
            await self._read(io, store, begun)
        finally:
            self._reading = False

    async def _read(self, io: Runtime, store: Coordinator, begun: float) -> None:
        known = self._log
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
        self._log = log  # first, so that whoever read before this does not fill in afterwards
        for layer in near:
            keys = [tag[1:] for tag in tags if tag[:1] == _KEY]
            if keys:
                await io.call(layer.delete_many, layer.adelete_many, keys)
            for tag in tags:
                if tag[:1] == _PREFIX:
                    await io.call(layer.clear, layer.aclear, tag[1:])
        self._read_at = begun

    async def changed(self, io: Runtime, store: Coordinator, keys: Sequence[bytes]) -> None:
        """Write down that keys were deleted or replaced."""
        if keys:
            tags = [_KEY + key for key in keys]
            await io.call(store.mark, store.amark, _SPACE, tags)

    async def cleared(self, io: Runtime, store: Coordinator, prefix: bytes) -> None:
        """Write down that all keys with a prefix were deleted."""
        await io.call(store.mark, store.amark, _SPACE, [_PREFIX + prefix])
