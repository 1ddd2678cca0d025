import tracemalloc
from typing import Any

import pytest

from ragopt import MemoryStore
from ragopt.errors import InvalidInput


def test_the_least_recently_used_go_first() -> None:
    store = MemoryStore(max_entries=3)
    store.set_many({b"a": b"1", b"b": b"2", b"c": b"3"})
    store.get_many([b"a"])
    store.set_many({b"d": b"4"})
    assert [entry is not None for entry in store.get_many([b"a", b"b", b"c", b"d"])] == [
        True, False, True, True,
    ]  # fmt: skip


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


def test_the_count_of_bytes_returns_to_zero() -> None:
    store = MemoryStore()
    store.set_many({b"%d" % i: b"x" * i for i in range(100)})
    store.set_many({b"1": b"longer than before"})
    store.delete_many([b"%d" % i for i in range(50)])
    store.clear()
    assert store.size_bytes == 0


@pytest.mark.parametrize("size", [10, 1000])
def test_the_count_of_bytes_is_what_the_interpreter_spends(size: int) -> None:
    store = MemoryStore(max_bytes=2**30)
    tracemalloc.start()
    for i in range(20_000):
        store.set_many({b"key-%d" % i: bytes(size)}, ttl=60)
    spent, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.size_bytes == pytest.approx(spent, rel=0.15)


@pytest.mark.parametrize("bounds", [{"max_bytes": 0}, {"max_bytes": -1}, {"max_entries": 0}])
def test_bounds_are_above_zero(bounds: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="bounds above 0"):
        MemoryStore(**bounds)
