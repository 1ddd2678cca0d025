"""Statistics of several embedders under one set of metric names in a Prometheus registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from ragopt._forks import fork_safe
from ragopt._imports import require
from ragopt.errors import InvalidInput
from ragopt.metrics import Histogram, add_histogram, collected_by, registry_or_global

Sample: TypeAlias = float | Histogram | Mapping[str, float]
"""A number; latencies; or a number for each value of the second label."""


class Family(NamedTuple):
    """A Prometheus metric: its name, type and help, and its label beside ``embedder``."""

    name: str
    type: Literal["Counter", "Gauge", "Histogram"]
    help: str
    label: str | None = None

    def empty(self) -> Any:
        """Return the metric without samples, as ``prometheus_client`` has it."""
        core = require("prometheus_client.core", "prometheus")
        labels = ["embedder"] if self.label is None else ["embedder", self.label]
        return getattr(core, f"{self.type}MetricFamily")(self.name, self.help, labels=labels)


class Exported(ABC):
    """Statistics that Prometheus can read, beside those of other embedders."""

    _families: ClassVar[tuple[Family, ...]]

    @abstractmethod
    def _samples(self) -> Mapping[str, Sample]:
        """Return a sample for the name of each family; called at every scrape."""

    def register(self, registry: Any = None, *, embedder: str) -> None:
        """Export these statistics to Prometheus, for as long as they live.

        Args:
            registry: A ``prometheus_client.CollectorRegistry``; the global one if None.
            embedder: What tells them from those of other embedders, such as the model's name:
                the label ``embedder`` of every sample.

        Raises:
            MissingDependency: prometheus-client is not installed.
            InvalidInput: The registry has these statistics, or others under this name, already.
        """
        registry = registry_or_global(registry)
        with _lock:
            known = _collectors.setdefault(registry, {})
            found = known.get(self._families)
            collector = found or _Collector(self._families)
            if collected_by(registry, collector):
                # It is new, or somebody took it out of the registry, with all that it held.
                collector.members.clear()
                known[self._families] = collector
            elif found is None:
                raise InvalidInput(
                    f"The Prometheus registry has {self._families[0].name} from elsewhere.",
                    fix="Give another registry.",
                )
            for name, member in collector.members.items():
                if member is self or name == embedder:
                    raise InvalidInput(
                        f"The Prometheus registry has statistics of the embedder {name!r} already.",
                        fix="Register each embedder once, under a name of its own. Or take the "
                        "other statistics out with stats.unregister(registry).",
                    )
            collector.members[embedder] = self

    def unregister(self, registry: Any = None) -> None:
        """Export these statistics to a registry no longer; nothing happens if they were not."""
        with _lock:
            known = _collectors.get(registry_or_global(registry), {})
            if collector := known.get(self._families):
                for name, member in list(collector.members.items()):
                    if member is self:
                        del collector.members[name]


class _Collector:
    """What a registry reads: one for all embedders, since a metric's name can be there once."""

    def __init__(self, families: tuple[Family, ...]) -> None:
        self._families = families
        # Statistics keep no embedder alive, and a name is free again when its embedder is gone.
        self.members: WeakValueDictionary[str, Exported] = WeakValueDictionary()

    def describe(self) -> list[Any]:
        return [family.empty() for family in self._families]

    def collect(self) -> Iterator[Any]:
        metrics = {family.name: family.empty() for family in self._families}
        with _lock:
            members = list(self.members.items())
        for embedder, member in members:
            samples = member._samples()  # not under the lock, since it takes one of its own
            for name, metric in metrics.items():
                sample = samples[name]
                if isinstance(sample, Histogram):
                    add_histogram(metric, [embedder], sample)
                elif isinstance(sample, Mapping):
                    for label, number in sample.items():
                        metric.add_metric([embedder, label], number)
                else:
                    metric.add_metric([embedder], sample)
        yield from metrics.values()


_lock = fork_safe(Lock())
_collectors: WeakKeyDictionary[Any, dict[tuple[Family, ...], _Collector]] = WeakKeyDictionary()
