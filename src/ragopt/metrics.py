"""Counters and latency histograms, for people, JSON and Prometheus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import ldexp
from threading import Lock
from typing import Any, Literal, Protocol, TypeAlias
from weakref import WeakSet

from ragopt._forks import fork_safe
from ragopt._imports import require
from ragopt._readable import duration, size, table
from ragopt.errors import InvalidInput

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

_BOUNDS = range(10, 34)  # powers of two in nanoseconds that Prometheus sees: 1 µs to 9 s
# What a layer may know of itself without being asked over a network: name here, attribute there.
_FIGURES = {
    "entries": "entries",
    "bytes": "size_bytes",
    "evictions": "evictions",
    "corrupt": "corrupt_entries",
}


class Layered(Protocol):
    """A cache of several layers."""

    @property
    def layers(self) -> Sequence[Any]:
        """The stores, nearest first."""
        ...


class Histogram:
    """Latencies in buckets, eight for each doubling: constant memory, quantiles within 13 %."""

    __slots__ = ("_buckets", "total")

    def __init__(self) -> None:
        self._buckets: defaultdict[int, int] = defaultdict(int)
        self.total = 0.0

    @property
    def count(self) -> int:
        """How many measurements there are."""
        return sum(self._buckets.values())

    def observe(self, seconds: float) -> None:
        """Add one measurement."""
        # By the first four bits of the nanoseconds: a quarter faster than a logarithm.
        nanoseconds = int(seconds * 1e9)
        length = nanoseconds.bit_length()
        self._buckets[length * 8 + (nanoseconds << 4 >> length)] += 1
        self.total += seconds

    def quantile(self, q: float) -> float:
        """Return the upper bound in seconds of the bucket that holds quantile ``q``; 0 if empty."""
        seen, wanted = 0, q * self.count
        for upper, number in self.buckets():
            seen += number
            if seen >= wanted:
                return upper
        return 0.0

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Yield ``(upper bound in seconds, measurements in this bucket)``, ascending."""
        for index in sorted(self._buckets):
            yield ldexp(index % 8 + 9, index // 8 - 5) * 1e-9, self._buckets[index]

    def cumulated(self) -> Iterator[tuple[float, int]]:
        """Yield ``(bound in seconds, measurements below it)``: powers of two, always the same."""
        for length in _BOUNDS:
            below = length * 8 + 16
            yield (
                2**length * 1e-9,
                sum(number for index, number in self._buckets.items() if index < below),
            )


class _Part:
    __slots__ = ("events", "latencies", "saved")

    def __init__(self) -> None:
        self.events: defaultdict[str, int] = defaultdict(int)
        self.latencies: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.saved = 0.0


class CacheStats:
    """What the caches did. Safe to share between threads, and between caches.

    A *part* is a layer (``"memory"``, ``"sqlite"``) or a kind (``"embedding"``, ``"answer"``).
    ``print(stats)`` shows a table, ``snapshot`` returns the same as plain values.
    """

    def __init__(self) -> None:
        self._lock = fork_safe(Lock())
        self._parts: defaultdict[str, _Part] = defaultdict(_Part)
        self._caches: WeakSet[Layered] = WeakSet()

    def looked_up(
        self,
        part: str,
        hits: int,
        misses: int,
        seconds: float | None = None,
        *,
        saved: float = 0.0,
    ) -> None:
        """Add what one look-up came to; every look-up in every layer goes through here.

        Args:
            part: The layer or kind.
            hits: Entries that were found.
            misses: Entries that were not.
            seconds: What it took; None if that was not measured.
            saved: Seconds that the hits saved.
        """
        lock = self._lock
        lock.acquire()  # half the time of a with statement, and the only lock of a look-up
        try:
            found = self._parts[part]
            if hits:
                found.events["hit"] += hits
            if misses:
                found.events["miss"] += misses
            if seconds is not None:
                found.latencies["get"].observe(seconds)
            if saved:
                found.saved += saved
        finally:
            lock.release()

    def wrote(self, part: str, number: int, seconds: float) -> None:
        """Add what one write came to: how many entries, and what it took."""
        with self._lock:
            found = self._parts[part]
            found.events["write"] += number
            found.latencies["set"].observe(seconds)

    def count(self, part: str, event: Event, number: int = 1) -> None:
        """Add ``number`` events to a part."""
        if number:
            with self._lock:
                self._parts[part].events[event] += number

    def observe(self, part: str, operation: str, seconds: float) -> None:
        """Add one latency to an operation (``get``, ``set``) of a part."""
        with self._lock:
            self._parts[part].latencies[operation].observe(seconds)

    def save(self, part: str, seconds: float) -> None:
        """Add the time that a hit saved: what its value took to compute."""
        with self._lock:
            self._parts[part].saved += seconds

    def watch(self, cache: Layered) -> None:
        """Also show what the layers of a cache say of themselves, for as long as it lives."""
        with self._lock:
            self._caches.add(cache)

    def saved(self, part: str) -> float:
        """Return the seconds that hits saved."""
        found = self._parts.get(part)
        return found.saved if found else 0.0

    def total(self, part: str, event: Event) -> int:
        """Return how often something happened."""
        found = self._parts.get(part)
        return found.events.get(event, 0) if found else 0

    def hit_rate(self, part: str) -> float:
        """Return hits / (hits + misses) of a part; 0 before the first look-up."""
        hits, misses = self.total(part, "hit"), self.total(part, "miss")
        return hits / (hits + misses) if hits + misses else 0.0

    def reset(self) -> None:
        """Forget everything counted so far; what the layers say of themselves stays."""
        with self._lock:
            self._parts.clear()

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Return everything as plain values: part -> counts, hit rate, latencies in seconds.

        A layer also says, where it knows: ``entries`` and ``bytes`` now, ``evictions`` and
        ``corrupt`` entries since it was made.
        """
        parts: dict[str, dict[str, Any]] = {}
        with self._lock:
            for part, found in self._parts.items():
                values = parts[part] = dict[str, Any](found.events)
                if found.saved:
                    values["saved_seconds"] = found.saved
                for operation, histogram in found.latencies.items():
                    values[f"{operation}_seconds"] = {
                        "count": histogram.count,
                        "mean": histogram.total / histogram.count,
                        "p50": histogram.quantile(0.5),
                        "p99": histogram.quantile(0.99),
                    }
        for layer, figures in self._layers().items():
            parts.setdefault(layer, {}).update(figures)
        for values in parts.values():
            hits, asked = values.get("hit", 0), _asked(values)
            values["hit_rate"] = hits / asked if asked else 0.0
        return parts

    def _layers(self) -> dict[str, dict[str, int]]:
        """Return what the layers of all watched caches say; two of one name are added up."""
        with self._lock:
            caches = list(self._caches)
        # Not under the lock, since a layer may take one of its own.
        layers = {id(layer): layer for cache in caches for layer in cache.layers}
        said: dict[str, dict[str, int]] = {}
        for layer in layers.values():
            for name, attribute in _FIGURES.items():
                value = getattr(layer, attribute, None)
                if isinstance(value, int):
                    figures = said.setdefault(layer.name, {})
                    figures[name] = figures.get(name, 0) + value
        return said

    def __str__(self) -> str:
        """Return a table with a line for each part."""
        return table(_COLUMNS, [_row(part, values) for part, values in self.snapshot().items()])

    def register(self, registry: Any = None) -> None:
        """Export to Prometheus.

        ``ragopt_cache_events_total`` and ``ragopt_cache_seconds`` of every part,
        ``ragopt_cache_saved_seconds_total`` of every kind, ``ragopt_cache_bytes`` and
        ``ragopt_cache_entries`` of the layers that know them.

        Args:
            registry: A ``prometheus_client.CollectorRegistry``; the global one if None.

        Raises:
            MissingDependency: prometheus-client is not installed.
            InvalidInput: The registry has these or other statistics of ragopt already.
        """
        if not collected_by(registry_or_global(registry), self):
            raise InvalidInput(
                "The Prometheus registry has statistics of a ragopt cache already.",
                fix="Register once, and give all caches the same statistics: "
                "TieredCache(..., stats=stats). Or take the others out with "
                "registry.unregister(stats).",
            )

    def describe(self) -> list[Any]:
        """Return the empty metric families, so that a registry knows their names."""
        core = require("prometheus_client.core", "prometheus")
        counter, gauge = core.CounterMetricFamily, core.GaugeMetricFamily
        return [
            counter("ragopt_cache_events", "Cache events", labels=["part", "event"]),
            core.HistogramMetricFamily(
                "ragopt_cache_seconds", "Latency of cache operations", labels=["part", "operation"]
            ),
            counter("ragopt_cache_saved_seconds", "Time that hits saved", labels=["kind"]),
            gauge("ragopt_cache_bytes", "Bytes that a layer holds", labels=["layer"]),
            gauge("ragopt_cache_entries", "Entries that a layer holds", labels=["layer"]),
        ]

    def collect(self) -> Iterator[Any]:
        """Yield Prometheus metric families; called by the registry at every scrape."""
        families = events, seconds, saved, held, entries = self.describe()
        said = self._layers()
        with self._lock:
            for part, found in self._parts.items():
                for event, number in found.events.items():
                    events.add_metric((part, event), number)
                if found.saved:
                    saved.add_metric((part,), found.saved)
                for operation, histogram in found.latencies.items():
                    add_histogram(seconds, (part, operation), histogram)
        for layer, figures in said.items():
            for name, event in (("evictions", "eviction"), ("corrupt", "corrupt")):
                if name in figures:
                    events.add_metric((layer, event), figures[name])
            if "bytes" in figures:
                held.add_metric((layer,), figures["bytes"])
            if "entries" in figures:
                entries.add_metric((layer,), figures["entries"])
        yield from families


def registry_or_global(registry: Any) -> Any:
    """Return a Prometheus registry, or the global one for None.

    Raises:
        MissingDependency: prometheus-client is not installed.
    """
    client = require("prometheus_client", "prometheus")
    return client.REGISTRY if registry is None else registry


def collected_by(registry: Any, collector: Any) -> bool:
    """Let a registry read a collector at every scrape; False if it has such metrics already."""
    try:
        registry.register(collector)
    except ValueError:
        return False
    return True


def add_histogram(family: Any, labels: Sequence[str], histogram: Histogram) -> None:
    """Add a histogram to a Prometheus family. Its bounds are the same at every scrape."""
    bounds = [(f"{bound:.6g}", below) for bound, below in histogram.cumulated()]
    bounds.append(("+Inf", histogram.count))
    family.add_metric(labels, bounds, sum_value=histogram.total)


_COLUMNS = (
    *("part", "look-ups", "hit rate", "get p50", "get p99"),
    *("writes", "set p50", "set p99", "saved", "entries", "size", "besides"),
)
_SHOWN = {"hit", "miss", "write", "hit_rate", "entries", "bytes"}


def _asked(values: dict[str, Any]) -> int:
    return int(values.get("hit", 0) + values.get("miss", 0))


def _row(part: str, values: dict[str, Any]) -> list[str]:
    """Return the cells of one part; what has no column of its own stands in the last one."""

    def latency(operation: str, quantile: str) -> str:
        found = values.get(f"{operation}_seconds")
        return duration(found[quantile]) if found else ""

    def number(name: str) -> str:
        return f"{values[name]:,}" if name in values else ""

    asked = _asked(values)
    others = {
        name: value
        for name, value in values.items()
        if name not in _SHOWN and not name.endswith("_seconds") and value
    }
    return [
        *(part, f"{asked:,}" if asked else "", f"{values['hit_rate']:.1%}" if asked else ""),
        *(latency("get", "p50"), latency("get", "p99")),
        *(number("write"), latency("set", "p50"), latency("set", "p99")),
        duration(values["saved_seconds"]) if "saved_seconds" in values else "",
        *(number("entries"), size(values["bytes"]) if "bytes" in values else ""),
        ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in others.items()),
    ]
