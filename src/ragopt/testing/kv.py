"""What every key-value store must do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ragopt.errors import InvalidInput
from ragopt.protocols import KVStore
from ragopt.testing.faces import BothColours, Face


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self.now


class KVStoreContract(BothColours):
    """Subclass it as ``Test...`` and write ``make_store``."""

    ttl = 60.0

    @abstractmethod
    def make_store(self, clock: FakeClock) -> KVStore:
        """Return an empty store that takes the time from ``clock``."""

    def advance(self, clock: FakeClock, seconds: float) -> None:
        """Let time pass. Override it (and ``ttl``) where the server has a clock of its own."""
        clock.now += seconds

    @pytest.fixture
    def clock(self) -> FakeClock:
        """Return the clock of the store under test."""
        return FakeClock()

    @pytest.fixture
    def raw(self, clock: FakeClock) -> Iterator[KVStore]:
        """Return the store under test."""
        store = self.make_store(clock)
        yield store
        store.close()

    @pytest.fixture
    def store(self, raw: KVStore, face: Face) -> Iterator[Any]:
        """Return the store under test in one colour."""
        shown = face(raw)
        yield shown
        shown.close()

    def test_is_a_store(self, raw: KVStore) -> None:
        assert isinstance(raw, KVStore)
        assert raw.name

    def test_missing_is_none(self, store: Any) -> None:
        assert store.get_many([b"a", b"b"]) == [None, None]
        assert store.get_many([]) == []

    def test_values_come_back_in_the_order_of_the_keys(self, store: Any) -> None:
        store.set_many({b"a": b"1", b"b": b"2", b"c": b"3"})
        found = store.get_many([b"c", b"x", b"a", b"c"])
        assert [entry and entry.value for entry in found] == [b"3", None, b"1", b"3"]

    def test_nothing_to_store_is_no_error(self, store: Any) -> None:
        store.set_many({})
        assert store.count() == 0

    @pytest.mark.parametrize(
        "value", [b"", b"\x00", bytes(range(256)), b"x" * 2**20], ids=["empty", "nul", "all", "1MB"]
    )
    def test_any_bytes_are_a_value(self, store: Any, value: bytes) -> None:
        store.set_many({b"key": value})
        assert store.get_many([b"key"])[0].value == value

    @pytest.mark.parametrize(
        "key", [b"k", b"\x00", b"\xff\xfe", bytes(range(256)), "鍵".encode(), b"a b*?[c]\\"]
    )
    def test_any_bytes_are_a_key(self, store: Any, key: bytes) -> None:
        store.set_many({key: b"here", key + b"x": b"other"})
        assert store.get_many([key])[0].value == b"here"
        assert store.delete_many([key]) == 1
        assert [entry is None for entry in store.get_many([key, key + b"x"])] == [True, False]

    def test_a_second_write_replaces(self, store: Any) -> None:
        store.set_many({b"a": b"old"}, ttl=self.ttl)
        store.set_many({b"a": b"new"})
        (entry,) = store.get_many([b"a"])
        assert entry.value == b"new"
        assert entry.expires_at is None
        assert store.count() == 1

    def test_time_to_live(self, store: Any, clock: FakeClock) -> None:
        store.set_many({b"short": b"1"}, ttl=self.ttl)
        store.set_many({b"long": b"2"}, ttl=1000 * self.ttl)
        store.set_many({b"ever": b"3"})
        short, long, ever = store.get_many([b"short", b"long", b"ever"])
        assert abs(long.expires_at - short.expires_at - 999 * self.ttl) < self.ttl
        assert ever.expires_at is None
        self.advance(clock, 1.01 * self.ttl)
        values = store.get_many([b"short", b"long", b"ever"])
        assert [entry is None for entry in values] == [True, False, False]
        assert store.count() == 2

    def test_a_write_starts_the_time_again(self, store: Any, clock: FakeClock) -> None:
        store.set_many({b"a": b"1"}, ttl=self.ttl)
        self.advance(clock, 0.6 * self.ttl)
        store.set_many({b"a": b"1"}, ttl=self.ttl)
        self.advance(clock, 0.6 * self.ttl)
        assert store.get_many([b"a"]) != [None]

    @pytest.mark.parametrize("ttl", [0, -1, float("nan")])
    def test_a_time_to_live_is_above_zero(self, store: Any, ttl: float) -> None:
        with pytest.raises(InvalidInput, match="time to live"):
            store.set_many({b"a": b"1"}, ttl=ttl)
        assert store.get_many([b"a"]) == [None]

    def test_delete_says_how_many_were_there(self, store: Any) -> None:
        store.set_many({b"a": b"1", b"b": b"2"})
        assert store.delete_many([b"a", b"missing"]) == 1
        assert store.delete_many([b"a"]) == 0
        assert store.delete_many([]) == 0
        assert store.count() == 1

    @pytest.mark.parametrize("prefix", [b"app:", b"a*?[]\\", b"p\xff", b"\xff\xff", b"100%_"])
    def test_clear_takes_a_prefix_and_nothing_else(self, store: Any, prefix: bytes) -> None:
        store.set_many({prefix: b"0", prefix + b"1": b"1", prefix + b"\xff\xff": b"2"})
        store.set_many({b"other": b"3", prefix[:-1] + b"\x00": b"4"})
        assert store.count(prefix) == 3
        assert store.count() == 5
        store.clear(prefix)
        assert store.count(prefix) == 0
        assert store.count() == 2
        store.clear()
        assert store.count() == 0

    @pytest.mark.parametrize("prefix", [b"app:", b"a*?[]\\", b"p\xff", b"\xff\xff", b"100%_"])
    def test_keys_are_listed_by_prefix(self, store: Any, prefix: bytes) -> None:
        inside = {prefix: b"0", prefix + b"1": b"1", prefix + b"\xff\xff": b"2"}
        outside = {b"other": b"3", prefix[:-1] + b"\x00": b"4"}
        store.set_many({**inside, **outside})
        assert sorted(store.keys(prefix)) == sorted(inside)
        assert sorted(store.keys()) == sorted({**inside, **outside})
        store.delete_many([prefix])
        assert sorted(store.keys(prefix)) == sorted(inside)[1:]
        assert store.keys(b"missing") == []

    def test_keys_that_ended_are_not_listed(self, store: Any, clock: FakeClock) -> None:
        store.set_many({b"short": b"1"}, ttl=self.ttl)
        store.set_many({b"long": b"2"}, ttl=1000 * self.ttl)
        self.advance(clock, 1.01 * self.ttl)
        assert store.keys() == [b"long"]

    def test_many_keys_at_once(self, store: Any) -> None:
        items = {b"key-%d" % i: b"value-%d" % i for i in range(3000)}
        store.set_many(items, ttl=1000 * self.ttl)
        assert [entry.value for entry in store.get_many(list(items))] == list(items.values())
        assert sorted(store.keys()) == sorted(items)
        assert store.delete_many(list(items)) == 3000

    def test_both_colours_see_the_same(self, raw: KVStore, store: Any) -> None:
        store.set_many({b"a": b"1"})
        assert [entry and entry.value for entry in raw.get_many([b"a"])] == [b"1"]
        raw.set_many({b"b": b"2"})
        assert store.get_many([b"b"])[0].value == b"2"

    def test_threads(self, raw: KVStore) -> None:
        def work(number: int) -> bool:
            for turn in range(30):
                key = b"%d-%d" % (number, turn)
                raw.set_many({key: key, b"shared": b"%d" % number})
                if raw.get_many([key])[0] is None or raw.get_many([b"shared"])[0] is None:
                    return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))
        assert raw.count() == 8 * 30 + 1

    def test_closing_twice(self, store: Any) -> None:
        store.set_many({b"a": b"1"})
        store.close()
        store.close()
