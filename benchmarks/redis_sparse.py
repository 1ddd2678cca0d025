"""Sparse vectors and texts in Redis: what they take in memory, and how long a search takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray
from tests.services import redis_server

from benchmarks.report import Table
from ragopt import Embedding, EmbeddingBatch, Fusion, RecordBatch, RedisIndex, SparseVector
from ragopt.filters import F
from ragopt.fusion import By

_SIZES = (10_000, 100_000)
_TOKENS, _VOCABULARY = 100, 30_000
_SMALL = 4  # dimensions of the dense vectors, so that what is measured is the rest
_QUERIES, _ROUNDS = 20, 3
_BATCH = 5_000


def tables(_: Path) -> Iterator[Table]:
    """Yield one table: what adding takes, and then each way of searching."""
    rows: list[tuple[Any, ...]] = []
    for size in _SIZES:
        with redis_server() as url, redis.Redis.from_url(url) as client:
            rows += _measured(url, client, size)
    yield Table(
        f"{_TOKENS} tokens a record, questions of 8 to 12 tokens, k=10",
        ("what", "records", "bytes an entry", "postings a question", "ms", "longest, ms"),
        rows,
        (
            "Tokens follow Zipf's law, as words do; a third of those of a question are among the "
            "30 most frequent ones. The dense vectors have 4 dimensions, and kind is flat.",
            "An entry is a token of a record: what its index takes beyond that of dense vectors.",
            "To add, ms a record in batches of 5,000; to search, the median.",
        ),
    )


def _measured(url: str, client: Any, size: int) -> Iterator[tuple[Any, ...]]:
    """Fill an index with dense vectors alone, and others with more, and search them."""
    random = np.random.default_rng(5)
    chances = 1 / (np.arange(_VOCABULARY) + 5)
    chances /= chances.sum()
    plain, sparse = (RedisIndex(url, name, kind="flat") for name in ("plain", "sparse"))
    text = RedisIndex(url, "text", kind="flat", text_search=True)
    indexes = {"dense": plain, "sparse": sparse, "text": text}
    holding = np.zeros(_VOCABULARY)  # how many records hold a token
    memory, seconds = dict.fromkeys(indexes, 0), dict.fromkeys(indexes, 0.0)
    for begin in range(0, size, _BATCH):
        vectors = _passages(random, chances, min(_BATCH, size - begin))
        holding += np.bincount(np.concatenate([v.indices for v in vectors]), minlength=_VOCABULARY)
        rows = range(begin, begin + len(vectors))
        dense = random.normal(size=(len(rows), _SMALL)).astype(np.float32)
        texts = [" ".join(map(_word, vector.indices.tolist())) for vector in vectors]
        for name, index in indexes.items():
            held = EmbeddingBatch(dense, vectors if name == "sparse" else None)
            ids = list(map(str, rows))
            records = RecordBatch(ids, texts, held, [{"tenant": row % 50} for row in rows])
            before, start = client.info("memory")["used_memory"], perf_counter()
            index.add(records)
            seconds[name] += perf_counter() - start
            memory[name] += client.info("memory")["used_memory"] - before
    entries = holding.sum()
    for name in indexes:
        more = None if name == "dense" else (memory[name] - memory["dense"]) / entries
        yield f"add: {name}", size, more, None, 1e3 * seconds[name] / size, None

    queries = [_question(random, chances) for _ in range(_QUERIES)]
    tokens = [query.sparse.indices for query in queries if query.sparse is not None]
    touched = float(np.mean([holding[each].sum() for each in tokens]))
    ways: dict[str, tuple[RedisIndex, By, Any]] = {
        "dense": (sparse, "dense", None),
        "sparse": (sparse, "sparse", None),
        "sparse, half of them pass a filter": (sparse, "sparse", F("tenant") >= 25),
        "sparse, one in 50 passes a filter": (sparse, "sparse", F("tenant") == 7),
        "fused": (sparse, Fusion(), None),
        "text": (text, "text", None),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_QUERIES * _ROUNDS):
        query = queries[number % _QUERIES]
        words = " ".join(map(_word, tokens[number % _QUERIES].tolist()))
        for name, (index, by, where) in ways.items():
            start = perf_counter()
            assert len(index.search(query, text=words, k=10, by=by, where=where)) == 10
            took[name].append(perf_counter() - start)
    for name, each in took.items():
        count = None if name == "dense" else touched
        yield f"search: {name}", size, None, count, 1e3 * median(each), 1e3 * max(each)
    for index in indexes.values():
        index.close()


def _word(token: int) -> str:
    return f"w{token}"


def _passages(random: np.random.Generator, chances: Any, number: int) -> list[SparseVector]:
    """Return vectors with as many tokens as BGE-M3 gives a passage."""
    drawn = np.searchsorted(np.cumsum(chances), random.random((number, 2 * _TOKENS)))
    different = [np.unique(np.minimum(row, _VOCABULARY - 1)) for row in drawn]
    return [_of(random, random.permutation(tokens)[:_TOKENS]) for tokens in different]


def _question(random: np.random.Generator, chances: Any) -> Embedding:
    number = int(random.integers(8, 13))
    frequent = random.choice(30, number // 3, replace=False)
    others = 30 + random.choice(
        _VOCABULARY - 30, number - len(frequent), replace=False, p=chances[30:] / chances[30:].sum()
    )
    vector = _of(random, np.concatenate([frequent, others]))
    return Embedding(random.normal(size=_SMALL).astype(np.float32), vector)


def _of(random: np.random.Generator, tokens: NDArray[np.int64]) -> SparseVector:
    """Return a vector of these tokens; the frequent ones weigh little, as BGE-M3's do."""
    places = np.sort(tokens)
    most = np.where(places < 100, 0.08, 0.35)
    return SparseVector(places, (random.uniform(0.2, 1, len(places)) * most).astype(np.float32))
