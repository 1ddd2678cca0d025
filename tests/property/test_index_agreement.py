"""Every exact index does what the memory index does: the same ids in the same order."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.strategies import FILTERS, KEYS, METADATA

from ragopt import (
    Embedding,
    EmbeddingBatch,
    FaissIndex,
    Fusion,
    Hit,
    MemoryIndex,
    Metric,
    PgvectorIndex,
    RecordBatch,
    RedisIndex,
    SparseVector,
)
from ragopt.filters import F, Filter, compile_filter
from ragopt.fusion import By
from ragopt.protocols import VectorIndex

DIMENSION = 4
SEEDS = st.integers(0, 2**32 - 1)
WAYS: list[By] = ["dense", "sparse", Fusion(), Fusion({"dense": 1.0, "sparse": 3.0}, "relative")]
WORDS = ["pear", "Pears", "a-b", "b", "東京都", "京都", "東京", "서울은", "서울에서", "x" * 99]
BACKENDS = ["faiss", "pgvector", "redis"]


def make(backend: str, metric: Metric, request: pytest.FixtureRequest) -> VectorIndex:
    if backend == "faiss":
        return FaissIndex(DIMENSION, metric=metric)
    if backend == "redis":
        url, name = request.getfixturevalue("redis_url"), f"t_{secrets.token_hex(8)}"
        return RedisIndex(url, name, DIMENSION, metric=metric, kind="flat", text_search=True)
    dsn, table = request.getfixturevalue("postgres_dsn"), f"t_{secrets.token_hex(8)}"
    return PgvectorIndex(dsn, table, DIMENSION, metric=metric, index="none", text_search=True)


@pytest.fixture(scope="module", params=BACKENDS)
def indexes(request: pytest.FixtureRequest) -> Iterator[dict[Metric, VectorIndex]]:
    """Return an index of each metric on one backend."""
    made = {metric: make(request.param, metric, request) for metric in Metric}
    yield made
    for index in made.values():
        index.close()


def check(
    indexes: dict[Metric, VectorIndex],
    metric: Metric,
    metadatas: list[dict[str, Any]],
    filters: list[Filter],
    seed: int,
    k: int,
) -> None:
    """Do the same with an index and with the memory index, and compare everything."""
    index, oracle, size = indexes[metric], MemoryIndex(metric=metric), len(metadatas)
    index.clear()
    random = np.random.default_rng(seed)
    # Few different vectors, so that there are ties, which go by the order of adding.
    some = random.normal(size=(size // 2 + 1, DIMENSION)).astype(np.float32)
    dense = some[random.integers(len(some), size=size)]
    sparse = [_sparse(random) for _ in range(size)]
    ids = [str(row) for row in range(size)]
    documents = [f"d{row % 3}" if row % 3 else None for row in range(size)]
    texts = [_text(random) for _ in range(size)]
    records = RecordBatch(ids, texts, EmbeddingBatch(dense, sparse), metadatas, documents)
    again = RecordBatch(
        ids[:1], texts[:1], EmbeddingBatch(dense[:1], sparse[:1]), metadatas[:1], documents[:1]
    )
    for each in (oracle, index):
        for part in (records, again):  # a record that is replaced comes last
            each.add(part)
    query = Embedding(random.normal(size=DIMENSION).astype(np.float32), _sparse(random))
    words = _text(random)
    # Each filter by itself: in a larger one, another part may hide its fault.
    for where in (None, *filters):
        wanted = [record.id for record in oracle.find(where)]
        assert [record.id for record in index.find(where)] == wanted
        assert [record.id for record in index.find(where, limit=2)] == wanted[:2]
        assert index.count(where) == len(wanted)
        for key in KEYS:
            assert _shown(index.counts(key, where)) == _shown(oracle.counts(key, where))
        for by in WAYS:
            expected = oracle.search(query, k=k, where=where, by=by)
            _same(index.search(query, k=k, where=where, by=by), expected)
            if expected and not isinstance(by, Fusion):
                least = expected[-1].score - 1e-3
                around = oracle.search(query, k=None, min_score=least, where=where, by=by)
                _same(index.search(query, k=None, min_score=least, where=where, by=by), around)
        for most in (k, size):
            found = index.search(query, k=most, where=where, by="text", text=words)
            _alike(found, oracle.search(query, k=most, where=where, by="text", text=words))
    if filters:
        assert index.delete(filters[0]) == oracle.delete(filters[0])
        left = [(record.id, _shown(record.metadata)) for record in oracle.find()]
        assert [(record.id, _shown(record.metadata)) for record in index.find()] == left


def _same(found: list[Hit], expected: list[Hit]) -> None:
    assert [hit.id for hit in found] == [hit.id for hit in expected]
    for hit, other in zip(found, expected, strict=True):
        assert hit.score == pytest.approx(other.score, rel=1e-4, abs=1e-5)
        assert hit.relevance == pytest.approx(other.relevance, rel=1e-4, abs=1e-5)


def _alike(found: list[Hit], expected: list[Hit]) -> None:
    """Compare scores that are sums in an order of the backend's own.

    Two that ought to be equal may then differ in their last digit, and come the other way round.
    """
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], rel=1e-5)
    last = expected[-1].score * (1 + 1e-5) if expected else 0.0
    better, wanted = ({h.id for h in hits if h.score > last} for hits in (found, expected))
    assert better == wanted


def _shown(value: Any) -> str:
    """Return a text that is the same for equal values, NaN and the types included."""
    if isinstance(value, dict):
        return repr(sorted((repr(key), _shown(each)) for key, each in value.items()))
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[_shown(each) for each in value]}"
    return repr(value)


def _text(random: np.random.Generator) -> str:
    return " ".join(random.choice(WORDS, random.integers(0, 6)))


def _sparse(random: np.random.Generator) -> SparseVector:
    tokens = np.sort(random.choice(12, random.integers(0, 5), replace=False))
    return SparseVector(tokens, random.uniform(0.1, 2, len(tokens)).astype(np.float32))


CASES = given(
    metric=st.sampled_from(list(Metric)),
    metadatas=st.lists(METADATA, min_size=1, max_size=8),
    filters=st.lists(FILTERS, max_size=5),
    seed=SEEDS,
    k=st.integers(1, 9),
)
SHARED: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=40, **SHARED)
@CASES
def test_random_cases(indexes: dict[Metric, VectorIndex], **case: Any) -> None:
    check(indexes, **case)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@settings(max_examples=2_000, **SHARED)
@CASES
def test_two_thousand_random_cases(indexes: dict[Metric, VectorIndex], **case: Any) -> None:
    check(indexes, **case)


@given(st.lists(METADATA, min_size=1, max_size=8))
def test_counts_are_those_of_filters(metadatas: list[dict[str, Any]]) -> None:
    index, ids = MemoryIndex(), [str(row) for row in range(len(metadatas))]
    zeros = EmbeddingBatch.of_dense(np.zeros((len(ids), DIMENSION), np.float32))
    index.add(RecordBatch(ids, ids, zeros, metadatas))
    for key in KEYS:
        counts = index.counts(key)
        for value, number in counts:
            assert index.count((F(key) == value) | F(key).contains(value)) == number
        assert len({_shown(value) for value, _ in counts}) == len(counts)
        assert [number for _, number in counts] == sorted((n for _, n in counts), reverse=True)


def test_control_another_order_is_noticed() -> None:
    hits = [Hit("a", 1.0, 1.0, ""), Hit("b", 1.0, 1.0, "")]
    with pytest.raises(AssertionError):
        _same(hits[::-1], hits)
    with pytest.raises(AssertionError):
        _same(hits, [hits[0], Hit("b", 0.9, 1.0, "")])
    _alike(hits[::-1], hits)
    best = [Hit("c", 2.0, 1.0, ""), *hits]
    for others in (best[:2], [*best[:2], Hit("b", 0.9, 1.0, "")], [Hit("d", 2.0, 1.0, ""), *hits]):
        with pytest.raises(AssertionError):
            _alike(others, best)


@given(METADATA, FILTERS)
def test_control_the_cases_tell_filters_apart(metadata: dict[str, Any], where: Filter) -> None:
    """A filter and its opposite never find the same, so a backend that ignored it would show."""
    here, there = compile_filter(where), compile_filter(~where)
    assert here("0", None, metadata) is not there("0", None, metadata)
