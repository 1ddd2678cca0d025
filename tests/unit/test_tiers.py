"""Several layers as one."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ragopt import MemoryStore, TieredCache
from ragopt.errors import InvalidInput
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


async def test_a_layer_that_fails_is_skipped_and_counted(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = Broken(clock=clock), MemoryStore(clock=clock)
    cache = TieredCache(broken, sound, clock=clock)
    with caplog.at_level(logging.WARNING, "ragopt.cache"):
        for _ in range(10):
            cache.set_many({b"a": b"1"})
            assert [e and e.value for e in cache.get_many([b"a"])] == [b"1"]
            assert [e and e.value for e in await cache.aget_many([b"a"])] == [b"1"]
    assert cache.stats.total("broken", "error") >= 30
    assert caplog.messages == ["The broken layer of the cache is skipped: the layer is down"]
    clock.now += 61
    cache.get_many([b"a"])
    assert len(caplog.messages) == 2
    broken.failing = False
    cache.get_many([b"a"])
    assert broken.count() == 1


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
