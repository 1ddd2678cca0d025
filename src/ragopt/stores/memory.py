"""The in-process layer: a bounded map."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from threading import Lock

from ragopt._forks import fork_safe
from ragopt._runtime import Runtime
from ragopt.codecs import stamp_of
from ragopt.errors import InvalidInput
from ragopt.protocols import ChangeLog, Clock, Entry
from ragopt.stores._memory_claims import MemoryClaims, MemoryLog
from ragopt.stores._s3fifo import S3Fifo
from ragopt.stores.coordinating import CoordinatingStore


class MemoryStore(CoordinatingStore):
    """Bytes in this process; what is asked for again stays, what is asked for once goes first.

    A value larger than ``max_bytes`` is not kept.

    Args:
        max_bytes: Bound on keys, values and what the interpreter spends on them.
        max_entries: Bound on the number of entries; None for no other bound than ``max_bytes``.
        clock: Seconds since the epoch.
    """

    name = "memory"

    def __init__(
        self,
        *,
        max_bytes: int = 256 * 2**20,
        max_entries: int | None = None,
        clock: Clock = time.time,
    ) -> None:
        super().__init__(clock=clock)
        if max_bytes <= 0 or (max_entries is not None and max_entries <= 0):
            raise InvalidInput(
                f"A memory store was given max_bytes={max_bytes} and max_entries={max_entries}.",
                fix="Give bounds above 0.",
            )
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self._entries = S3Fifo(max_bytes, max_entries)
        self._claims = MemoryClaims()
        self._logs: defaultdict[bytes, MemoryLog] = defaultdict(MemoryLog)
        self._lock = fork_safe(Lock())

    @property
    def size_bytes(self) -> int:
        """Bytes that the entries take up."""
        return self._entries.size_bytes

    @property
    def entries(self) -> int:
        """How many entries there are, with those that have expired and not been asked for since."""
        return len(self._entries)

    @property
    def evictions(self) -> int:
        """How many entries had to make room for others before their time was over."""
        return self._entries.evictions

    async def _get_many(self, io: Runtime, keys: Sequence[bytes]) -> list[Entry | None]:
        now = self._clock()
        with self._lock:
            return self._entries.get_many(keys, now)

    async def _set_many(
        self, io: Runtime, items: Mapping[bytes, bytes], expires_at: float | None
    ) -> None:
        now = self._clock()
        with self._lock:
            self._claims.end(items)
            for key, value in items.items():
                self._entries.put(key, Entry(value, expires_at), now)

    async def _delete_many(self, io: Runtime, keys: Sequence[bytes]) -> int:
        with self._lock:
            self._claims.end(keys)
            return self._entries.drop_many(keys)

    async def _clear(self, io: Runtime, prefix: bytes) -> None:
        with self._lock:
            self._claims.end_prefix(prefix)
            if prefix:
                self._entries.drop_many(
                    [key for key, _ in self._entries.items() if key.startswith(prefix)]
                )
            else:
                self._entries.clear()

    async def _count(self, io: Runtime, prefix: bytes) -> int:
        return len(await self._keys(io, prefix))

    async def _keys(self, io: Runtime, prefix: bytes) -> list[bytes]:
        now = self._clock()
        with self._lock:
            return [
                key
                for key, entry in self._entries.items()
                if key.startswith(prefix) and (entry.expires_at is None or entry.expires_at > now)
            ]

    async def _close(self, io: Runtime) -> None:
        await self._clear(io, b"")

    async def _claim(
        self, io: Runtime, key: bytes, seconds: float, over: bytes | None
    ) -> bytes | None:
        now = self._clock()
        with self._lock:
            (entry,) = self._entries.get_many([key], now)
            if entry is not None and stamp_of(entry) != over:
                return None
            token = self._claims.take(key, now, seconds)
            if token is not None:
                self._entries.drop_many([key])
            return token

    async def _extend(self, io: Runtime, key: bytes, token: bytes, seconds: float) -> bool:
        now = self._clock()
        with self._lock:
            held = self._claims.holds(key, token, now)
            if held:
                self._claims.extend(key, token, now + seconds)
            return held

    async def _commit(
        self, io: Runtime, key: bytes, token: bytes, value: bytes, expires_at: float | None
    ) -> bool:
        now = self._clock()
        with self._lock:
            if not self._holds(key, token, now):
                return False
            self._claims.end([key])
            self._entries.put(key, Entry(value, expires_at), now)
            return True

    async def _release(self, io: Runtime, key: bytes, token: bytes) -> bool:
        with self._lock:
            held = self._holds(key, token, self._clock())
            if held:
                self._claims.end([key])
                self._entries.drop_many([key])
            return held

    def _holds(self, key: bytes, token: bytes, now: float) -> bool:
        """Return whether this claim, or the entry with this stamp, is still there."""
        if self._claims.holds(key, token, now):
            return True
        (entry,) = self._entries.get_many([key], now)
        return entry is not None and stamp_of(entry) == token

    async def _mark(self, io: Runtime, space: bytes, tags: Sequence[bytes]) -> ChangeLog:
        with self._lock:
            return self._logs[space].mark(tags)

    async def _last_changes(
        self, io: Runtime, space: bytes, tags: Sequence[bytes]
    ) -> tuple[ChangeLog, list[int]]:
        with self._lock:
            log = self._logs[space]
            return log.state, log.last(tags)

    async def _changes_since(
        self, io: Runtime, space: bytes, seq: int
    ) -> tuple[ChangeLog, list[bytes]]:
        with self._lock:
            log = self._logs[space]
            return log.state, log.since(seq)
