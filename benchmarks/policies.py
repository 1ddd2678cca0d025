"""What ``MemoryStore`` keeps when it is full, against least recently used and W-TinyLFU."""

from __future__ import annotations

import random
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol

from benchmarks.report import Table
from benchmarks.zipf import EXPONENTS, HEADLINE, INTENTS, ideal_hit_rate, stream
from ragopt import MemoryStore
from ragopt.protocols import Entry

_REQUESTS = (10_000, 100_000)
_CAPACITIES = (1_000, 5_000, 10_000)  # 1, 5 and 10 % of the intents
_SCAN = 50_000  # keys of a bulk of which each is asked for once
_TTL = 3_600


class Store(Protocol):
    """What a policy is asked to do."""

    def get_many(self, keys: Sequence[bytes], /) -> Sequence[Any]: ...

    def set_many(self, items: dict[bytes, bytes], /, *, ttl: float) -> None: ...


class LruEntries:
    """Entries of a ``MemoryStore``, least recently used out first: the yardstick."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def get_many(self, keys: Sequence[bytes], now: float) -> list[Entry | None]:
        entries, touch = self._entries, self._entries.move_to_end
        found: list[Entry | None] = []
        for key in keys:
            entry = entries.get(key)
            if entry is not None:
                expires_at = entry[1]
                if expires_at is not None and expires_at <= now:
                    del entries[key]
                    entry = None
                else:
                    touch(key)
            found.append(entry)
        return found

    def put(self, key: bytes, entry: Entry, now: float) -> None:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)


class TheineStore:
    """W-TinyLFU of the package theine (Einziger et al., "TinyLFU", ACM ToS 2017)."""

    def __init__(self, capacity: int) -> None:
        from datetime import timedelta

        theine: Any = __import__("theine")
        self._cache = theine.Cache(capacity)
        self._ttl = timedelta(seconds=_TTL)

    def get_many(self, keys: Sequence[bytes], /) -> list[Any]:
        get = self._cache.get
        return [get(key)[0] for key in keys]

    def set_many(self, items: dict[bytes, bytes], /, *, ttl: float) -> None:
        for key, value in items.items():
            self._cache.set(key, Entry(value, ttl), self._ttl)


def _lru(capacity: int) -> Store:
    store = MemoryStore()
    store._entries = LruEntries(capacity)  # type: ignore[assignment]
    return store


def _policies() -> dict[str, Callable[[int], Store]]:
    policies: dict[str, Callable[[int], Store]] = {
        "LRU": _lru,
        "ragopt": lambda capacity: MemoryStore(max_bytes=2**40, max_entries=capacity),
    }
    if find_spec("theine"):
        policies["theine"] = TheineStore
    return policies


def hit_rate(store: Store, asked: Sequence[bytes], scan: Sequence[bytes] = ()) -> float:
    """Return the hit rate of a stream; a scan in the middle of it is asked for, and not counted."""

    def hit(key: bytes) -> bool:
        if store.get_many([key])[0] is not None:
            return True
        store.set_many({key: b"value"}, ttl=_TTL)
        return False

    middle = len(asked) // 2
    hits = sum(map(hit, asked[:middle]))
    for key in scan:
        hit(key)
    return (hits + sum(map(hit, asked[middle:]))) / len(asked)


def tables(_folder: Path) -> Iterator[Table]:
    """Count hits of every policy, then time them and weigh an entry."""
    policies = _policies()
    for requests in _REQUESTS:
        yield _hits(policies, requests)
    yield _bursts(policies)
    yield _costs(policies)


def _hits(policies: dict[str, Callable[[int], Store]], requests: int) -> Table:
    scan = [_key(INTENTS + number) for number in range(_SCAN)]
    rows = []
    for exponent in EXPONENTS:
        asked = [_key(intent) for intent in stream(exponent, requests)]
        for capacity in _CAPACITIES:
            alone = (hit_rate(make(capacity), asked) for make in policies.values())
            scanned = (hit_rate(make(capacity), asked, scan) for make in policies.values())
            rates = (ideal_hit_rate(asked), *alone, *scanned)
            rows.append((exponent, capacity, *(100 * rate for rate in rates)))
    columns = ("Zipf s", "capacity", "ideal", *policies, *(f"{name} + scan" for name in policies))
    return Table(
        f"Hits in % of {requests:,} requests over {INTENTS:,} intents",
        columns,
        rows,
        (f"A scan is a bulk of {_SCAN:,} keys in the middle, each asked for and set once.",),
    )


def _bursts(policies: dict[str, Callable[[int], Store]], requests: int = 100_000) -> Table:
    rows = []
    for window in (100, 1_000):
        draw, fresh = random.Random(1), iter(stream(HEADLINE, requests))
        asked: list[bytes] = []
        while len(asked) < requests:
            again = asked and draw.random() < 0.5
            asked.append(draw.choice(asked[-window:]) if again else _key(next(fresh)))
        for capacity in (100, *_CAPACITIES):
            rates = (hit_rate(make(capacity), asked) for make in policies.values())
            rows.append((window, capacity, *(100 * r for r in (ideal_hit_rate(asked), *rates))))
    return Table(
        f"Hits in % where half of {requests:,} requests repeat one of the last few",
        ("the last", "capacity", "ideal", *policies),
        rows,
        (f"The other half are drawn with s = {HEADLINE}. This is what LRU is made for.",),
    )


def _costs(policies: dict[str, Callable[[int], Store]]) -> Table:
    capacity, batch, rounds = 20_000, 256, 200
    stores = {name: make(capacity) for name, make in policies.items()}
    present = [_key(number) for number in range(capacity // 2)]
    for store in stores.values():
        store.set_many(dict.fromkeys(present, bytes(1000)), ttl=_TTL)
    draw = random.Random(1)
    hot: dict[str, list[float]] = {name: [] for name in stores}
    cold: dict[str, list[float]] = {name: [] for name in stores}
    sets: dict[str, list[float]] = {name: [] for name in stores}
    for seconds, pool in ((hot, present[:batch]), (cold, present)):
        for _ in range(rounds):
            # Equal keys, other objects: that is what a cache is asked with.
            keys = [bytes(bytearray(key)) for key in draw.sample(pool, batch)]
            for name, store in _in_any_order(stores, draw):
                if pool is not present:
                    store.get_many(keys)
                start = perf_counter()
                store.get_many(keys)
                seconds[name].append(perf_counter() - start)
    for turn in range(rounds):
        first = INTENTS + turn * batch
        items = {_key(number): bytes(1000) for number in range(first, first + batch)}
        for name, store in _in_any_order(stores, draw):
            start = perf_counter()
            store.set_many(items, ttl=_TTL)
            if turn * batch > capacity:  # full: every set evicts
                sets[name].append(perf_counter() - start)
    rows = [
        (
            name,
            median(hot[name]) * 1e6,
            median(cold[name]) * 1e6,
            median(sets[name]) * 1e6 / batch,
            _weight(policies[name]),
        )
        for name in policies
    ]
    columns = ("policy", f"get {batch} hot µs", f"get {batch} cold µs", "set µs", "bytes an entry")
    return Table(
        "What a policy costs",
        columns,
        rows,
        (
            f"Hot: the same {batch} keys each time. Cold: some of {len(present):,}. A set is one "
            f"of {batch} in a call, into a full store.",
            "Bytes an entry: traced by tracemalloc, without key and value, in a full store of which"
            " entries are read at random. It does not see what an extension allocates.",
        ),
    )


def _in_any_order(stores: dict[str, Store], draw: random.Random) -> list[tuple[str, Store]]:
    return draw.sample(list(stores.items()), len(stores))


def _weight(make: Callable[[int], Store], capacity: int = 20_000) -> int:
    draw = random.Random(1)
    tracemalloc.start()
    try:
        store = make(capacity)
        for number in range(3 * capacity):
            store.set_many({_key(number): bytes(1000)}, ttl=_TTL)
            store.get_many([_key(draw.randrange(max(0, number - capacity), number + 1))])
        spent, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return round(spent / capacity) - 1000 - len(_key(0))


def _key(number: int) -> bytes:
    return number.to_bytes(32, "big")
