"""Which entries stay when a bounded map is full: S3-FIFO."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress

from ragopt.protocols import Entry

# What CPython spends on an entry besides its bytes: headers, a tuple, a float, the link and slot of
# an ordered dict: 270 bytes in a map that never was full. One that is full has emptied slots, marks
# and ghosts too: 345 to 465, by how many entries are marked (tracemalloc, 50,000 entries).
_OVERHEAD = 440
_SMALL = 10  # the small queue holds one part in ten
_CHANCES = 32  # second chances that one eviction gives, so that no set waits for a whole round


def size_of(key: bytes, entry: Entry) -> int:
    """Return the bytes of memory that an entry takes up, all told.

    Values of different lengths that come and go leave holes in the heap: the process takes up to
    an eighth more than the interpreter asks for.
    """
    value, _, stamp = entry
    return len(key) + len(value) * 9 // 8 + len(stamp) + _OVERHEAD


class S3Fifo:
    """Entries under keys, bounded in bytes and in number; not safe to share between threads.

    New entries wait in a small queue, a tenth of all bytes. Whoever was asked for meanwhile moves
    on to the main queue, the others leave, so a bulk of keys that are used once passes through the
    tenth and pushes out nothing else. Keys that left this way are remembered for a while as
    *ghosts*: who comes back goes to the main queue at once. A hit moves nothing, it only leaves
    a mark.

    After Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction"
    (SOSP 2023), with one mark in place of a counter to three, hashes in two generations as ghosts
    and a limit to second chances; on Zipf streams the hit rate is the same within a point.

    Args:
        max_bytes: Bound on what all entries take up.
        max_entries: Bound on their number; None for no other bound than ``max_bytes``.
    """

    def __init__(self, max_bytes: int, max_entries: int | None) -> None:
        self.max_bytes = max_bytes
        self.max_entries = sys.maxsize if max_entries is None else max_entries
        self.evictions = 0
        self._small: OrderedDict[bytes, Entry] = OrderedDict()
        self._main: OrderedDict[bytes, Entry] = OrderedDict()
        self._visited: set[bytes] = set()
        # Hashes take less room than keys; that two keys may share one costs nothing but a place.
        self._ghosts: set[int] = set()
        self._older_ghosts: set[int] = set()
        self._bytes = self._small_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes that the entries take up."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def items(self) -> Iterator[tuple[bytes, Entry]]:
        """Yield all keys and entries, expired ones too."""
        return chain(self._small.items(), self._main.items())

    def get_many(self, keys: Sequence[bytes], now: float) -> list[Entry | None]:
        """Return an entry or None for each key, and drop those that have expired."""
        small, main = self._small.get, self._main.get
        found = []
        for key in keys:
            entry = main(key) or small(key)
            if entry is not None:
                expires_at = entry[1]  # by position: half the time of the name
                if expires_at is not None and expires_at <= now:
                    self.drop(key)
                    entry = None
            found.append(entry)
        self._visited.update(compress(keys, found))
        return found

    def put(self, key: bytes, entry: Entry, now: float) -> None:
        """Store an entry at the end of its queue; forget the key if it exceeds the bound alone."""
        small, main = self._small, self._main
        known = key in main
        if known or key in small:
            self.drop(key)
        size = size_of(key, entry)
        if size > self.max_bytes:
            return  # it would push out everything else and still not fit
        # Room is made first: the new entry, not asked for yet, would be the first to go.
        while self._bytes + size > self.max_bytes or len(small) + len(main) >= self.max_entries:
            self._evict(now)
        self._bytes += size
        if known or (mark := hash(key)) in self._ghosts or mark in self._older_ghosts:
            main[key] = entry
        else:
            small[key] = entry
            self._small_bytes += size

    def drop(self, key: bytes) -> bool:
        """Remove a key; return whether it was there."""
        entry = self._main.pop(key, None)
        if entry is None:
            entry = self._small.pop(key, None)
            if entry is None:
                return False
            self._small_bytes -= size_of(key, entry)
        self._bytes -= size_of(key, entry)
        self._visited.discard(key)
        return True

    def drop_many(self, keys: Iterable[bytes]) -> int:
        """Remove keys; return how many were there."""
        return sum(map(self.drop, keys))

    def clear(self) -> None:
        """Remove everything, ghosts too."""
        for part in (self._small, self._main, self._visited, self._ghosts, self._older_ghosts):
            part.clear()
        self._bytes = self._small_bytes = 0

    def _evict(self, now: float) -> None:
        """Remove one entry: the first that has expired or was not asked for since its last turn."""
        small, main, visited = self._small, self._main, self._visited
        for chances in range(_CHANCES, -1, -1):
            is_small = not main or self._small_bytes * _SMALL > self._bytes
            key, entry = (small if is_small else main).popitem(last=False)
            size = size_of(key, entry)
            if is_small:
                self._small_bytes -= size
            expires_at = entry[1]
            expired = expires_at is not None and expires_at <= now
            if key in visited:
                visited.remove(key)
                if chances and not expired:
                    main[key] = entry
                    continue
            break
        self._bytes -= size
        if not expired:
            self.evictions += 1
            if is_small:
                self._ghosts.add(hash(key))
                if len(self._ghosts) * 2 > len(small) + len(main):
                    # Both generations together hold about as many as there are entries.
                    self._older_ghosts, self._ghosts = self._ghosts, set()
