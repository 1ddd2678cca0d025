"""The results as rows: what was measured without ragopt, with it, and what changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from ragopt.demo.measure import AGAIN, Measured, at_once, mean, percentile

Unit: TypeAlias = Literal["s", "share", "askers", "bytes", "ratio"]

_SAME = "the same"


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of one framework.

    Args:
        key: Name in the JSON report.
        name: Name for people.
        before: Without ragopt; None where there is no such thing.
        after: With ragopt.
        unit: Of both.
        detail: Whether it explains the row above it.
    """

    key: str
    name: str
    before: float | None
    after: float | None
    unit: Unit
    detail: bool = False

    @property
    def shown(self) -> tuple[str, str, str]:
        """Before, after and change, for people."""
        return show(self.before, self.unit), show(self.after, self.unit), self.change

    @property
    def change(self) -> str:
        """What changed, in the words that fit the unit."""
        before, after = self.before, self.after
        if before is None or after is None:
            return ""
        if self.unit == "share":
            return f"{(after - before) * 100:+.0f} points"
        if before <= 0 or after <= 0 or self.unit == "ratio":
            return ""
        if self.unit == "askers":
            return f"x{_number(after / before)}"
        less = 1 - after / before
        if abs(less) < 0.005:
            return _SAME
        word = f"{abs(less):.1%}" if less > 0.99 else f"{abs(less):.0%}"
        factor = f" (x{_number(before / after)})" if before / after >= 2 else ""
        return f"{word} {'less' if less > 0 else 'more'}{factor}"

    @property
    def improved(self) -> bool:
        """Whether ragopt made it better, by more than nothing."""
        if not self.change or self.before is None or self.after is None:
            return False
        if self.unit in ("share", "askers", "ratio"):
            return self.after > self.before
        return self.after < self.before and self.change != _SAME

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return {**asdict(self), "change": self.change}


def show(value: float | None, unit: Unit) -> str:
    """Write a value with its unit, as people do."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{value:.0%}"
    if unit == "askers":
        return f"{value:.0f}"
    if unit == "bytes":
        return f"{value / 2**20:.1f} MB"
    if unit == "ratio":
        return f"x{_number(value)}"
    if value >= 10:
        return f"{value:.1f} s"
    if value >= 1:
        return f"{value:.2f} s"
    digits = 3 if value < 0.001 else 2 if value < 0.01 else 1
    return f"{value * 1_000:.{digits}f} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rows(before: Measured, after: Measured, passages: int) -> list[Row]:
    """Put the results of both arms of a framework side by side.

    Args:
        before: The framework alone.
        after: With ragopt.
        passages: How many were indexed.
    """
    numbers = {"passages": passages, "again": min(AGAIN, passages)}
    return [
        Row(
            key,
            name.format(**numbers),
            read(before),
            read(after),
            unit,
            detail=name.startswith(" "),
        )
        for key, name, unit, read in _MEASURES
    ]


def first_to_second(measured: Measured) -> float | None:
    """Return how many times faster the second ask of a question was; None if none was asked."""
    second = mean(measured.second)
    return mean(measured.first) / second if second else None


def differing(before: Measured, after: Measured) -> list[str]:
    """Return the questions that were answered differently."""
    return [
        question
        for question, answer in before.answers.items()
        if after.answers.get(question) != answer
    ]


def _mean(measured: Measured, part: str) -> float:
    return mean([getattr(each, part) for each in measured.asks])


def _percentile(measured: Measured, share: float) -> float:
    return percentile([each.total for each in measured.asks], share)


def _each(measured: Measured, seconds: str, calls: str) -> float | None:
    number = sum(getattr(each, calls) for each in measured.asks)
    return sum(getattr(each, seconds) for each in measured.asks) / number if number else None


def _rate(measured: Measured, kind: str) -> float | None:
    hits, lookups = measured.hits.get(kind, (0, 0))
    return hits / lookups if lookups else None


# A name that begins with spaces belongs to the row above it.
_MEASURES: tuple[tuple[str, str, Unit, Callable[[Measured], float | None]], ...] = (
    ("response", "Query response time, mean", "s", lambda m: _mean(m, "total")),
    ("response_p50", "  median", "s", lambda m: _percentile(m, 0.5)),
    ("response_p95", "  95th percentile", "s", lambda m: _percentile(m, 0.95)),
    ("response_own", "  mean, without the answerer", "s", lambda m: _mean(m, "own")),
    ("first_ask", "First ask of a question *", "s", lambda m: mean(m.first)),
    ("second_ask", "Second ask of it *", "s", lambda m: mean(m.second)),
    ("first_to_second", "  first / second", "ratio", first_to_second),
    ("embedding", "Embedding generation, per ask", "s", lambda m: _mean(m, "embed")),
    ("embedding_call", "  each time it was needed", "s", lambda m: _each(m, "embed", "embeds")),
    ("search", "Vector search, per ask", "s", lambda m: _mean(m, "search")),
    ("search_call", "  each time it ran", "s", lambda m: _each(m, "search", "searches")),
    ("hit_rate", "Cache hit rate, answers", "share", lambda m: _rate(m, "answers") or 0.0),
    ("hit_rate_retrieval", "  passages, of the rest", "share", lambda m: _rate(m, "retrieval")),
    ("hit_rate_embeddings", "  embeddings, of the rest", "share", lambda m: _rate(m, "embeddings")),
    ("at_once_cold", "Queries served at once **", "askers", lambda m: at_once(m.cold)),
    ("at_once_warm", "  while the stream goes on", "askers", lambda m: at_once(m.warm or m.cold)),
    ("memory", "Memory of index and caches", "bytes", lambda m: float(m.memory)),
    ("build", "Indexing {passages:,} passages", "s", lambda m: m.build),
    ("again", "Indexing {again:,} of them again", "s", lambda m: m.again),
)
