"""How an embedder is, and what it did: for people, JSON and Prometheus."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any, ClassVar, Literal, TypeAlias

from ragopt._forks import fork_safe
from ragopt.embedders.exported import Exported, Family, Sample
from ragopt.metrics import Histogram

Status: TypeAlias = Literal["not_initialized", "healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class Health:
    """What one look at an embedder came to.

    Args:
        status: ``not_initialized`` before the model is loaded; ``healthy``; ``degraded`` if it
            answers, but with wrong vectors or only after memory ran out; ``unhealthy`` if a test
            text cannot be embedded.
        model: Name of the model.
        device: Where it runs; None before it is loaded.
        dimension: Length of a dense vector.
        test_seconds: What embedding the test text took; None if it was not tried.
        problem: What is wrong; None if nothing is.
    """

    status: Status
    model: str
    device: str | None = None
    dimension: int | None = None
    test_seconds: float | None = None
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass
class EmbedderStats(Exported):
    """What an embedder did. Safe to share between threads.

    ``snapshot`` returns plain values, ``register`` exports them to Prometheus.

    Examples:
        >>> embedder.stats.register(embedder="minilm")
    """

    _families: ClassVar[tuple[Family, ...]] = (
        Family("ragopt_embedder_requests", "Counter", "Requests, failed ones included"),
        Family("ragopt_embedder_successes", "Counter", "Requests that succeeded"),
        Family("ragopt_embedder_failures", "Counter", "Requests that failed", "error"),
        Family("ragopt_embedder_texts", "Counter", "Texts in requests that succeeded"),
        Family("ragopt_embedder_computed", "Counter", "Texts and pieces that the model read"),
        Family("ragopt_embedder_tokens", "Counter", "Tokens that the model read"),
        Family("ragopt_embedder_passes", "Counter", "Forward passes"),
        Family("ragopt_embedder_out_of_memory", "Counter", "Batches halved: memory ran out"),
        Family("ragopt_embedder_seconds", "Histogram", "Latency of requests that succeeded"),
        Family("ragopt_embedder_mean_batch_size", "Gauge", "Texts in a forward pass on average"),
        Family("ragopt_embedder_tokens_per_second", "Gauge", "Tokens in a second of a request"),
    )

    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Failed requests by the class of their error."""
    texts: int = 0
    """Texts in requests that succeeded."""
    computed: int = 0
    """Texts, and pieces of long ones, that went through the model: none twice in a request."""
    tokens: int = 0
    passes: int = 0
    """Forward passes."""
    out_of_memory: int = 0
    """How often a batch was made smaller since memory ran out."""
    latency: Histogram = field(default_factory=Histogram)
    """Seconds of each request that succeeded."""

    def __post_init__(self) -> None:
        self._lock = fork_safe(Lock())

    def succeeded(self, texts: int, seconds: float) -> None:
        """Add a request that succeeded."""
        with self._lock:
            self.requests += 1
            self.texts += texts
            self.latency.observe(seconds)

    def passed(self, texts: int, tokens: int) -> None:
        """Add a forward pass."""
        with self._lock:
            self.passes += 1
            self.computed += texts
            self.tokens += tokens

    def shrank(self) -> None:
        """Add a time that memory ran out."""
        with self._lock:
            self.out_of_memory += 1

    def failed(self, error: BaseException) -> None:
        """Add a request that failed."""
        with self._lock:
            self.requests += 1
            self.failures[type(error).__name__] += 1

    def snapshot(self) -> dict[str, Any]:
        """Return everything as plain values, with averages."""
        with self._lock:
            return self._values()

    def _values(self) -> dict[str, Any]:
        failed = self.failures.total()
        done = self.requests - failed
        seconds = self.latency.total
        return {
            "requests": self.requests,
            "successes": done,
            "failures": dict(self.failures),
            "texts": self.texts,
            "computed": self.computed,
            "tokens": self.tokens,
            "passes": self.passes,
            "out_of_memory": self.out_of_memory,
            "mean_seconds": seconds / done if done else 0.0,
            "p50_seconds": self.latency.quantile(0.5),
            "p99_seconds": self.latency.quantile(0.99),
            "mean_batch_size": self.computed / self.passes if self.passes else 0.0,
            "tokens_per_second": self.tokens / seconds if seconds else 0.0,
        }

    def _samples(self) -> dict[str, Sample]:
        with self._lock:
            values = self._values() | {"seconds": deepcopy(self.latency)}
        return {f"ragopt_embedder_{name}": value for name, value in values.items()}
