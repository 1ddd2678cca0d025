"""Several layers as one."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from ragopt import MemoryStore, TieredCache, ValueCache
from ragopt.errors import InvalidInput, StorageError
from ragopt.protocols import Entry
from ragopt.testing import FakeClock


class Broken(MemoryStore):
    """A layer that fails while it is told to."""

    name = "broken"
    failing = True

    def _check(self) -> None:
        if self.failing:
            raise ConnectionError("the layer is down")

    async def _get_many(self, io: Any, keys: Sequence[bytes]) -> list[Entry | None]:
        self._check()
        return await super()._get_many(io, keys)

    async def _set_many(
        self, io: Any, items: Mapping[bytes, bytes], expires_at: float | None
    ) -> None:
        self._check()
        await super()._set_many(io, items, expires_at)

    async def _delete_many(self, io: Any, keys: Sequence[bytes]) -> int:
        self._check()
        return await super()._delete_many(io, keys)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def layers(clock: FakeClock, count: int = 3) -> list[MemoryStore]:
    made = [MemoryStore(clock=clock) for _ in range(count)]
    for number, layer in enumerate(made):
        layer.name = f"layer{number}"
    return made


def test_a_write_reaches_every_layer(clock: FakeClock) -> None:
    made = layers(clock)
    TieredCache(*made, clock=clock).set_many({b"a": b"1"}, ttl=10)
    assert [layer.count() for layer in made] == [1, 1, 1]


def test_a_read_fills_the_nearer_layers_for_the_time_that_is_left(clock: FakeClock) -> None:
    near, middle, far = made = layers(clock)
    cache = TieredCache(*made, clock=clock)
    far.set_many({b"a": b"1"}, ttl=10)
    far.set_many({b"b": b"2"})
    clock.now += 4
    assert [e and e.value for e in cache.get_many([b"a", b"b", b"c"])] == [b"1", b"2", None]
    for layer in (near, middle):
        a, b = layer.get_many([b"a", b"b"])
        assert a is not None
        assert b is not None
        assert a.expires_at == pytest.approx(clock.now + 6)
        assert b.expires_at is None
    clock.now += 7
    assert cache.get_many([b"a"]) == [None]


def test_a_farther_layer_is_asked_only_for_what_is_missing(clock: FakeClock) -> None:
    near, far = made = layers(clock, 2)
    cache = TieredCache(*made, clock=clock)
    near.set_many({b"a": b"1"})
    far.set_many({b"b": b"2"})
    cache.get_many([b"a", b"b", b"c"])
    stats = cache.stats
    assert (stats.total("layer0", "hit"), stats.total("layer0", "miss")) == (1, 2)
    assert (stats.total("layer1", "hit"), stats.total("layer1", "miss")) == (1, 1)


def closed_again(cache: TieredCache, depth: int) -> bool:
    """Wait until a layer is asked again."""
    until = time.monotonic() + 5
    while not cache._breakers[depth].closed:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


async def test_a_layer_that_fails_is_skipped_until_it_answers_again(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = Broken(clock=clock), MemoryStore(clock=clock)
    with TieredCache(broken, sound, clock=clock) as cache:
        with caplog.at_level(logging.WARNING, "ragopt.cache"):
            for _ in range(10):
                cache.set_many({b"a": b"1"})
                assert [e and e.value for e in cache.get_many([b"a"])] == [b"1"]
                assert [e and e.value for e in await cache.aget_many([b"a"])] == [b"1"]
        assert cache.stats.total("broken", "error") == 1  # the caller pays once
        # 9 writes, 20 reads, and 20 copies of what the sound layer knew
        assert cache.stats.total("broken", "skipped") == 49
        assert caplog.messages == ["The broken layer of the cache is skipped: the layer is down"]
        await asyncio.sleep(0.3)  # it was asked in the background, in vain
        assert not cache._breakers[0].closed
        broken.failing = False
        assert closed_again(cache, 0)
        cache.get_many([b"a"])
        assert broken.count() == 1
        broken.failing = True
        clock.now += 61
        cache.get_many([b"a"])
        assert len(caplog.messages) == 2


def test_a_layer_that_refuses_writes_alone_is_still_read(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = FakeClock()
    monkeypatch.setattr("ragopt.cache.breaker.monotonic", ticks)

    class Full(MemoryStore):
        name = "full"
        writes = 0

        async def _set_many(self, io: Any, items: Any, expires_at: float | None) -> None:
            self.writes += 1
            raise StorageError("The store is full.", fix="Make room.")

    full = Full(clock=clock)
    with TieredCache(full, MemoryStore(clock=clock), clock=clock) as cache:
        cache.layers[1].set_many({b"a": b"1"})
        for _ in range(20):
            cache.set_many({b"b": b"2"})
        assert full.writes == 1
        cache.get_many([b"a"])
        assert cache.stats.total("full", "miss") == 1
        ticks.now += 0.11
        cache.set_many({b"b": b"2"})
        cache.set_many({b"b": b"2"})
        assert full.writes == 2  # one tries whether it is over


def test_a_layer_that_could_not_be_read_is_not_written_by_the_same_request(
    clock: FakeClock,
) -> None:
    far = Broken(clock=clock)
    with TieredCache(MemoryStore(clock=clock), far, clock=clock) as cache:
        values = ValueCache("answer", cache, ttl=60)

        def slow() -> str:
            far.failing = False
            assert closed_again(cache, 1)  # it recovered while the value was made
            return "answer"

        assert values.get_or_compute("q", slow) == "answer"
        assert far.count() == 0
        assert cache.stats.total("broken", "skipped") == 2  # neither claimed nor written
        assert values.get_or_compute("r", lambda: "other") == "other"
        assert far.count() == 1


def test_one_deadline_for_all_layers(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = FakeClock()
    monkeypatch.setattr("ragopt.cache.tiers.perf_counter", ticks)

    class Slow(MemoryStore):
        timeout = 0.2
        asked = 0

        async def _get_many(self, io: Any, keys: Sequence[bytes]) -> list[Entry | None]:
            self.asked += 1
            ticks.now += 0.15
            return await super()._get_many(io, keys)

    slow = [Slow(clock=clock) for _ in range(4)]
    for number, layer in enumerate(slow):
        layer.name = f"slow{number}"
    cache = TieredCache(*slow, clock=clock, deadline=0.4)
    begin = ticks.now
    assert cache.get_many([b"a"]) == [None]
    assert ticks.now - begin < 0.4
    assert [layer.asked for layer in slow] == [1, 1, 0, 0]
    with pytest.raises(InvalidInput, match="deadline"):
        TieredCache(*slow, deadline=0.1)


def test_strictness_on_request(clock: FakeClock) -> None:
    cache = TieredCache(Broken(clock=clock), clock=clock, strict=True)
    for call in (lambda: cache.get_many([b"a"]), lambda: cache.set_many({b"a": b"1"})):
        with pytest.raises(ConnectionError):
            call()


def test_a_delete_is_never_skipped_quietly(clock: FakeClock) -> None:
    broken, sound = Broken(clock=clock), MemoryStore(clock=clock)
    broken.failing = False
    cache = TieredCache(broken, sound, clock=clock)
    cache.set_many({b"a": b"1"})
    broken.failing = True
    with pytest.raises(ConnectionError):
        cache.delete_many([b"a"])
    assert sound.count() == 0  # every layer had its turn
    assert cache.stats.total("broken", "error") == 1


def test_over(clock: FakeClock) -> None:
    cache = TieredCache(clock=clock)
    assert TieredCache.over(cache) is cache
    store = MemoryStore()
    assert TieredCache.over(store).layers == (store,)
    assert TieredCache.over(None).layers[0].name == "memory"
    wrong: Any = {}
    with pytest.raises(InvalidInput, match="A cache layer of type dict"):
        TieredCache(wrong)


class Overtaken(MemoryStore):
    """A far layer after whose reads and writes something else happens first."""

    def __init__(self, then: Callable[[], object], clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.name = "far"
        self.then = then
        self.armed = False

    def _overtake(self) -> None:
        if self.armed:
            self.armed = False
            self.then()

    async def _get_many(self, io: Any, keys: Sequence[bytes]) -> list[Entry | None]:
        found = await super()._get_many(io, keys)
        self._overtake()
        return found

    async def _commit(self, io: Any, key: bytes, *rest: Any) -> bool:
        done = await super()._commit(io, key, *rest)
        self._overtake()
        return done


@pytest.mark.parametrize("how", ["delete", "clear"])
def test_what_was_deleted_while_it_was_read_is_not_copied_nearer(
    clock: FakeClock, how: str
) -> None:
    near = MemoryStore(clock=clock)
    change: dict[str, Callable[[], object]] = {
        "delete": lambda: cache.delete_many([b"k"]),
        "clear": lambda: cache.clear(b"k"),
    }
    far = Overtaken(change[how], clock)
    cache = TieredCache(near, far, clock=clock)
    far.set_many({b"k": b"old"})
    far.armed = True
    cache.get_many([b"k"])
    assert near.get_many([b"k"]) == [None]
    assert cache.get_many([b"k"]) == [None]


def test_what_was_replaced_while_it_was_read_is_not_copied_nearer(clock: FakeClock) -> None:
    near = MemoryStore(clock=clock)
    far = Overtaken(lambda: cache.set_many({b"k": b"new"}), clock)
    cache = TieredCache(near, far, clock=clock)
    far.set_many({b"k": b"old"})
    far.armed = True
    cache.get_many([b"k"])
    assert [e and e.value for e in cache.get_many([b"k"])] == [b"new"]
    assert [e and e.value for e in near.get_many([b"k"])] == [b"new"]


def test_what_was_deleted_while_it_was_stored_is_gone(clock: FakeClock) -> None:
    near = MemoryStore(clock=clock)
    far = Overtaken(lambda: values.delete("q"), clock)
    values = ValueCache("answer", TieredCache(near, far, clock=clock), ttl=60)

    def compute() -> str:
        far.armed = True  # for the next call, which commits
        return "answer"

    assert values.get_or_compute("q", compute) == "answer"
    assert not far.armed
    assert near.count() == far.count() == 0
