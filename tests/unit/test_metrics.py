import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ragopt import CacheStats
from ragopt.metrics import Histogram


def test_quantiles_are_within_a_fifth() -> None:
    histogram = Histogram()
    for i in range(1, 1001):
        histogram.observe(i / 1000)
    assert histogram.quantile(0.5) == pytest.approx(0.5, rel=0.2)
    assert histogram.quantile(0.99) == pytest.approx(0.99, rel=0.2)
    assert Histogram().quantile(0.5) == 0
    histogram.observe(0)
    assert histogram.count == 1001


def test_threads_lose_no_count() -> None:
    stats = CacheStats()

    def work(_: int) -> None:
        for _ in range(2000):
            stats.count("memory", "hit")
            stats.observe("memory", "get", 1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    snapshot = stats.snapshot()
    assert snapshot["memory"]["hit"] == 16_000
    assert snapshot["memory"]["get_seconds"]["count"] == 16_000


def test_snapshot_is_plain() -> None:
    stats = CacheStats()
    assert stats.snapshot() == {}
    assert stats.hit_rate("memory") == 0
    stats.count("memory", "hit", 3)
    stats.count("memory", "miss", 1)
    assert json.loads(json.dumps(stats.snapshot()))["memory"]["hit_rate"] == 0.75
    stats.reset()
    assert stats.snapshot() == {}


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
