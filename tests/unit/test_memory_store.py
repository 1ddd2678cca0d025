import random
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from benchmarks.inserts import fill_apart
from hypothesis import given
from hypothesis import strategies as st

from ragopt import MemoryStore
from ragopt.errors import InvalidInput
from ragopt.protocols import Entry
from ragopt.stores._s3fifo import S3Fifo, size_of
from ragopt.testing import FakeClock

_TTL = 60.0


def present(store: MemoryStore, keys: Iterable[bytes]) -> list[bytes]:
    return [key for key in keys if store.get_many([key])[0] is not None]


def numbered(name: str, count: int) -> list[bytes]:
    return [b"%s-%d" % (name.encode(), i) for i in range(count)]


def test_who_was_asked_for_stays() -> None:
    store = MemoryStore(max_entries=3)
    store.set_many({b"a": b"1", b"b": b"2", b"c": b"3"})
    store.get_many([b"a"])
    store.set_many({b"d": b"4"})
    assert present(store, [b"a", b"b", b"c", b"d"]) == [b"a", b"c", b"d"]


def test_a_bulk_of_keys_used_once_pushes_out_hardly_anything_that_is_used() -> None:
    used, once = numbered("used", 800), numbered("once", 10_000)
    store = MemoryStore(max_entries=1000)
    store.set_many(dict.fromkeys(used, b""))
    store.get_many(used)
    for key in once:
        store.set_many({key: b""})
    assert len(present(store, used)) > 0.95 * len(used)


def test_what_is_no_longer_asked_for_leaves() -> None:
    old, new = numbered("old", 80), numbered("new", 80)
    store = MemoryStore(max_entries=100)
    for keys in (old, new):
        for _ in range(5):
            for key in keys:
                if store.get_many([key]) == [None]:
                    store.set_many({key: b""})
    assert present(store, new) == new


def test_who_comes_back_soon_is_kept() -> None:
    store = MemoryStore(max_entries=100)
    store.set_many(dict.fromkeys(numbered("first", 101), b""))
    assert store.get_many([b"first-0"]) == [None]
    store.set_many({b"first-0": b""})
    store.set_many(dict.fromkeys(numbered("more", 300), b""))
    assert store.get_many([b"first-0"]) != [None]


def test_a_new_entry_is_there_even_if_all_others_were_asked_for() -> None:
    store = MemoryStore(max_entries=3)
    for number in range(20):
        key = b"%d" % number
        store.set_many({key: key})
        assert store.get_many([key, key]) == [Entry(key), Entry(key)]
    assert store.count() == 3


def test_the_smallest_bound_holds_the_last_entry() -> None:
    store = MemoryStore(max_entries=1)
    store.set_many({b"a": b"1", b"b": b"2"})
    assert present(store, [b"a", b"b"]) == [b"b"]


def test_an_expired_entry_leaves_however_often_it_was_asked_for() -> None:
    clock = FakeClock()
    store = MemoryStore(max_entries=4, clock=clock)
    store.set_many({b"short": b""}, ttl=_TTL)
    store.set_many({b"a": b"", b"b": b"", b"c": b""})
    store.get_many([b"short", b"a", b"b", b"c"])
    clock.now += 2 * _TTL
    store.set_many({b"d": b""})
    assert store.evictions == 0  # nobody lost anything
    assert present(store, [b"short", b"a", b"b", b"c", b"d"]) == [b"a", b"b", b"c", b"d"]


def test_an_expired_entry_gives_its_bytes_back_when_it_is_found() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    store.set_many({b"a": b"1"}, ttl=_TTL)
    clock.now += _TTL
    assert store.get_many([b"a", b"a"]) == [None, None]
    assert store.size_bytes == 0


def test_evictions_are_counted() -> None:
    store = MemoryStore(max_entries=10)
    store.set_many(dict.fromkeys(numbered("key", 10), b""))
    store.set_many({b"key-0": b"replaced"})
    store.delete_many([b"key-1"])
    store.set_many({b"room": b"for one"})
    assert store.evictions == 0
    store.set_many(dict.fromkeys(numbered("more", 5), b""))
    assert store.evictions == 5
    assert store.count() == 10


def test_it_stays_within_its_bytes() -> None:
    store = MemoryStore(max_bytes=100_000)
    for i in range(1000):
        store.set_many({b"%d" % i: b"x" * 1000})
        assert store.size_bytes <= 100_000
    assert store.get_many([b"999"])[0] is not None
    assert store.count() > 50


def test_a_value_larger_than_the_bound_pushes_nothing_out() -> None:
    store = MemoryStore(max_bytes=10_000)
    store.set_many({b"small": b"1"})
    store.set_many({b"large": b"x" * 20_000})
    assert store.get_many([b"small"])[0] is not None
    assert store.get_many([b"large"]) == [None]
    store.set_many({b"small": b"x" * 20_000})  # and an old value is not served for a new one
    assert store.get_many([b"small"]) == [None]


def test_a_large_value_makes_itself_room() -> None:
    store = MemoryStore(max_bytes=100_000)
    keys = numbered("key", 50)
    store.set_many(dict.fromkeys(keys, b"x" * 1000))
    store.get_many(keys)
    store.set_many({b"large": b"x" * 80_000})
    assert store.get_many([b"large"])[0] is not None
    assert store.size_bytes <= 100_000


def test_the_count_of_bytes_returns_to_zero() -> None:
    store = MemoryStore()
    store.set_many({b"%d" % i: b"x" * i for i in range(100)})
    store.set_many({b"1": b"longer than before"})
    store.delete_many([b"%d" % i for i in range(50)])
    store.clear(b"9")
    store.clear()
    assert store.size_bytes == 0


@pytest.mark.parametrize("size", [10, 1000])
def test_the_count_of_bytes_does_not_fall_short_of_what_the_interpreter_spends(size: int) -> None:
    entries, draw = 2_000, random.Random(1)
    store = MemoryStore(max_bytes=2**30, max_entries=entries)
    tracemalloc.start()
    for i in range(3 * entries):
        store.set_many({i.to_bytes(32, "big"): bytes(size)}, ttl=60)
        store.get_many([draw.randrange(max(0, i - entries), i + 1).to_bytes(32, "big")])
    spent, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.95 * spent <= store.size_bytes <= 1.25 * spent


def test_the_process_stays_within_the_bound() -> None:
    assert 0.5 < fill_apart(100_000)["memory"] <= 1.1


@pytest.mark.slow
def test_the_process_stays_within_the_bound_for_a_million_inserts() -> None:
    assert 0.5 < fill_apart(1_000_000)["memory"] <= 1.1


@pytest.mark.parametrize("bounds", [{"max_bytes": 0}, {"max_bytes": -1}, {"max_entries": 0}])
def test_bounds_are_above_zero(bounds: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="bounds above 0"):
        MemoryStore(**bounds)


_KEYS = st.integers(0, 12).map(lambda number: b"%d" % number)
_STEPS = st.one_of(
    st.tuples(st.just("get"), st.lists(_KEYS, max_size=4)),
    st.tuples(st.just("put"), _KEYS, st.integers(0, 800), st.sampled_from([None, 1.0, 5.0])),
    st.tuples(st.just("drop"), _KEYS),
    st.tuples(st.just("wait"), st.floats(0, 3)),
)


@given(st.lists(_STEPS, max_size=60), st.sampled_from([None, 1, 4]))
def test_it_serves_the_last_value_or_none_and_counts_right(
    steps: list[tuple[Any, ...]], max_entries: int | None
) -> None:
    entries, truth, now = S3Fifo(3000, max_entries), dict[bytes, Entry](), 0.0
    for step in steps:
        match step:
            case "get", keys:
                for key, entry in zip(keys, entries.get_many(keys, now), strict=True):
                    assert entry is None or entry == truth[key]
                    assert entry is None or entry.expires_at is None or entry.expires_at > now
            case "put", key, size, ttl:
                truth[key] = Entry(bytes(size), None if ttl is None else now + ttl)
                entries.put(key, truth[key], now)
                assert entries.get_many([key], now) == [truth[key]]
            case "drop", key:
                there = key in dict(entries.items())
                assert entries.drop(key) is there
                truth.pop(key, None)
            case "wait", seconds:
                now += seconds
        kept = dict(entries.items())
        assert len(kept) == len(entries) <= (max_entries or 13)
        assert entries.size_bytes == sum(size_of(*item) for item in kept.items()) <= 3000
        assert entries._visited <= kept.keys()
        assert entries._small_bytes == sum(size_of(*item) for item in entries._small.items())
        assert len(entries._ghosts) + len(entries._older_ghosts) <= 13
