"""The measurements that one arm goes through, in its own process."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter

import psutil

from ragopt._portal import portal
from ragopt._runtime import ASYNC
from ragopt.demo.arms import Arm, Stopwatch
from ragopt.demo.passages import Passage
from ragopt.demo.settings import ENOUGH, MOST_ASKERS, WITHIN
from ragopt.protocols import Embedder

CHUNK = 64
"""Passages that are indexed in one call; the same in every arm, so that the vectors agree too."""

AGAIN = 256
"""Passages that are indexed a second time."""

_WARM = 32  # passages that the model is warmed up with: a batch of its own
_LEVEL_SECONDS = 2.0  # after which nobody asks anew at one number of askers

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Ask:
    """Where the time of one answer went, in seconds.

    Args:
        total: From the question to the answer.
        embed: Embedding the question, cache included.
        search: Searching the vectors.
        answer: The answerer.
        embeds: Calls of the embedding.
        searches: Calls of the search.
    """

    total: float
    embed: float
    search: float
    answer: float
    embeds: int
    searches: int

    @property
    def own(self) -> float:
        """Time without the answerer's."""
        return self.total - self.answer


@dataclass(frozen=True, slots=True)
class Level:
    """How many askers were served how well.

    Args:
        askers: Asking all the time, each the next question when the last is answered.
        in_time: Share of the answers that came in time.
        p95: 95th percentile of the time to an answer, in seconds.
    """

    askers: int
    in_time: float
    p95: float


@dataclass(slots=True)
class Measured:
    """Everything that was measured of one arm. Times are seconds.

    Args:
        build: Indexing all passages.
        again: Indexing the first ``AGAIN`` of them a second time, into a new index.
        asks: One for each question of the stream.
        first: Without the answerer: questions that were never asked before.
        second: Without the answerer: the same, asked again at once.
        cold: Askers at once: at each level the stream anew, with empty caches.
        warm: Askers at once: the stream goes on, with the caches as they are.
        memory: Bytes that the process grew by: index and caches.
        answers: Question to answer.
        hits: Hits and look-ups by kind of cache, in the stream.
        reused: Passages whose embedding was in a cache that was kept from an earlier run.
    """

    build: float = 0.0
    again: float = 0.0
    asks: list[Ask] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    cold: list[Level] = field(default_factory=list)
    warm: list[Level] = field(default_factory=list)
    memory: int = 0
    answers: dict[str, str] = field(default_factory=dict)
    hits: dict[str, tuple[int, int]] = field(default_factory=dict)
    reused: int = 0


def index(arm: Arm, passages: Sequence[Passage], advance: Advance) -> float:
    """Index passages; return the seconds it took."""
    start = perf_counter()
    for first in range(0, len(passages), CHUNK):
        chunk = passages[first : first + CHUNK]
        arm.add(chunk)
        advance(len(chunk))
    return perf_counter() - start


def ask(arm: Arm, watch: Stopwatch, question: str) -> tuple[str, Ask]:
    """Ask one question."""
    watch.seconds.clear()
    watch.calls.clear()
    start = perf_counter()
    answer = arm.ask(question)
    total = perf_counter() - start
    seconds, calls = watch.seconds, watch.calls
    return answer, Ask(
        total,
        seconds["embed"],
        seconds["search"],
        seconds["answer"],
        calls["embed"],
        calls["search"],
    )


def stream(
    arm: Arm, watch: Stopwatch, asked: Sequence[str], into: Measured, advance: Advance
) -> None:
    """Ask the stream, one question after the other."""
    for question in asked:
        answer, took = ask(arm, watch, question)
        into.asks.append(took)
        # A second answer that differs from the first would be as wrong as one between arms.
        into.answers[question] = (
            answer if into.answers.get(question, answer) == answer else f"{answer} (changed)"
        )
        advance(1)


def repeat(
    arm: Arm, watch: Stopwatch, asked: Sequence[str], into: Measured, advance: Advance
) -> None:
    """Ask each question twice in a row."""
    for question in asked:
        answer, first = ask(arm, watch, question)
        same, second = ask(arm, watch, question)
        into.first.append(first.own)
        into.second.append(second.own)
        into.answers[question] = answer if same == answer else f"{answer} / {same}"
        advance(1)


def served(
    arm: Callable[[], Arm], asked: Iterator[str], asks: int, done: Callable[[int], None]
) -> list[Level]:
    """Double the askers until too few answers come in time; return every level tried.

    Args:
        arm: Returns the arm of the next level.
        asked: The questions.
        asks: Questions of a level; there are never more askers.
        done: Told the askers of each level that has ended.
    """
    levels: list[Level] = []
    askers = 1
    while askers <= min(MOST_ASKERS, asks):
        questions = list(islice(asked, asks))
        times = portal().call(_ask_at_once, arm(), questions, askers)
        in_time = sum(took <= WITHIN for took in times) / len(times)
        levels.append(Level(askers, in_time, percentile(times, 0.95)))
        done(askers)
        if in_time < ENOUGH:
            break
        askers *= 2
    return levels


async def _ask_at_once(arm: Arm, questions: Sequence[str], askers: int) -> list[float]:
    times: list[float] = []
    left = iter(questions[askers:])
    until = perf_counter() + _LEVEL_SECONDS

    async def keep_asking(question: str | None) -> None:
        while question is not None:
            start = perf_counter()
            await arm.aask(question)
            end = perf_counter()
            times.append(end - start)
            question = next(left, None) if end < until else None

    # Each begins with a question of its own, or the quick ones would leave none for the others.
    await ASYNC.gather(keep_asking(question) for question in questions[:askers])
    return times


def at_once(levels: Sequence[Level]) -> int:
    """Return the most askers that were served in time; 0 if not even one was."""
    return max((level.askers for level in levels if level.in_time >= ENOUGH), default=0)


def warm_up(arm: Arm, model: Embedder, passages: Sequence[Passage]) -> None:
    """Let packages load what they load at their first use, and PyTorch take its own memory."""
    longest = sorted(passages, key=lambda passage: len(passage.text))[-_WARM:]
    model.embed([passage.text for passage in longest])
    arm.add(longest[-2:])
    arm.ask("Is everything loaded?")
    portal().call(arm.aask, "Is everything loaded for those who wait, too?")


def resident() -> int:
    """Return the bytes of memory that this process occupies."""
    gc.collect()
    with suppress(AttributeError, OSError):  # only glibc has it: give back what was freed
        ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0 for nothing."""
    return statistics.fmean(values) if values else 0.0
