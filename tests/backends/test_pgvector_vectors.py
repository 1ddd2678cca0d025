"""The kinds of vectors of a PostgreSQL index: half precision and sparse ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ragopt.errors import InvalidInput, PruningWarning
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.types import Embedding, EmbeddingBatch, RecordBatch, SparseVector

Make = Callable[..., PgvectorIndex]


def columns(sql: Any, table: str) -> dict[str, str]:
    rows = sql(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        f"WHERE attrelid = '{table}'::regclass AND attnum > 0"
    )
    return dict(map(tuple, rows))


def one(vector: Any, sparse: SparseVector | None = None, id_: str = "a") -> RecordBatch:
    rows = np.asarray(vector, dtype=np.float32)[None, :]
    return RecordBatch([id_], ["text"], EmbeddingBatch(rows, None if sparse is None else [sparse]))


def weights(entries: int) -> SparseVector:
    """Return weights 1, 2, 3, ... on every third index."""
    return SparseVector(np.arange(entries) * 3, np.arange(1, entries + 1, dtype=np.float32))


# -- half precision --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dimension", "options", "kind"),
    [
        (2_000, {}, "vector(2000)"),
        (2_001, {}, "halfvec(2001)"),
        (4_000, {}, "halfvec(4000)"),
        (2_001, {"index": "none"}, "vector(2001)"),
        (8, {"precision": "float16"}, "halfvec(8)"),
    ],
)
def test_the_type_follows_the_dimension(
    make: Make, sql: Any, table: str, dimension: int, options: dict[str, Any], kind: str
) -> None:
    index, vector = make(**options), np.linspace(-1, 1, dimension)
    index.add(one(vector))
    assert columns(sql, table)["embedding"] == kind
    (hit,) = index.search(Embedding(vector.astype(np.float32)))
    assert hit.score == pytest.approx(1, abs=1e-3)
    (again,) = make().search(Embedding(vector.astype(np.float32)), embeddings=True)
    assert again.embedding is not None
    assert again.embedding.dense is not None
    np.testing.assert_allclose(again.embedding.dense, vector, atol=1e-3)


@pytest.mark.parametrize(
    ("dimension", "options", "says"),
    [
        (4_001, {}, "at most 4,000 dimensions, not 4,001"),
        (2_001, {"precision": "float32"}, "at most 2,000 dimensions in float32, not 2,001"),
        (16_001, {"index": "none"}, "at most 16,000 dimensions, not 16,001"),
    ],
)
def test_too_long_vectors_are_refused_before_anything_is_made(
    make: Make, dimension: int, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        make(**options).add(one(np.ones(dimension)))
    index = make(**options)
    index.add(one(np.ones(16)))
    assert index.count() == 1


def test_a_number_that_half_precision_lacks_is_refused(make: Make) -> None:
    index = make(precision="float16", metric="l2")
    index.add(one([1.0, 2.0]))
    with pytest.raises(InvalidInput, match="beyond 65,504"):
        index.add(one([1.0, 70_000.0], id_="b"))
    assert index.count() == 1


def test_precision_of_a_table_that_is_there(make: Make) -> None:
    make(precision="float16").add(one([1.0, 2.0]))
    with pytest.raises(InvalidInput, match="are of the type halfvec"):
        make(precision="float32").count()
    assert make(precision="float16").count() == 1
    with pytest.raises(InvalidInput, match="'int8' is no precision"):
        make(precision="int8")


# -- sparse vectors --------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "most"), [("none", 16_000), ("hnsw", 1_000)])
def test_what_is_too_much_is_pruned_with_a_warning(make: Make, index: str, most: int) -> None:
    store, vector = make(sparse_index=index), weights(most + 10)
    with warnings.catch_warnings(action="error"):
        store.add(one([1.0], weights(most), "fits"))
    with pytest.warns(PruningWarning, match=f"1 of 1 sparse vectors have more than {most:,}"):
        store.add(one([1.0], vector))
    (record,) = store.get(["a"], embeddings=True)
    assert record is not None
    kept, _ = vector.prune(most)
    assert record.embedding.sparse == kept
    hits = store.search(Embedding(sparse=SparseVector.from_dict({0: 5.0})), by="sparse")
    assert [(hit.id, hit.score) for hit in hits] == [("fits", 5.0)]  # the lowest went


def test_an_index_is_used(make: Make, sql: Any, table: str) -> None:
    make(sparse_index="hnsw").add(one([1.0], weights(3)))
    rows = sql(f"SELECT indexdef FROM pg_indexes WHERE tablename = '{table}'")
    for wanted in ("hnsw (sparse sparsevec_ip_ops)", "hnsw (embedding vector_cosine_ops)"):
        assert any(wanted in row[0] for row in rows)


def test_entries_of_zero_are_not_stored(make: Make) -> None:
    index = make()
    index.add(one([1.0], SparseVector(np.array([1, 5, 9]), np.array([0.0, 2.0, 0.0]))))
    (record,) = index.get(["a"], embeddings=True)
    assert record is not None
    assert record.embedding.sparse == SparseVector.from_dict({5: 2.0})


def test_an_index_beyond_the_column_is_refused(make: Make) -> None:
    index = make()
    with pytest.raises(InvalidInput, match="has the index 1,000,000,000"):
        index.add(one([1.0], SparseVector.from_dict({1_000_000_000: 1.0})))
    assert index.count() == 0


def test_an_older_table_gets_the_column(make: Make, sql: Any, table: str) -> None:
    make().add(one([1.0, 0.0], id_="old"))
    sql(f"ALTER TABLE {table} DROP COLUMN sparse")
    assert "sparse" not in columns(sql, table)
    index = make()
    index.add(one([0.0, 1.0], weights(2), "new"))
    assert columns(sql, table)["sparse"] == "sparsevec(1000000000)"
    found = index.search(Embedding(sparse=weights(1)), by="sparse")
    assert [hit.id for hit in found] == ["new"]
    assert index.count() == 2


def test_a_table_that_was_removed_by_hand(make: Make, sql: Any, table: str) -> None:
    make().add(one([1.0]))
    sql(f"DROP TABLE {table}")
    index = make()
    assert index.count() == 0
    index.add(one([1.0, 2.0]))  # of another dimension: nothing is left of the old table
    assert index.count() == 1
