"""Time several ways of doing the same work in turns, after checking that it is the same work."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

_BLOCK = 0.1  # seconds that one contender works in one round, if a single call is shorter
_MOST_CALLS = 500


@dataclass(frozen=True)
class Contender:
    """One way of doing the work.

    Args:
        name: What the table and the JSON call it.
        call: The work. This alone is timed.
        outcome: Turns what ``call`` returned into a value that is equal for every contender.
        prepare: Makes the argument of ``call`` from the number of the call; not timed.
    """

    name: str
    call: Callable[[Any], Any]
    outcome: Callable[[Any], Any]
    prepare: Callable[[int], Any] = lambda number: number


@dataclass(frozen=True)
class Bound:
    """What ours may take: ``factor`` of the raw driver's time, ``peer`` of the peer's, ``seconds``.

    All that are given are added up.
    """

    factor: float = 0.0
    peer: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.factor:g} x raw"] if self.factor else []
        parts += [f"{self.peer:g} x peer"] if self.peer else []
        parts += [show(self.seconds)] if self.seconds else []
        return "<= " + " + ".join(parts)


@dataclass(frozen=True)
class Line:
    """One line of the table: names of contenders, and the bound where there is one."""

    title: str
    ours: str
    raw: str
    peer: str | None = None
    bound: Bound | None = None


@dataclass(frozen=True)
class Row:
    """Contenders that do the same work, and what of it is shown.

    Args:
        title: What the work is.
        contenders: In the order of their turns.
        lines: What to compare with what.
        inputs: How many different inputs there are; calls go round them.
    """

    title: str
    contenders: Sequence[Contender]
    lines: Sequence[Line]
    inputs: int = 1


@dataclass
class Timing:
    """Seconds per call of one contender: the median of each round."""

    calls: int
    rounds: list[float] = field(default_factory=list)


class DifferentWork(Exception):
    """Two contenders did not return the same."""


def check(row: Row) -> dict[str, float]:
    """Raise DifferentWork unless all contenders return the same for every input.

    Returns:
        Seconds of the last call of each, which may have been its first and slow for that.
    """
    took: dict[str, float] = {}
    for number in range(row.inputs):
        expected: Any = None
        for each in row.contenders:
            argument, start = each.prepare(number), perf_counter()
            result = each.call(argument)
            took[each.name] = perf_counter() - start
            outcome = each.outcome(result)
            if each is row.contenders[0]:
                expected = outcome
            elif outcome != expected:
                raise DifferentWork(
                    f"{row.title}: {each.name} and {row.contenders[0].name} differ for input "
                    f"{number}."
                )
    return took


def measure(row: Row, rounds: int) -> dict[str, Timing]:
    """Check the row, then time its contenders in turns; one round to warm up is not counted."""
    took = check(row)
    timings: dict[str, Timing] = {}
    for each in row.contenders:
        once = took[each.name]
        if once < 10 * _BLOCK:  # it may be many times faster when it is warm
            once = _block(each, 0, min(3, row.inputs), row.inputs)
        timings[each.name] = Timing(max(1, min(_MOST_CALLS, int(_BLOCK / once))))
    order = list(row.contenders)
    for number in range(rounds + 1):
        for each in order:
            timing = timings[each.name]
            seconds = _block(each, number * timing.calls, timing.calls, row.inputs)
            if number:
                timing.rounds.append(seconds)
        order = order[1:] + order[:1]  # nobody is always the first
    return timings


def _block(contender: Contender, first: int, calls: int, inputs: int) -> float:
    """Return the median of some calls, in seconds."""
    seconds = []
    with _no_collection():
        for number in range(first, first + calls):
            argument = contender.prepare(number % inputs)
            start = perf_counter()
            result = contender.call(argument)
            seconds.append(perf_counter() - start)
            del argument, result  # freed here, not within the next measurement
    return median(seconds)


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True)
class Result:
    """One line with its numbers: the ratios are medians of the ratios of each round."""

    row: Row
    line: Line
    raw: Timing
    peer: Timing | None
    ours: Timing

    @property
    def to_raw(self) -> float:
        return _ratio(self.ours, self.raw)

    @property
    def to_peer(self) -> float | None:
        return None if self.peer is None else _ratio(self.ours, self.peer)

    @property
    def held(self) -> bool | None:
        """Whether the bound holds in the median round; None where there is no bound."""
        if self.line.bound is None:
            return None
        bound = self.line.bound
        peer = self.peer or self.raw  # whose share is 0 where there is no peer
        rounds = zip(self.ours.rounds, self.raw.rounds, peer.rounds, strict=True)
        over = [ours - bound.factor * raw - bound.peer * of_peer for ours, raw, of_peer in rounds]
        return median(over) <= bound.seconds

    def as_json(self) -> dict[str, Any]:
        """Return everything that was measured."""
        parts = {"raw": self.raw, "peer": self.peer, "ours": self.ours}
        names = {"raw": self.line.raw, "peer": self.line.peer, "ours": self.line.ours}
        return {
            "work": self.row.title,
            "line": self.line.title,
            "bound": None if self.line.bound is None else str(self.line.bound),
            "held": self.held,
            "ours/raw": self.to_raw,
            "ours/peer": self.to_peer,
            **{
                part: timing
                and {
                    "name": names[part],
                    "calls_per_round": timing.calls,
                    "min_seconds": min(timing.rounds),
                    "median_seconds": median(timing.rounds),
                    "round_seconds": timing.rounds,
                }
                for part, timing in parts.items()
            },
        }


def results(row: Row, timings: dict[str, Timing]) -> list[Result]:
    """Return the lines of a row with their numbers."""
    return [
        Result(row, line, timings[line.raw], line.peer and timings[line.peer], timings[line.ours])  # type: ignore[arg-type]
        for line in row.lines
    ]


def _ratio(upper: Timing, lower: Timing) -> float:
    return median(a / b for a, b in zip(upper.rounds, lower.rounds, strict=True))


def show(seconds: float) -> str:
    """Return a duration for people."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


_COLUMNS = ("work", "raw", "peer", "ours", "ours/raw", "ours/peer", "bound", "held")


def table(lines: Sequence[Result]) -> str:
    """Return the lines as a table; a time is the median round and, in brackets, the best."""
    cells = [
        (
            f"{each.row.title}: {each.line.title}",
            _cell(each.raw),
            "-" if each.peer is None else _cell(each.peer),
            _cell(each.ours),
            f"{each.to_raw:.3g}",
            "-" if each.to_peer is None else f"{each.to_peer:.2g}",
            str(each.line.bound or "-"),
            {None: "-", True: "yes", False: "NO"}[each.held],
        )
        for each in lines
    ]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (_COLUMNS, tuple("-" * width for width in widths), *cells)
    )


def _cell(timing: Timing) -> str:
    return f"{show(median(timing.rounds))} ({show(min(timing.rounds))})"
