"""A stream of questions of which few are asked often and many once, through ragopt's caches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from time import perf_counter, sleep
from typing import Any

import numpy as np

from benchmarks.report import Table
from ragopt import MemoryStore, SqliteStore, TieredCache
from ragopt.cache.answers import AnswerCache
from ragopt.cache.values import MISSING

INTENTS = 100_000
REQUESTS = 10_000
EXPONENTS = (0.6, 0.7, 0.8, 0.9, 1.0)
HEADLINE = 0.8

_ANSWER_BYTES = 2048
_ANSWER_SECONDS = 1e-3  # what the stand-in sleeps; a language model takes a thousand times longer


def stream(exponent: float, requests: int, *, intents: int = INTENTS, seed: int = 1) -> list[int]:
    """Return the numbers of the intents asked for, in order.

    The intent of rank r is asked with a probability in proportion to r to the power of
    ``-exponent``, each request independent of those before it (Breslau et al., "Web caching and
    Zipf-like distributions", INFOCOM 1999).
    """
    weights = np.arange(1, intents + 1, dtype=float) ** -exponent
    drawn = np.random.default_rng(seed).choice(intents, size=requests, p=weights / weights.sum())
    return [int(intent) for intent in drawn]


def ideal_hit_rate(asked: Sequence[object]) -> float:
    """Return the hit rate of a cache that never forgets and is empty at the start."""
    return 1 - len(set(asked)) / len(asked)


@dataclass
class Played:
    """What happened to the requests of one stream."""

    hits: list[float] = field(default_factory=list)
    """Seconds that each hit took."""
    misses: list[float] = field(default_factory=list)
    """Seconds that each miss took, the computation included."""
    computing: list[float] = field(default_factory=list)
    """Seconds of these which the computation took."""
    wrong: int = 0
    """Answers that were not what ``truth`` says: stale ones, or another question's."""
    errors: int = 0
    """Requests that raised."""

    @property
    def hit_rate(self) -> float:
        """Hits / requests; one that raised is no hit."""
        requests = len(self.hits) + len(self.misses) + self.errors
        return len(self.hits) / requests if requests else 0.0


def play(
    questions: Iterable[str],
    get: Callable[[str], Any],
    compute: Callable[[str], Any],
    put: Callable[[str, Any], None],
    truth: Callable[[str], Any],
) -> Played:
    """Answer every question, from the cache where it can.

    Args:
        questions: In the order in which they are asked. A generator may change, between two of
            them, what ``compute`` and ``truth`` return.
        get: Returns the kept answer, or ``MISSING``.
        compute: Answers without a cache.
        put: Keeps an answer.
        truth: What the right answer is at this moment; not timed.
    """
    played = Played()
    for question in questions:
        start = perf_counter()
        try:
            answer = get(question)
            if answer is MISSING:
                began = perf_counter()
                answer = compute(question)
                computing = perf_counter() - began
                put(question, answer)
                played.misses.append(perf_counter() - start)
                played.computing.append(computing)
            else:
                played.hits.append(perf_counter() - start)
        except Exception:  # noqa: BLE001 - counted, whatever it was
            played.errors += 1
        else:
            played.wrong += answer != truth(question)
    return played


def answer_to(question: str) -> str:
    """Return the stand-in's answer, at once: 2 KB that no other question has."""
    return (question + " ").ljust(_ANSWER_BYTES, ".")


def slow_answer(question: str) -> str:
    """Answer like ``answer_to``, in the time of the stand-in."""
    sleep(_ANSWER_SECONDS)
    return answer_to(question)


def tables(folder: Path) -> Iterator[Table]:
    """Play a stream for every exponent through memory over a file, each time from empty."""
    rows = []
    for exponent in EXPONENTS:
        asked = stream(exponent, REQUESTS)
        store = SqliteStore(folder / f"zipf-{exponent}.db")
        with TieredCache(MemoryStore(), store) as cache:
            answers = AnswerCache(cache)
            questions = (f"Which intent has number {intent}?" for intent in asked)
            played = play(questions, answers.get, slow_answer, answers.set, answer_to)
            skipped = sum(cache.stats.total(layer.name, "error") for layer in cache.layers)
        ideal = ideal_hit_rate(asked)
        hit, miss, computing = map(mean, (played.hits, played.misses, played.computing))
        rows.append(
            (
                f"{exponent}{' *' if exponent == HEADLINE else ''}",
                100 * played.hit_rate,
                100 * ideal,
                100 * played.hit_rate / ideal,
                hit * 1e6,
                miss * 1e6,
                (miss - computing) * 1e6,
                computing / hit,
                played.wrong,
                played.errors + skipped,
            )
        )
    yield Table(
        f"{REQUESTS:,} questions over {INTENTS:,} intents, AnswerCache over memory and a file",
        (
            "Zipf s",
            "hits %",
            "ideal %",
            "of ideal %",
            "hit µs",
            "miss µs",
            "miss less answerer µs",
            "answerer / hit",
            "wrong",
            "errors",
        ),
        rows,
        (
            f"The answerer is a stand-in that sleeps {_ANSWER_SECONDS * 1e3:g} ms; answers have "
            f"{_ANSWER_BYTES} bytes. Times are means. * is the headline.",
            "The ideal cache never forgets, and is empty at the start like ours.",
        ),
    )
