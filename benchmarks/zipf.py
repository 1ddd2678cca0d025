"""A stream of questions of which few are asked often and many once, through ragopt's caches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import mean, median
from time import perf_counter, sleep
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from tests.services import redis_server

from benchmarks.report import Table
from ragopt import Lineage, MemoryStore, RedisStore, SqliteStore, TieredCache
from ragopt.cache.answers import AnswerCache
from ragopt.protocols import KVStore
from ragopt.sources import used

INTENTS = 100_000
REQUESTS = 10_000
EXPONENTS = (0.6, 0.7, 0.8, 0.9, 1.0)
HEADLINE = 0.8
DOCUMENTS = 1_000

Mode: TypeAlias = Literal["no cache", "ttl", "version", "lineage", "lineage, 1 s"]
"""What is done about edits; see ``ask_with``."""

_ANSWER_BYTES = 2048
_ANSWER_SECONDS = 1e-3  # what the stand-in sleeps; a language model takes a thousand times longer
_EDIT_EVERY = 50  # requests
_EDITED_EXPONENTS = (0.6, 0.8, 1.0)
_SOURCES = 3  # documents that an answer is built on
_HOT, _ROUNDS = 200, 20


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
    wrong: list[float] = field(default_factory=list)
    """For each wrong answer, the seconds since when it was wrong."""
    errors: int = 0
    """Requests that raised."""

    @property
    def hit_rate(self) -> float:
        """Hits / requests; one that raised is no hit."""
        requests = len(self.hits) + len(self.misses) + self.errors
        return len(self.hits) / requests if requests else 0.0


Ask: TypeAlias = Callable[[str, Callable[[], Any]], Any]
"""Returns the answer to a question, from a cache or from what computes it."""


def play(
    questions: Iterable[str],
    ask: Ask,
    compute: Callable[[str], Any],
    wrong_for: Callable[[str, Any], float | None],
) -> Played:
    """Ask every question.

    Args:
        questions: In the order in which they are asked. A generator may change, between two of
            them, what ``compute`` returns.
        ask: Returns an answer, such as ``AnswerCache.get_or_compute``; where it does not compute,
            that was a hit.
        compute: Answers without a cache.
        wrong_for: Returns for how many seconds an answer has been wrong, or None if it is right
            at this moment; not timed.
    """
    played = Played()
    for question in questions:
        computing: list[float] = []

        def timed(question: str = question, computing: list[float] = computing) -> Any:
            began = perf_counter()
            answer = compute(question)
            computing.append(perf_counter() - began)
            return answer

        start = perf_counter()
        try:
            answer = ask(question, timed)
        except Exception:  # noqa: BLE001 - counted, whatever it was
            played.errors += 1
            continue
        (played.misses if computing else played.hits).append(perf_counter() - start)
        played.computing += computing
        wrong = wrong_for(question, answer)
        if wrong is not None:
            played.wrong.append(wrong)
    return played


def answer_to(question: str) -> str:
    """Return the stand-in's answer, at once: 2 KB that no other question has."""
    return (question + " ").ljust(_ANSWER_BYTES, ".")


def slow_answer(question: str) -> str:
    """Answer like ``answer_to``, in the time of the stand-in."""
    sleep(_ANSWER_SECONDS)
    return answer_to(question)


def tables(folder: Path) -> Iterator[Table]:
    """Play a stream for every exponent, without edits and with them, each time from empty."""
    yield _unchanged(folder)
    files = (SqliteStore(folder / f"edits-{number}.db") for number in range(1000))
    with redis_server() as url:
        stores: dict[str, Callable[[], KVStore]] = {
            "a file": lambda: next(files),
            "Redis": lambda: _emptied(RedisStore(url)),
        }
        for where, make in stores.items():
            yield _edited(where, make)
        yield _hits(stores)


def _emptied(store: KVStore) -> KVStore:
    store.clear()
    return store


# -- documents that stay as they are -------------------------------------------------------


def _unchanged(folder: Path) -> Table:
    def wrong_for(question: str, answer: object) -> float | None:
        return None if answer == answer_to(question) else 0.0

    rows = []
    for exponent in EXPONENTS:
        asked = stream(exponent, REQUESTS)
        store = SqliteStore(folder / f"zipf-{exponent}.db")
        with TieredCache(MemoryStore(), store) as cache:
            questions = (f"Which intent has number {intent}?" for intent in asked)
            played = play(questions, AnswerCache(cache).get_or_compute, slow_answer, wrong_for)
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
                len(played.wrong),
                played.errors + skipped,
            )
        )
    return Table(
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


# -- documents that are edited while questions are asked -----------------------------------


class Corpus:
    """Documents that are edited: each has a number that says how often.

    The intent of a question is built on the same few documents every time, and its answer tells
    which state of each it is made of.
    """

    def __init__(self) -> None:
        self.states = [0] * DOCUMENTS
        self._edited_at = [[0.0] for _ in range(DOCUMENTS)]

    @staticmethod
    def sources(question: str) -> list[int]:
        """Return the documents that answer a question."""
        return Random(question).sample(range(DOCUMENTS), _SOURCES)

    def answer(self, question: str) -> str:
        """Answer from the documents as they are now, in the time of the stand-in."""
        sources = self.sources(question)
        used(map(str, sources))
        states = ",".join(str(self.states[each]) for each in sources)
        sleep(_ANSWER_SECONDS)
        return f"{states} {answer_to(question)}"

    def edit(self, document: int) -> None:
        """Change a document."""
        self.states[document] += 1
        self._edited_at[document].append(perf_counter())

    def old_for(self, question: str, answer: str) -> float | None:
        """Return since how many seconds an answer is older than a document; None if it is not."""
        states, _, text = answer.partition(" ")
        assert text == answer_to(question), "another question's answer"
        pairs = zip(self.sources(question), map(int, states.split(",")), strict=True)
        edits = [self._edited_at[d][state + 1] for d, state in pairs if state < self.states[d]]
        return perf_counter() - min(edits) if edits else None


def ask_with(mode: Mode, cache: TieredCache, corpus: Corpus) -> Ask:
    """Return how questions are asked.

    ``no cache`` computes everything. ``ttl`` does nothing about edits: an answer lives for an
    hour. ``version`` has the number of all edits in the key. ``lineage`` asks the log at every
    hit, and ``lineage, 1 s`` at most once a second.
    """
    if mode == "no cache":
        return lambda _, compute: compute()
    if mode == "version":
        answers = AnswerCache(cache)
        return lambda question, compute: answers.get_or_compute(
            (sum(corpus.states), question), compute
        )
    if mode == "ttl":
        return AnswerCache(cache).get_or_compute
    followed = Lineage(cache, max_staleness=0.0 if mode == "lineage" else 1.0)
    return AnswerCache(cache, lineage=followed).get_or_compute


def _edited(where: str, make: Callable[[], KVStore]) -> Table:
    rows = []
    for exponent in _EDITED_EXPONENTS:
        for mode in get_args(Mode):
            with ExitStack() as stack:
                store = make()
                cache = stack.enter_context(TieredCache(MemoryStore(), store))
                corpus = Corpus()
                # The editor is another process, so to speak: it has a cache and a log of its own,
                # and what it knows reaches the one who asks through the store alone.
                editor = Lineage(TieredCache(store))
                played = play(
                    _between_edits(stream(exponent, REQUESTS), corpus, editor),
                    ask_with(mode, cache, corpus),
                    corpus.answer,
                    corpus.old_for,
                )
                skipped = sum(cache.stats.total(layer.name, "error") for layer in cache.layers)
            miss, computing = mean(played.misses), mean(played.computing)
            rows.append(
                (
                    f"{exponent}{' *' if exponent == HEADLINE else ''}",
                    mode,
                    100 * played.hit_rate,
                    len(played.wrong),
                    max(played.wrong, default=None),
                    played.errors + skipped,
                    mean(played.hits) * 1e6 if played.hits else None,
                    (miss - computing) * 1e6,
                )
            )
    return Table(
        f"{REQUESTS:,} questions while {DOCUMENTS:,} documents are edited, memory over {where}",
        (
            "Zipf s",
            "edits",
            "hits %",
            "old answers",
            "old for s",
            "errors",
            "hit µs",
            "miss less answerer µs",
        ),
        rows,
        (
            f"Every {_EDIT_EVERY} questions one document is edited. An answer is built on "
            f"{_SOURCES} documents; it is old if one of them was edited since.",
            "Old for: the longest time since the edit that an old answer missed. Times are means.",
        ),
    )


def _between_edits(asked: Sequence[int], corpus: Corpus, editor: Lineage) -> Iterator[str]:
    draw = Random(1)
    for number, intent in enumerate(asked):
        if number and number % _EDIT_EVERY == 0:
            document = draw.randrange(DOCUMENTS)
            corpus.edit(document)
            editor.changed(str(document))
        yield f"Which intent has number {intent}?"


# -- what a hit costs ----------------------------------------------------------------------


def _hits(stores: dict[str, Callable[[], KVStore]]) -> Table:
    rows = []
    for where, make in stores.items():
        with ExitStack() as stack:
            times: dict[Mode, list[float]] = {}
            asks: dict[Mode, Ask] = {}
            corpus = Corpus()
            for mode in ("ttl", "lineage", "lineage, 1 s"):
                cache = stack.enter_context(TieredCache(MemoryStore(), make()))
                asks[mode], times[mode] = ask_with(mode, cache, corpus), []
            for _ in range(_ROUNDS):
                for mode, ask in asks.items():  # in turns; the first round fills the caches
                    # The caches share a server, so they must not share questions.
                    questions = [f"Which {mode} has number {number}?" for number in range(_HOT)]
                    played = play(questions, ask, corpus.answer, corpus.old_for)
                    times[mode] += played.hits
        rows.append((where, *(median(each) * 1e6 for each in times.values())))
    return Table(
        "A hit in memory, median µs, with nothing edited",
        ("last layer", *times),
        rows,
        (f"The same {_HOT} answers of {_ANSWER_BYTES} bytes again and again, all hits.",),
    )
