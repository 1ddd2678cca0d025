import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ragopt import CachedEmbedder, EmbeddingBatch, HashingEmbedder, MemoryStore, TieredCache
from ragopt._runtime import Runtime
from ragopt.cache.flight import Flights
from ragopt.errors import InvalidInput
from ragopt.types import OUTPUTS, EmbedderSpec, Output, Role


class Counting(HashingEmbedder):
    """A model that remembers its batches."""

    def __init__(self, dimension: int = 32) -> None:
        super().__init__(dimension)
        self.batches: list[tuple[list[str], frozenset[Output]]] = []

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        self.batches.append((texts, outputs))
        return await super()._embed(io, texts, role, outputs)


def test_each_output_has_an_entry_of_its_own() -> None:
    inner = Counting()
    cached = CachedEmbedder(inner)
    cached.embed(["a", "b"], outputs=["dense", "sparse"])
    cached.embed(["a"], outputs=["sparse"])
    cached.embed(["b"], outputs=["dense"])
    assert len(inner.batches) == 1
    all_three = cached.embed(["a", "c"], outputs=OUTPUTS)
    assert inner.batches[1:] == [(["a", "c"], frozenset(OUTPUTS))]
    assert cached.embed(["a"], outputs=["multi"]).multi is not None
    assert len(inner.batches) == 2
    plain = HashingEmbedder(32).embed(["a", "c"], outputs=OUTPUTS)
    assert np.array_equal(all_three.dense, plain.dense)  # type: ignore[arg-type]
    assert list(all_three.sparse or []) == list(plain.sparse or [])
    for mine, theirs in zip(all_three.multi or [], plain.multi or [], strict=True):
        assert np.array_equal(mine, theirs)


def test_hits_and_misses_mix_in_the_order_of_the_caller() -> None:
    inner = Counting()
    cached = CachedEmbedder(inner, batch_size=2)
    cached.embed(["b", "d"])
    texts = ["a", "b", "c", "d", "a", "e", "b"]
    found = cached.embed(texts).dense
    assert np.array_equal(found, HashingEmbedder(32).embed(texts).dense)  # type: ignore[arg-type]
    assert [batch for batch, _ in inner.batches] == [["b", "d"], ["a", "c"], ["e"]]
    assert cached.cache.stats.total("embedding", "hit") == 2
    assert cached.cache.stats.total("embedding", "miss") == 5


def test_a_damaged_entry_is_computed_again() -> None:
    inner, store = Counting(), MemoryStore()
    cached = CachedEmbedder(inner, store)
    good = cached.embed(["a", "b"]).dense
    keys = cached._space("document", "dense").text_keys(["a", "b"])
    for damage in (b"", b"garbage", store.get_many(keys)[1].value[:-1]):  # type: ignore[union-attr]
        store.set_many({keys[0]: damage})
        assert np.array_equal(cached.embed(["a", "b"]).dense, good)  # type: ignore[arg-type]
    assert [batch for batch, _ in inner.batches] == [["a", "b"], ["a"], ["a"], ["a"]]


def test_a_model_that_changed_its_dimension_under_the_same_name() -> None:
    class Changing(Counting):
        @property
        def spec(self) -> EmbedderSpec:
            return EmbedderSpec("the same name", outputs=frozenset(OUTPUTS))

    store = MemoryStore()
    CachedEmbedder(Changing(8), store).embed(["a"])
    found = CachedEmbedder(Changing(16), store).embed(["a", "b"]).dense
    assert np.array_equal(found, HashingEmbedder(16).embed(["a", "b"]).dense)  # type: ignore[arg-type]


def test_the_array_belongs_to_the_caller() -> None:
    cached = CachedEmbedder(HashingEmbedder(8))
    first = cached.embed(["a", "b"]).dense
    for _ in range(2):
        again = cached.embed(["a", "b"]).dense
        assert np.array_equal(again, first)  # type: ignore[arg-type]
        again[:] = 0  # type: ignore[index]


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_smaller_precisions(precision: str) -> None:
    exact = HashingEmbedder(256).embed(["some text", "another"]).dense
    cached = CachedEmbedder(HashingEmbedder(256), precision=precision)  # type: ignore[arg-type]
    cached.embed(["some text", "another"])
    found = cached.embed(["some text", "another"]).dense
    assert exact is not None
    assert found is not None
    assert np.einsum("ij,ij->i", found, exact).min() > 0.999


def test_precisions_do_not_mix() -> None:
    store, inner = MemoryStore(), Counting()
    for precision in ("float32", "float16", "int8"):
        CachedEmbedder(inner, store, precision=precision).embed(["a"])
    assert len(inner.batches) == 3


def test_tenants_and_namespaces() -> None:
    cache, inner = TieredCache(), Counting()
    for namespace in ("n", "m"):
        for tenant in (None, "t", "u"):
            CachedEmbedder(inner, cache, namespace=namespace, tenant=tenant).embed(["a"])
    assert len(inner.batches) == 6


def test_a_batch_size_is_above_zero() -> None:
    with pytest.raises(InvalidInput, match="batch size"):
        CachedEmbedder(HashingEmbedder(), batch_size=0)


class Slow(HashingEmbedder):
    """Counts how often each text was embedded; holds every batch until it is let go."""

    def __init__(self) -> None:
        super().__init__(8)
        self.seen: list[str] = []
        self.go = threading.Event()
        self.failing = False

    async def _embed(
        self, io: Any, texts: list[str], role: Any, outputs: frozenset[Any]
    ) -> EmbeddingBatch:
        self.seen += texts
        while not self.go.is_set():
            await io.sleep(0.005)
        if self.failing:
            self.failing = False
            raise RuntimeError("the model is down")
        return await super()._embed(io, texts, role, outputs)


def test_threads_that_miss_the_same_texts_embed_them_once() -> None:
    slow = Slow()
    cached = CachedEmbedder(slow, TieredCache())
    texts = [f"text {i}" for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        # In other orders and with other texts among them: nobody waits for one who waits for him.
        asked = [pool.submit(cached.embed, [*texts[i:], *texts[:i], f"own {i}"]) for i in range(8)]
        time.sleep(0.1)
        slow.go.set()
        batches = [each.result(10) for each in asked]
    assert sorted(slow.seen) == sorted([*texts, *(f"own {i}" for i in range(8))])
    for i, batch in enumerate(batches):
        right = HashingEmbedder(8).embed([*texts[i:], *texts[:i], f"own {i}"])
        assert np.array_equal(np.asarray(batch.dense), np.asarray(right.dense))


async def test_tasks_that_miss_the_same_texts_embed_them_once() -> None:
    slow = Slow()
    cached = CachedEmbedder(slow, TieredCache())
    tasks = [asyncio.create_task(cached.aembed(["a", "b"])) for _ in range(10)]
    await asyncio.sleep(0.05)
    tasks[3].cancel()
    slow.go.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert slow.seen == ["a", "b"]
    assert [isinstance(each, EmbeddingBatch) for each in done] == [i != 3 for i in range(10)]


async def test_when_the_one_who_embeds_fails_or_is_cancelled_another_does() -> None:
    for end in ("fails", "is cancelled"):
        slow = Slow()
        cached = CachedEmbedder(slow, TieredCache())
        first, *others = (asyncio.create_task(cached.aembed(["a"])) for _ in range(5))
        await asyncio.sleep(0.05)
        if end == "fails":
            slow.failing = True
        else:
            first.cancel()
        slow.go.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert isinstance(results[0], BaseException)
        assert all(isinstance(each, EmbeddingBatch) for each in results[1:])
        assert slow.seen == ["a", "a"]


def test_texts_are_embedded_where_no_cache_keeps_them() -> None:
    class Forgetful(MemoryStore):
        async def _set_many(self, io: Any, items: Any, expires_at: float | None) -> None:
            return None

    slow = Slow()
    slow.go.set()
    cached = CachedEmbedder(slow, Forgetful())
    with ThreadPoolExecutor(4) as pool:
        for batch in pool.map(cached.embed, [["a", "b"]] * 8):
            assert len(batch) == 2


def test_who_waited_too_long_embeds_for_himself() -> None:
    slow = Slow()
    cache = TieredCache()
    cache.flights = Flights(patience=0.05)
    first = CachedEmbedder(slow, cache)
    quick = Slow()
    quick.go.set()
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(first.embed, ["a", "b"])
        while not slow.seen:
            time.sleep(0.005)
        assert len(CachedEmbedder(quick, cache).embed(["b", "c"])) == 2
        assert sorted(quick.seen) == ["b", "c"]
        slow.go.set()
        assert len(stuck.result(10)) == 2
