"""The rules of filters, and every index against the memory index."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragopt import Embedding, EmbeddingBatch, F, FaissIndex, MemoryIndex, RecordBatch
from ragopt.errors import InvalidInput
from ragopt.filters import (
    And,
    Compare,
    Documents,
    Filter,
    Ids,
    Not,
    Or,
    Where,
    compile_filter,
    from_dict,
    to_filter,
)

KEYS = st.sampled_from(["a", "b", "Header 1"])
SCALARS = st.sampled_from([0, 1, -1, 1.0, 0.5, True, False, "", "a", "ab", "A", "1", "日本", None])
METADATA = st.dictionaries(KEYS, st.one_of(SCALARS, st.lists(SCALARS, max_size=3)))
COMPARES = st.one_of(
    st.builds(Compare, KEYS, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), SCALARS),
    st.builds(Compare, KEYS, st.sampled_from(["in", "not_in", "any", "all"]), st.lists(SCALARS)),
    st.builds(Compare, KEYS, st.just("contains"), SCALARS),
    st.builds(Compare, KEYS, st.sampled_from(["is_empty", "exists"])),
    st.builds(
        Compare,
        KEYS,
        st.sampled_from(["text_match", "text_match_insensitive", "like"]),
        st.sampled_from(["a", "A", "%b", "_", "日"]),
    ),
    st.builds(Ids, st.lists(st.sampled_from(["r0", "r1", "r7", "x"]))),
    st.builds(Documents, st.lists(st.sampled_from(["d0", "d1", "x"]))),
)
FILTERS = st.recursive(
    COMPARES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: And(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Or(tuple(parts))),
        inner.map(Not),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(FILTERS, st.lists(METADATA, min_size=1, max_size=12), st.integers(0, 5), st.data())
def test_every_exact_index_finds_the_same(
    where: Filter, metadatas: list[dict[str, Any]], seed: int, data: st.DataObject
) -> None:
    size = len(metadatas)
    ids = [f"r{i}" for i in range(size)]
    documents = [f"d{i % 3}" if i % 4 else None for i in range(size)]
    matrix = np.random.default_rng(seed).normal(size=(size, 4)).astype(np.float32)
    records = RecordBatch(ids, ids, EmbeddingBatch.of_dense(matrix), metadatas, documents)
    k = data.draw(st.integers(1, size))
    match = compile_filter(where)
    expected = [
        id_ for id_, d, m in zip(ids, documents, metadatas, strict=True) if match(id_, d, m)
    ]
    results = []
    for index in (MemoryIndex(), FaissIndex(), FaissIndex(kind="hnsw")):
        index.add(records)
        assert [record.id for record in index.find(where)] == expected
        hits = index.search(Embedding(matrix[0]), k=k, where=where)
        assert len(hits) == min(k, len(expected))
        results.append([hit.id for hit in hits])
        assert index.delete(where) == len(expected)
        assert index.count() == size - len(expected)
    assert results[0] == results[1] == results[2]


@given(FILTERS, METADATA)
def test_not_is_the_complement(where: Filter, metadata: dict[str, Any]) -> None:
    here, there = compile_filter(where), compile_filter(~where)
    assert here("r0", "d0", metadata) != there("r0", "d0", metadata)


def holds(where: Filter, **metadata: Any) -> bool:
    return compile_filter(where)("id", None, metadata)


def test_a_missing_key_meets_only_what_says_so() -> None:
    key = F("missing")
    assert [holds(each) for each in (key != 1, key.not_in([1]), key.is_empty())] == [True] * 3
    never = [key == None, key == 1, key < 1, key.is_in([None]), key.contains(None)]  # noqa: E711
    assert not any(holds(each) for each in [*never, key.exists(), key.any([None]), key.like("%")])


def test_types_do_not_meet() -> None:
    assert not holds(F("a") == 1, a="1")
    assert not holds(F("a") == 1, a=True)
    assert not holds(F("a") < 2, a=True)
    assert not holds(F("a") < "2", a=1)
    assert holds(F("a") == 1, a=1.0)


@pytest.mark.parametrize("key", ["", "1a", "a;b", "a'b", 'a"b', "a" * 129, "$a", "a\n", None, 7])
def test_keys_are_checked(key: Any) -> None:
    with pytest.raises(InvalidInput, match="metadata key"):
        F(key) == 1  # noqa: B015


@pytest.mark.parametrize(
    "build",
    [
        lambda: F("a").is_in("text"),
        lambda: F("a").is_in(7),  # type: ignore[arg-type]
        lambda: F("a") == object(),
        lambda: F("a").contains([1]),  # type: ignore[arg-type]
        lambda: F("a").text_match(""),
        lambda: F("a").like(7),  # type: ignore[arg-type]
        lambda: Ids("text"),
        lambda: And(()),
        lambda: (F("a") == 1) & 7,  # type: ignore[operator]
        lambda: Compare("a", "near", 1),  # type: ignore[arg-type]
        lambda: bool(F("a") == 1),
        lambda: (F("a") == 1) and (F("b") == 2),
        lambda: from_dict({}),
        lambda: from_dict({"$or": []}),
        lambda: from_dict({"a": {"$near": 1}}),
        lambda: to_filter(7),
    ],
)
def test_what_is_no_filter_is_refused_with_a_remedy(build: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        build()
    assert caught.value.fix


def test_where_is_any_function() -> None:
    assert holds(Where(lambda metadata: metadata["a"] > 1), a=2)
    where = to_filter(lambda metadata: metadata["a"] > 1)
    assert where is not None
    assert not holds(where, a=1)
