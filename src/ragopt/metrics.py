"""Counters and latency histograms of the caches, for people, JSON and Prometheus."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from threading import Lock
from typing import Any, Literal, TypeAlias

from ragopt._imports import require

Event: TypeAlias = Literal[
    "hit",
    "miss",
    "write",
    "error",
    "skipped",
    "corrupt",
    "uncacheable",
    "stale",
    "dead",
    "unverified",
    "shared",
    "refresh",
    "refresh_error",
    "superseded",
]

_STEPS = 4  # buckets per doubling: a quantile is at most 19 % above the true one
_SMALLEST = 1e-6


class Histogram:
    """Latencies in logarithmic buckets: constant memory, quantiles within 19 %."""

    __slots__ = ("_buckets", "count", "total")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Add one measurement."""
        self._buckets[math.ceil(math.log2(max(seconds, _SMALLEST) / _SMALLEST) * _STEPS)] += 1
        self.count += 1
        self.total += seconds

    def quantile(self, q: float) -> float:
        """Return the upper bound in seconds of the bucket that holds quantile ``q``; 0 if empty."""
        seen = 0
        for upper, number in self.buckets():
            seen += number
            if seen >= q * self.count:
                return upper
        return 0.0

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Yield ``(upper bound in seconds, measurements in this bucket)``, ascending."""
        for index in sorted(self._buckets):
            yield _SMALLEST * 2 ** (index / _STEPS), self._buckets[index]


class CacheStats:
    """What the caches did. Safe to share between threads.

    A *part* is a layer (``"memory"``, ``"sqlite"``) or a kind (``"embedding"``, ``"answer"``).
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._events: Counter[tuple[str, str]] = Counter()
        self._latency: dict[tuple[str, str], Histogram] = {}
        self._saved: defaultdict[str, float] = defaultdict(float)

    def count(self, part: str, event: Event, number: int = 1) -> None:
        """Add ``number`` events to a part."""
        if number:
            with self._lock:
                self._events[part, event] += number

    def observe(self, part: str, operation: str, seconds: float) -> None:
        """Add one latency to an operation (``get``, ``set``) of a part."""
        with self._lock:
            histogram = self._latency.get((part, operation))
            if histogram is None:
                histogram = self._latency[part, operation] = Histogram()
            histogram.observe(seconds)

    def save(self, part: str, seconds: float) -> None:
        """Add the time that a hit saved: what its value took to compute."""
        with self._lock:
            self._saved[part] += seconds

    def saved(self, part: str) -> float:
        """Return the seconds that hits saved."""
        return self._saved[part]

    def total(self, part: str, event: Event) -> int:
        """Return how often something happened."""
        return self._events[part, event]

    def hit_rate(self, part: str) -> float:
        """Return hits / (hits + misses) of a part; 0 before the first look-up."""
        hits, misses = self._events[part, "hit"], self._events[part, "miss"]
        return hits / (hits + misses) if hits + misses else 0.0

    def reset(self) -> None:
        """Forget everything counted so far."""
        with self._lock:
            self._events.clear()
            self._latency.clear()
            self._saved.clear()

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Return everything as plain values: part -> counts, hit rate, latencies in seconds."""
        with self._lock:
            parts: dict[str, dict[str, Any]] = {}
            for (part, event), number in self._events.items():
                parts.setdefault(part, {})[event] = number
            for part, seconds in self._saved.items():
                parts.setdefault(part, {})["saved_seconds"] = seconds
            for (part, operation), histogram in self._latency.items():
                parts.setdefault(part, {})[f"{operation}_seconds"] = {
                    "count": histogram.count,
                    "mean": histogram.total / histogram.count,
                    "p50": histogram.quantile(0.5),
                    "p99": histogram.quantile(0.99),
                }
        for part, values in parts.items():
            values["hit_rate"] = self.hit_rate(part)
        return parts

    def register(self, registry: Any = None) -> None:
        """Export to Prometheus: ``ragopt_cache_events_total`` and ``ragopt_cache_seconds``.

        Args:
            registry: A ``prometheus_client.CollectorRegistry``; the global one if None.

        Raises:
            MissingDependency: prometheus-client is not installed.
        """
        client = require("prometheus_client", "prometheus")
        (registry or client.REGISTRY).register(self)

    def collect(self) -> Iterator[Any]:
        """Yield Prometheus metric families; called by the registry at every scrape."""
        core = require("prometheus_client.core", "prometheus")
        events = core.CounterMetricFamily(
            "ragopt_cache_events", "Cache events", labels=["part", "event"]
        )
        seconds = core.HistogramMetricFamily(
            "ragopt_cache_seconds", "Latency of cache operations", labels=["part", "operation"]
        )
        with self._lock:
            for labels, number in self._events.items():
                events.add_metric(labels, number)
            for labels, histogram in self._latency.items():
                cumulated, bounds = 0, []
                for upper, number in histogram.buckets():
                    cumulated += number
                    bounds.append((f"{upper:.6g}", cumulated))
                seconds.add_metric(
                    labels, [*bounds, ("+Inf", histogram.count)], sum_value=histogram.total
                )
        yield events
        yield seconds
