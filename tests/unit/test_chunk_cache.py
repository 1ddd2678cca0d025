"""Many values in one look-up, and only what is missing computed."""

from collections.abc import Sequence
from typing import Any

import pytest

from ragopt import MemoryStore, TieredCache
from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC
from ragopt.cache.chunks import ChunkCache
from ragopt.cache.freshness import Freshness
from ragopt.cache.lineage import Origin
from ragopt.cache.packing import pack, unpack
from ragopt.errors import InvalidInput
from ragopt.testing import FakeClock


class Work:
    """Writes down which positions were asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def __call__(self, missing: list[int]) -> list[Any]:
        self.asked.append(missing)
        return [[position] for position in missing]


def resolve(cache: ChunkCache, payloads: Sequence[object]) -> tuple[list[Any], list[list[int]]]:
    work = Work()
    return run(cache.resolve(SYNC, payloads, work)), work.asked


def test_only_what_is_missing_is_computed_in_batches() -> None:
    cache = ChunkCache(batch_size=2)
    assert resolve(cache, ["a", "b", "c"]) == ([[0], [1], [2]], [[0, 1], [2]])
    assert resolve(cache, ["c", "x", "a"]) == ([[2], [1], [0]], [[1]])
    assert resolve(cache, []) == ([], [])
    assert cache.cache.stats.hit_rate("chunk") == pytest.approx(2 / 6)
    with pytest.raises(InvalidInput, match="batch size of 0"):
        ChunkCache(batch_size=0)


async def test_the_whole_batch_is_one_look_up_in_either_colour() -> None:
    calls: list[int] = []

    class Watched(MemoryStore):
        async def _get_many(self, io: Any, keys: Any) -> Any:
            calls.append(len(keys))
            return await super()._get_many(io, keys)

    cache = ChunkCache(Watched())
    payloads = [f"{i}" for i in range(100)]
    await cache.resolve(ASYNC, payloads, Work())
    resolve(cache, payloads)
    assert calls == [100, 100]


def test_single_values_and_batches_are_the_same_entries() -> None:
    cache = ChunkCache()
    cache.set("a", ["set"])
    assert resolve(cache, ["a", "b"]) == ([["set"], [1]], [[1]])
    assert cache.get("b") == [1]
    assert cache.get_or_compute("b", lambda: ["other"]) == [1]
    cache.delete("b")
    assert resolve(cache, ["b"])[1] == [[0]]
    cache.clear()
    assert resolve(cache, ["a", "b"])[1] == [[0, 1]]


def test_what_no_key_can_be_made_of_is_computed_every_time() -> None:
    cache = ChunkCache()
    for turn in (1, 2):
        values, asked = resolve(cache, [None, object(), "a"])
        assert (values[:2], asked[0][:2]) == ([[0], [1]], [0, 1])
        assert cache.cache.stats.total("chunk", "uncacheable") == 2 * turn
    assert asked == [[0, 1]]


def test_duplicates_do_not_share_a_value() -> None:
    cache = ChunkCache()
    resolve(cache, ["a"])
    one, other = resolve(cache, ["a", "a"])[0]
    assert one == other
    assert one is not other


def test_what_is_stale_or_was_made_from_documents_is_computed_again() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    cache = ChunkCache(TieredCache(store, clock=clock), ttl=Freshness(60, stale=60))
    resolve(cache, ["a"])
    clock.now += 59
    assert resolve(cache, ["a"])[1] == []
    clock.now += 2
    assert resolve(cache, ["a"])[1] == [[0]]
    # An entry that somebody follows must not be served by one who does not.
    (key,) = store.keys()
    (entry,) = store.get_many([key])
    assert entry is not None
    packed = unpack(entry.value)
    assert packed is not None
    store.set_many({key: pack(packed._replace(origin=Origin(b"12345678", 1, ())))})
    assert resolve(cache, ["a"])[1] == [[0]]
