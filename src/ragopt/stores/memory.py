"""The in-process layer: a bounded LRU map."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput
from ragopt.protocols import Clock, Entry
from ragopt.stores.base import BaseKVStore

# What CPython spends on an entry besides its bytes: two bytes headers, a tuple, a float and the
# link and slot of the ordered dict (measured with tracemalloc over 100,000 entries).
_OVERHEAD = 230


class MemoryStore(BaseKVStore):
    """Bytes in this process, least recently used out first.

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
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes that the entries take up."""
        return self._bytes

    async def _get_many(self, io: Runtime, keys: Sequence[bytes]) -> list[Entry | None]:
        now = self._clock()
        found: list[Entry | None] = []
        with self._lock:
            entries, touch = self._entries, self._entries.move_to_end
            for key in keys:
                entry = entries.get(key)
                if entry is not None:
                    expires_at = entry[1]  # by position: half the time of the name
                    if expires_at is not None and expires_at <= now:
                        self._drop(key)
                        entry = None
                    else:
                        touch(key)
                found.append(entry)
        return found

    async def _set_many(
        self, io: Runtime, items: Mapping[bytes, bytes], expires_at: float | None
    ) -> None:
        with self._lock:
            for key, value in items.items():
                self._drop(key)
                size = len(key) + len(value) + _OVERHEAD
                if size > self.max_bytes:
                    continue  # it would push out everything else and still not fit
                self._entries[key] = Entry(value, expires_at)
                self._bytes += size
            while self._bytes > self.max_bytes or (
                self.max_entries is not None and len(self._entries) > self.max_entries
            ):
                self._drop(next(iter(self._entries)))

    async def _delete_many(self, io: Runtime, keys: Sequence[bytes]) -> int:
        with self._lock:
            return sum(self._drop(key) for key in keys)

    async def _clear(self, io: Runtime, prefix: bytes) -> None:
        with self._lock:
            for key in [key for key in self._entries if key.startswith(prefix)]:
                self._drop(key)

    async def _count(self, io: Runtime, prefix: bytes) -> int:
        now = self._clock()
        with self._lock:
            return sum(
                key.startswith(prefix) and (entry.expires_at is None or entry.expires_at > now)
                for key, entry in self._entries.items()
            )

    async def _close(self, io: Runtime) -> None:
        await self._clear(io, b"")

    def _drop(self, key: bytes) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._bytes -= len(key) + len(entry.value) + _OVERHEAD
        return True
