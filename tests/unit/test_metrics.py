import gc
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ragopt import (
    CachedEmbedder,
    CacheStats,
    HashingEmbedder,
    MemoryStore,
    SqliteStore,
    TieredCache,
    ValueCache,
)
from ragopt._readable import duration, size, table
from ragopt.errors import InvalidInput
from ragopt.metrics import Histogram


def scraped(registry: CollectorRegistry) -> dict[str, float]:
    """Return what a Prometheus server reads: sample with its labels -> value."""
    return {
        "".join([sample.name, *(f" {value}" for _, value in sorted(sample.labels.items()))]): value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        for value in [sample.value]
    }


# -- latencies -------------------------------------------------------------------------------


def test_quantiles_are_within_an_eighth() -> None:
    histogram = Histogram()
    for i in range(1, 1001):
        histogram.observe(i / 1000)
    assert 0.5 <= histogram.quantile(0.5) <= 0.5 * 9 / 8
    assert 0.99 <= histogram.quantile(0.99) <= 0.99 * 9 / 8
    assert Histogram().quantile(0.5) == 0
    histogram.observe(0)
    assert histogram.count == 1001
    assert histogram.total == pytest.approx(500.5)


@given(st.floats(1e-7, 1e4), st.floats(1e-7, 1e4))
def test_a_bucket_holds_what_lies_below_its_bound(one: float, other: float) -> None:
    bounds = []
    for seconds in sorted((one, other)):
        histogram = Histogram()
        histogram.observe(seconds)
        ((bound, number),) = histogram.buckets()
        assert number == 1
        assert seconds < bound * (1 + 1e-9)
        assert bound < (seconds + 1e-9) * 9 / 8 * (1 + 1e-9)
        bounds.append(bound)
    assert bounds == sorted(bounds)


@given(st.lists(st.floats(0, 20), max_size=50))
def test_the_bounds_for_prometheus_count_all_below_them(measured: list[float]) -> None:
    histogram = Histogram()
    for seconds in measured:
        histogram.observe(seconds)
    cumulated = list(histogram.cumulated())
    assert [bound for bound, _ in cumulated] == [2**power * 1e-9 for power in range(10, 34)]
    for bound, below in cumulated:
        nanoseconds = round(bound * 1e9)
        assert below == sum(int(seconds * 1e9) < nanoseconds for seconds in measured)


# -- counting --------------------------------------------------------------------------------


def test_threads_lose_no_count() -> None:
    stats = CacheStats()

    def work(_: int) -> None:
        for _ in range(1000):
            stats.count("memory", "hit")
            stats.observe("memory", "get", 1e-5)
            stats.looked_up("memory", 2, 3, 1e-5, saved=1.0)
            stats.wrote("memory", 4, 1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    memory = stats.snapshot()["memory"]
    assert (memory["hit"], memory["miss"], memory["write"]) == (24_000, 24_000, 32_000)
    assert memory["get_seconds"]["count"] == 16_000
    assert memory["set_seconds"]["count"] == 8_000
    assert stats.saved("memory") == 8_000


def test_one_call_counts_like_several() -> None:
    one, several = CacheStats(), CacheStats()
    one.looked_up("answer", 3, 1, 0.001, saved=2.0)
    one.looked_up("answer", 0, 1)
    one.wrote("answer", 5, 0.01)
    several.count("answer", "hit", 3)
    several.count("answer", "miss", 1)
    several.observe("answer", "get", 0.001)
    several.save("answer", 2.0)
    several.count("answer", "miss", 1)
    several.count("answer", "write", 5)
    several.observe("answer", "set", 0.01)
    assert one.snapshot() == several.snapshot()


def test_snapshot_is_plain() -> None:
    stats = CacheStats()
    assert stats.snapshot() == {}
    assert stats.hit_rate("memory") == 0
    stats.count("memory", "hit", 3)
    stats.count("memory", "miss", 1)
    assert json.loads(json.dumps(stats.snapshot()))["memory"]["hit_rate"] == 0.75
    stats.reset()
    assert stats.snapshot() == {}


def test_asking_changes_nothing() -> None:
    stats = CacheStats()
    assert (stats.saved("x"), stats.total("x", "hit"), stats.hit_rate("x")) == (0, 0, 0)
    assert stats.snapshot() == {}


# -- what a cache counts ---------------------------------------------------------------------


def test_layers_and_kinds_of_a_real_cache(tmp_path: Path) -> None:
    memory = MemoryStore(max_entries=4)
    with TieredCache(memory, SqliteStore(tmp_path / "cache.db")) as cache:
        embedder = CachedEmbedder(HashingEmbedder(8), cache)
        embedder.embed([str(number) for number in range(8)])
        embedder.embed(["7"])
        ValueCache("answer", cache, ttl=60).get_or_compute("q", lambda: "a")
        said = cache.stats.snapshot()
        assert said["embedding"]["hit"] == 1
        assert said["embedding"]["miss"] == 8
        assert said["answer"]["miss"] == 1
        assert said["memory"]["entries"] == len(memory.keys()) == 4
        assert said["memory"]["bytes"] == memory.size_bytes > 0
        assert said["memory"]["evictions"] == memory.evictions == 5
        assert said["memory"]["write"] == said["sqlite"]["write"] == 9
        assert said["sqlite"]["bytes"] >= (tmp_path / "cache.db").stat().st_size > 0
        assert said["sqlite"]["evictions"] == said["sqlite"]["corrupt"] == 0
        assert "entries" not in said["sqlite"]  # it would have to count them


def test_evictions_and_damage_in_a_file_are_counted(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "cache.db"
    with TieredCache(SqliteStore(path, max_bytes=200_000)) as cache:
        for number in range(100):
            cache.set_many({b"%d" % number: bytes(10_000)})
        kept = cache.count()
        assert cache.stats.snapshot()["sqlite"]["evictions"] == 100 - kept > 0
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE entry SET value = substr(value, 1, 100)")
        connection.close()
        assert cache.get_many([b"99"]) == [None]
        assert cache.stats.snapshot()["sqlite"]["corrupt"] == 1


def test_the_size_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert SqliteStore(tmp_path / "none" / "cache.db").size_bytes == 0
    assert SqliteStore("/").size_bytes >= 0


def test_caches_that_share_statistics_are_added_up() -> None:
    stats, shared = CacheStats(), MemoryStore()
    one, two = TieredCache(shared, stats=stats), TieredCache(shared, stats=stats)
    three = TieredCache(stats=stats)
    for cache in (one, two, three):
        cache.set_many({b"k": b"1"})
    assert stats.snapshot()["memory"]["entries"] == 2  # the shared store is one
    del three, cache
    gc.collect()
    assert stats.snapshot()["memory"]["entries"] == 1  # statistics keep no cache alive
    assert one.stats is two.stats


# -- for people ------------------------------------------------------------------------------


def test_the_table() -> None:
    stats = CacheStats()
    stats.looked_up("memory", 3, 1, 0.000_002)
    stats.wrote("memory", 1, 0.01)
    stats.looked_up("answer", 1_000, 0, saved=5_000)
    stats.count("answer", "refresh_error", 2)
    assert str(stats).splitlines() == [
        "part    look-ups  hit rate  get p50  get p99  writes  set p50  set p99     saved  besides",
        "memory         4     75.0%  2.05 µs  2.05 µs       1  10.5 ms  10.5 ms",
        "answer     1,000    100.0%                                              83.3 min  "
        "refresh error 2",
    ]
    assert str(CacheStats()) == "part"


def test_readable_numbers() -> None:
    assert [duration(number) for number in (0, 2e-9, 1.5e-6, 0.0123, 1, 119, 120, 7200)] == [
        *("0 ns", "2 ns", "1.5 µs", "12.3 ms", "1 s", "119 s", "2.0 min", "2.0 h")
    ]
    assert [size(number) for number in (0, 1023, 1024, 2**20, 1.5 * 2**30, 2**40)] == [
        *("0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.5 GiB", "1.0 TiB")
    ]
    assert table(["a", "b", "c"], [["x", "1", "yy"], ["xx", "10", ""]]) == (
        "a    b  c\nx    1  yy\nxx  10"
    )


# -- Prometheus ------------------------------------------------------------------------------


def test_prometheus() -> None:
    stats, registry = CacheStats(), CollectorRegistry()
    stats.register(registry)
    stats.count("memory", "hit", 3)
    for seconds in (0.001, 0.002, 0.1):
        stats.observe("memory", "get", seconds)
    text = generate_latest(registry).decode()
    assert 'ragopt_cache_events_total{event="hit",part="memory"} 3.0' in text
    assert 'ragopt_cache_seconds_count{operation="get",part="memory"} 3.0' in text
    assert 'ragopt_cache_seconds_sum{operation="get",part="memory"} 0.103' in text
    assert 'ragopt_cache_seconds_bucket{le="0.00104858",operation="get",part="memory"} 1.0' in text
    assert 'ragopt_cache_seconds_bucket{le="+Inf",operation="get",part="memory"} 3.0' in text


def test_prometheus_reads_a_real_cache(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with TieredCache(MemoryStore(max_entries=2), SqliteStore(tmp_path / "cache.db")) as cache:
        cache.stats.register(registry)
        values = ValueCache("answer", cache, ttl=60)
        for question in ("a", "b", "c", "c"):
            values.get_or_compute(question, lambda: "an answer")
        read = scraped(registry)
        assert read["ragopt_cache_events_total hit answer"] == 1
        assert read["ragopt_cache_events_total miss answer"] == 3
        assert read["ragopt_cache_events_total eviction memory"] == 1
        assert read["ragopt_cache_events_total corrupt sqlite"] == 0
        assert read["ragopt_cache_entries memory"] == 2
        assert read["ragopt_cache_bytes memory"] > 0
        assert read["ragopt_cache_bytes sqlite"] > 0
        assert read["ragopt_cache_saved_seconds_total answer"] == cache.stats.saved("answer") > 0
        assert read["ragopt_cache_seconds_count get memory"] == 4


def test_the_buckets_are_the_same_at_every_scrape() -> None:
    stats, registry = CacheStats(), CollectorRegistry()
    stats.register(registry)
    stats.observe("memory", "get", 0.001)
    before = {name for name in scraped(registry) if "_bucket" in name}
    stats.observe("memory", "get", 5)
    assert {name for name in scraped(registry) if "_bucket" in name} == before
    assert len(before) == 25


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_registering_twice_is_a_sentence(described: bool, same: bool) -> None:
    registry: Any = CollectorRegistry(auto_describe=described)
    stats = CacheStats()
    stats.register(registry)
    other = stats if same else CacheStats()
    with pytest.raises(InvalidInput, match="has statistics of a ragopt cache already") as raised:
        other.register(registry)
    assert raised.value.__context__ is None
    registry.unregister(stats)
    other.register(registry)  # the control: now it goes
    generate_latest(registry)


def test_one_cache_in_two_registries() -> None:
    stats = CacheStats()
    stats.count("memory", "hit")
    for registry in (CollectorRegistry(), CollectorRegistry()):
        stats.register(registry)
        assert scraped(registry)["ragopt_cache_events_total hit memory"] == 1
