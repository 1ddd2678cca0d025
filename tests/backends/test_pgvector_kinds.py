"""The indexes on dense vectors in PostgreSQL: made, used, changed and made anew."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import numpy as np
import pytest
from tests.backends.conftest import Sql
from tests.backends.records import batch, query

from ragopt._portal import portal
from ragopt.errors import InvalidInput, PruningWarning, StorageError
from ragopt.filters import F, Ids
from ragopt.indexes import _pgbuild, _pgindexes
from ragopt.indexes._pgindexes import lists_for
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.types import Dense, Embedding, EmbeddingBatch, Hit, RecordBatch, SparseVector

Make = Callable[..., PgvectorIndex]

_ROWS, _DIMENSION = 240, 16
_VECTORS = np.random.default_rng(5).normal(size=(_ROWS, _DIMENSION)).astype(np.float32)
_QUERIES = np.random.default_rng(6).normal(size=(10, _DIMENSION)).astype(np.float32)
_LISTS: dict[str, Any] = {"index": "ivfflat", "lists": 4, "probes": 3}
_BITS: dict[str, Any] = {"quantization": "bit", "rescore": 15}
_HNSW = "hnsw (embedding vector_cosine_ops) WITH"
_IVFFLAT = "ivfflat (embedding vector_cosine_ops) WITH"
_HAMMING = "hnsw (((binary_quantize(embedding))::bit(16)) bit_hamming_ops) WITH"
_CANDIDATES = "ef_construction='64'"


def fill(index: PgvectorIndex, start: int = 0, end: int = _ROWS) -> None:
    rows = range(start, end)
    groups = [{"group": row % 24} for row in rows]
    index.add(batch([str(row) for row in rows], _VECTORS[start:end], groups))


def with_sparse(index: PgvectorIndex, vectors: list[SparseVector]) -> None:
    rows = [str(row) for row in range(len(vectors))]
    index.add(RecordBatch(rows, rows, EmbeddingBatch(_VECTORS[: len(vectors)], vectors)))


def definitions(sql: Sql, table: str) -> list[str]:
    """Return the indexes on vectors, without their names."""
    found = sql(f"SELECT indexdef FROM pg_indexes WHERE tablename = '{table}' ORDER BY indexname")
    texts = [row[0].partition(" USING ")[2] for row in found]
    return [text for text in texts if text.startswith(("hnsw", "ivfflat"))]


def probes(index: PgvectorIndex) -> int:
    """Return how many lists a search looks into, if there are as many."""

    async def ask() -> int:
        async with index._connection() as connection, connection.transaction():
            await connection.execute(f"SELECT WHERE {index._tuned(10, False)}")
            return int(await connection.fetchval("SHOW ivfflat.probes"))

    return portal().call(ask)


def recall(index: PgvectorIndex, rows: Dense = _VECTORS) -> float:
    """Return the share of the true ten nearest by cosine that are found."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    shares = []
    for each in _QUERIES:
        best = {str(row) for row in np.argsort(-(unit @ each))[:10]}
        shares.append(len(best & {hit.id for hit in index.search(Embedding(each), k=10)}) / 10)
    return float(np.mean(shares))


class TestTheOptions:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"index": "ivf"}, "'ivf' is not an index"),
            ({"sparse_index": "ivfflat"}, "'ivfflat' is not an index for sparse vectors"),
            ({"index": "ivfflat", "lists": 0}, "given lists=0"),
            ({"index": "ivfflat", "lists": 40_000}, "given lists=40000.*from 1 to 32,768"),
            ({"index": "ivfflat", "probes": -1}, "given probes=-1"),
            ({"lists": 10}, "lists=10 and probes=None came with index=None"),
            ({"index": "hnsw", "probes": 10}, "probes=10 came with index='hnsw'"),
            ({"quantization": "int8"}, "'int8' is no quantization"),
            ({"quantization": "bit", "rescore": 0}, "given rescore=0"),
            ({"quantization": "bit", "rescore": 101}, "rescore=101.*from 1 to 100"),
            ({"quantization": "bit", "index": "ivfflat"}, 'Use index="hnsw"'),
            ({"quantization": "bit", "index": "none"}, 'Use index="hnsw"'),
            ({"quantization": "bit", "metric": "l2"}, "not the length of a vector"),
        ],
    )
    def test_that_cannot_be_are_refused(
        self, postgres_dsn: str, options: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(InvalidInput, match=says):
            PgvectorIndex(postgres_dsn, "t", **options)

    @pytest.mark.parametrize("lists", [5, None])
    def test_lists_follow_the_records(self, make: Make, lists: int | None) -> None:
        assert [lists_for(n) for n in (0, 999, 10_000, 1_000_000, 4_000_000)] == [
            1, 1, 10, 1_000, 2_000,
        ]  # fmt: skip
        options = make(index="ivfflat", lists=lists)._schema.options
        assert options.first == (250 if lists else 10_000)
        assert not options.outgrown(10, 39_999)
        assert options.outgrown(10, 40_000) is (lists is None)


class TestIvfflat:
    def test_is_made_by_the_add_that_brings_enough(self, make: Make, sql: Sql, table: str) -> None:
        index = make(**_LISTS)
        fill(index, 0, 199)
        assert definitions(sql, table) == []
        before = index.stats()
        assert (before.kind, before.indexed, before.records) == ("none", 0, 199)
        assert recall(index, _VECTORS[:199]) == 1
        fill(index, 199)
        assert definitions(sql, table) == [f"{_IVFFLAT} (lists='4')"]
        after = index.stats()
        assert (after.kind, after.indexed, after.records) == ("ivfflat", 1, _ROWS)
        assert after.bytes > before.bytes
        assert recall(index) >= 0.9
        index.delete(Ids([str(row) for row in range(200)]))
        index.add(batch(["new"], -_VECTORS[:1]))
        assert index.search(Embedding(-_VECTORS[0]), k=1)[0].id == "new"
        assert index.count() == _ROWS - 200 + 1

    @pytest.mark.parametrize(
        ("options", "operators"),
        [
            ({"metric": "ip"}, "vector_ip_ops"),
            ({"metric": "l2"}, ""),  # the default of the type
            ({"metric": "cosine", "precision": "float16"}, "halfvec_cosine_ops"),
        ],
    )
    def test_has_the_operators_of_type_and_metric(
        self, make: Make, sql: Sql, table: str, options: dict[str, Any], operators: str
    ) -> None:
        index = make(index="ivfflat", lists=2, **options)
        fill(index, 0, 100)
        (made,) = definitions(sql, table)
        assert f"(embedding {operators}".strip() in made
        assert index.stats().kind == "ivfflat"  # and it is known as one of ours
        assert index.search(Embedding(_VECTORS[7] * 3), k=1)[0].id in map(str, range(100))

    def test_is_searched_by_a_root_of_its_lists(self, make: Make, sql: Sql, table: str) -> None:
        early, index = make(), make(index="ivfflat", lists=9)
        fill(early)
        with pytest.warns(UserWarning, match="have the index 'hnsw', though 'ivfflat' was asked"):
            index.reindex()
        sql(f"ANALYZE {table}")
        assert probes(index) == probes(make()) == 3
        assert 0.5 < recall(index) == recall(make()) < 1
        assert probes(make(probes=2)) == 2
        assert probes(early) == 32  # it does not know, and looks into all rather than one
        assert recall(early) == 1

    def test_is_made_anew_when_it_is_far_too_small(
        self, make: Make, sql: Sql, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_pgindexes, "_FIRST", 50)
        monkeypatch.setattr(_pgindexes, "lists_for", lambda records: max(1, records // 25))
        index = make(index="ivfflat")
        for start, end, lists in ((0, 50, 2), (50, 150, 2), (150, 240, 9)):
            fill(index, start, end)
            (made,) = definitions(sql, table)
            assert f"lists='{lists}'" in made

    def test_is_gone_after_clear(self, make: Make, sql: Sql, table: str) -> None:
        index = make(**_LISTS)
        fill(index)
        make().clear()  # whoever it is
        assert definitions(sql, table) == []
        fill(index, 0, 150)
        assert recall(index, _VECTORS[:150]) == 1
        fill(index)
        assert len(definitions(sql, table)) == 1

    def test_memory_is_given_to_learn_with(
        self, make: Make, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        poor = f"{postgres_dsn}&options=-c%20maintenance_work_mem%3D64kB"
        with PgvectorIndex(poor, f"{make()._schema.name}_poor", **_LISTS) as index:
            fill(index)
            assert index.stats().kind == "ivfflat"
            index.clear()
            monkeypatch.setattr(_pgbuild, "memory_for", lambda *_: 0)
            with pytest.raises(StorageError, match=r"were stored, but.*memory required is"):
                fill(index)
            assert index.count() == _ROWS
            assert recall(index) == 1
            monkeypatch.undo()
            index.reindex()
            assert index.stats().kind == "ivfflat"
            index.drop()

    def test_what_somebody_else_has_made_stays(self, make: Make, sql: Sql, table: str) -> None:
        index = make(**_LISTS)
        fill(index)
        before = names(sql, table)
        portal().call(index._builder.learn, _DIMENSION, concurrently=False)  # it was due before
        assert names(sql, table) == before

    def test_filters_find_all_that_match(self, make: Make, sql: Sql, table: str) -> None:
        index = make(index="ivfflat", lists=4, probes=1)
        fill(index)
        sql(f"ANALYZE {table}")
        for where in (F("group") == 7, Ids([str(row) for row in range(10)])):
            hits = index.search(Embedding(-_VECTORS[7]), k=10, where=where)
            assert len(hits) == 10
            scores = [hit.score for hit in hits]
            assert scores == sorted(scores, reverse=True)
        assert len(index.search(Embedding(_VECTORS[7]), k=200)) == 200
        assert len(index.search(Embedding(_VECTORS[7]), k=1_000)) == _ROWS

    def test_what_two_processes_bring_makes_one(self, make: Make, sql: Sql, table: str) -> None:
        make(_DIMENSION, **_LISTS).count()
        child = os.fork()
        try:
            for start in range(120 if child else 0, 240 if child else 120, 40):
                fill(make(**_LISTS), start, start + 40)
        except BaseException:
            if not child:
                os._exit(1)
            raise
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        index = make(**_LISTS)
        index.add(batch(["last"], _VECTORS[:1]))  # for the case that each saw less than enough
        assert len(definitions(sql, table)) == 1
        assert index.count() == _ROWS + 1


class TestBits:
    def test_name_candidates_for_the_exact_vectors(self, make: Make, sql: Sql, table: str) -> None:
        index = make(**_BITS)
        fill(index)
        assert definitions(sql, table) == [f"{_HAMMING} (m='16', {_CANDIDATES})"]
        assert index.stats().kind == "hnsw, bit"
        assert recall(index) >= 0.95
        assert recall(make(rescore=1)) < 0.8  # so it is the bits that choose
        hits = index.search(Embedding(_VECTORS[7] * 2), k=10, embeddings=True)
        assert hits[0].id == "7"
        assert hits[0].score == pytest.approx(1)
        assert hits[0].embedding is not None
        np.testing.assert_array_equal(hits[0].embedding.dense, _VECTORS[7])

    def test_filters_find_all_that_match(self, make: Make) -> None:
        index = make(quantization="bit", rescore=1, ef_search=10)
        fill(index)
        found = index.search(Embedding(-_VECTORS[7]), k=10, where=F("group") == 7)
        assert sorted(int(hit.id) for hit in found) == list(range(7, _ROWS, 24))
        assert len(index.search(Embedding(_VECTORS[7]), k=_ROWS)) == _ROWS

    def test_ranges_and_ties_are_exact(self, make: Make) -> None:
        index = make(quantization="bit", rescore=1)
        fill(index)
        scores = _VECTORS @ _QUERIES[0] / np.linalg.norm(_VECTORS, axis=1)
        scores /= np.linalg.norm(_QUERIES[0])
        near = index.search(Embedding(_QUERIES[0]), k=None, min_score=0.2)
        assert {hit.id for hit in near} == {str(row) for row in np.flatnonzero(scores >= 0.2)}
        index.clear()
        ids = [f"{(number * 7) % 20:02}" for number in range(20)]
        index.add(batch(ids, np.ones((20, _DIMENSION))))
        assert [hit.id for hit in index.search(query(*[1] * _DIMENSION), k=20)] == ids

    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_more_dimensions_than_other_indexes_take(
        self, make: Make, sql: Sql, table: str, precision: Any
    ) -> None:
        vectors = np.random.default_rng(1).normal(size=(5, 4_100)).astype(np.float32)
        index = make(quantization="bit", precision=precision)
        index.add(batch(list("abcde"), vectors))
        assert "bit(4100)" in definitions(sql, table)[0]
        assert index.search(Embedding(vectors[2]), k=1)[0].id == "c"
        with pytest.raises(InvalidInput, match="at most 16,000 dimensions"):
            make(table=f"{table}_x", quantization="bit").add(batch(["a"], np.ones((1, 16_001))))


@pytest.mark.parametrize("options", [_LISTS, _BITS], ids=["ivfflat", "bit"])
class TestEachKind:
    def test_zero_vectors_have_cosine_zero(self, make: Make, options: dict[str, Any]) -> None:
        index, one = make(**options), np.zeros((_ROWS, 4), np.float32)
        one[:, 0] = -1 - np.arange(_ROWS)
        one[7], one[8] = 0, (1, 0, 0, 0)
        index.add(batch([str(row) for row in range(_ROWS)], one))
        hits = index.search(query(1, 0, 0, 0), k=2)
        assert [(hit.id, hit.score) for hit in hits] == [("8", 1), ("7", 0)]
        assert {hit.score for hit in index.search(query(0, 0, 0, 0))} == {0}

    async def test_a_search_is_one_statement(self, make: Make, options: dict[str, Any]) -> None:
        async with make(max_connections=1, **options) as index:
            await asyncio.to_thread(fill, index)
            async with index._postgres.connection() as connection:
                only = connection._con
            seen: list[str] = []
            with only.query_logger(lambda record: seen.append(record.query)):
                found = await index.asearch(Embedding(_VECTORS[3]), k=10, where=F("group") < 20)
            assert len(found) == 10
            (search,) = (each for each in seen if " AS distance" in each)
            order = "relaxed_order" if "quantization" in options else "strict_order"
            assert f"'hnsw.iterative_scan', '{order}'" in search

    def test_records_change_in_it(self, make: Make, options: dict[str, Any]) -> None:
        index = make(**options)
        fill(index)
        index.add(batch(["3", "more"], np.stack([-_VECTORS[4], -_VECTORS[5]])))
        assert index.search(Embedding(-_VECTORS[4]), k=1)[0].id == "3"
        assert index.search(Embedding(-_VECTORS[5]), k=1)[0].id == "more"
        index.delete(F("group") < 23)
        assert len(index.search(Embedding(_VECTORS[0]), k=20)) == 10 + 2
        index.clear()
        assert index.search(Embedding(_VECTORS[0])) == []


def ids(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


class TestATableThatHasAnotherIndex:
    @pytest.mark.parametrize(
        ("made", "asked", "says"),
        [
            ({"index": "none"}, {"index": "hnsw"}, "have no index, though 'hnsw' was asked for"),
            pytest.param(
                {}, _BITS, "have the index 'hnsw', though 'hnsw, bit' was", marks=pytest.mark.slow
            ),
            (_BITS, {"index": "hnsw"}, "have the index 'hnsw, bit', though 'hnsw' was"),
            (_LISTS, {"index": "hnsw"}, "have the index 'ivfflat', though 'hnsw' was"),
        ],
    )
    def test_is_searched_by_what_it_has(
        self, make: Make, made: dict[str, Any], asked: dict[str, Any], says: str
    ) -> None:
        fill(make(**made))
        index = make(**asked)
        with pytest.warns(UserWarning, match=says):
            index.count()
        assert recall(index) >= 0.7
        with warnings.catch_warnings(action="error"):
            for plain in (make(), make(index="none")):
                assert plain.count() == _ROWS
        assert recall(plain) == 1
        assert plain.stats().kind == "none"  # it compares with all

    def test_of_a_process_that_was_faster(self, make: Make, postgres_dsn: str, table: str) -> None:
        class Late(PgvectorIndex):
            async def _open(self, connection: Any) -> None:
                """See no table yet, as one does that looks just before another makes it."""

        fill(make(quantization="bit", precision="float16", rescore=15))
        with Late(postgres_dsn, table) as index:
            fill(index, 0, 10)
            assert index._schema.dense.name == "halfvec"
            assert index._schema.kind == "hnsw, bit"

    def test_takes_what_an_index_on_sparse_vectors_takes(self, make: Make) -> None:
        """Or searches would end after ef_search, and long vectors be refused by the server."""
        vectors = [SparseVector.from_dict({1: 1.0 + row}) for row in range(_ROWS)]
        with_sparse(make(index="none", sparse_index="hnsw"), vectors)
        index = make()
        with pytest.warns(PruningWarning, match="more than 1,000 entries"):
            with_sparse(index, [SparseVector(np.arange(1_001), np.ones(1_001, np.float32))])
        one = Embedding(sparse=SparseVector.from_dict({1: 1.0}))
        assert len(index.search(one, k=200, by="sparse")) == 200


class TestReindex:
    @pytest.mark.parametrize(
        ("first", "then", "expected"),
        [
            ({"index": "none"}, {"index": "hnsw", "m": 8}, f"{_HNSW} (m='8', {_CANDIDATES})"),
            ({"index": "ivfflat", "lists": 3}, {}, f"{_IVFFLAT} (lists='3')"),
            pytest.param(
                {"index": "hnsw"},
                {"index": "ivfflat"},
                f"{_IVFFLAT} (lists='1')",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                {"m": 5},
                {"index": "none"},
                f"{_HNSW} (m='5', {_CANDIDATES})",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                {},
                {"quantization": "bit"},
                f"{_HAMMING} (m='16', {_CANDIDATES})",
                marks=pytest.mark.slow,
            ),
        ],
    )
    def test_makes_what_was_asked_for(
        self,
        make: Make,
        sql: Sql,
        table: str,
        first: dict[str, Any],
        then: dict[str, Any],
        expected: str,
    ) -> None:
        fill(make(**first))
        before = names(sql, table)
        with warnings.catch_warnings(action="ignore"):
            index = make(**then)
            index.reindex()
        assert definitions(sql, table) == [expected]
        assert not before & names(sql, table)
        assert recall(index) >= 0.7
        with warnings.catch_warnings(action="error"):
            make(**then).count()  # now they agree

    async def test_of_sparse_vectors_too(self, make: Make, sql: Sql, table: str) -> None:
        index = make(sparse_index="hnsw")
        vectors = [SparseVector.from_dict({row % 5: 1.0 + row}) for row in range(20)]
        with_sparse(index, vectors)
        before = await asyncio.to_thread(names, sql, table)
        await index.areindex()
        after = await asyncio.to_thread(names, sql, table)
        assert len(before) == len(after) == 2
        assert not before & after
        hits = await index.asearch(Embedding(sparse=SparseVector.from_dict({2: 1.0})), by="sparse")
        assert ids(hits) == ["17", "12", "7", "2"]
        await index.aclose()

    @pytest.mark.slow
    def test_while_others_write_and_search(self, make: Make, sql: Sql, table: str) -> None:
        fill(make(index="none"), 0, 40)
        errors: list[str] = []

        def write(number: int) -> None:
            index = make()
            for row in range(40 + number, _ROWS, 4):
                fill(index, row, row + 1)
                if index.search(Embedding(_VECTORS[row]), k=1)[0].id != str(row):
                    errors.append(str(row))

        def rebuild() -> None:
            with warnings.catch_warnings(action="ignore"):
                for options in ({"index": "hnsw"}, _LISTS, {"index": "hnsw", "m": 8}):
                    make(**options).reindex()

        with ThreadPoolExecutor(5) as threads:
            work = [threads.submit(rebuild), *(threads.submit(write, n) for n in range(4))]
            for each in work:
                each.result()
        assert errors == []
        assert len(definitions(sql, table)) == 1
        assert make().count() == _ROWS
        assert recall(make()) >= 0.9

    async def test_twice_at_once_is_refused(
        self, make: Make, postgres_dsn: str, table: str
    ) -> None:
        index = make(**_LISTS)
        other = await asyncpg.connect(postgres_dsn)
        try:
            await other.execute(f"SELECT pg_advisory_lock(hashtextextended('{index._table}', 1))")
            await asyncio.to_thread(fill, index)  # which would make it, and leaves it to the other
            assert (await index.astats()).kind == "none"
            with pytest.raises(StorageError, match="are being made by somebody else"):
                await index.areindex()
        finally:
            await other.close()
        await asyncio.to_thread(index.add, batch(["x"], _VECTORS[:1]))
        assert (await index.astats()).kind == "ivfflat"
        await index.aclose()

    def test_removes_what_was_interrupted(self, make: Make, sql: Sql, table: str) -> None:
        index = make(**_LISTS)
        fill(index)
        (name,) = names(sql, table)
        sql(f"UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = '{name}'::regclass")
        assert index.stats().kind == "none"
        index.reindex()
        assert index.stats().kind == "ivfflat"
        assert not {name} & names(sql, table)

    def test_a_failure_leaves_the_old_one(
        self, make: Make, sql: Sql, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = make(index="hnsw")
        fill(index, 0, 50)
        before = names(sql, table)
        short = "USING hnsw ((embedding::vector(3)) vector_cosine_ops)"  # fails at the first record
        monkeypatch.setattr(_pgindexes.IndexOptions, "dense", lambda *_: short)
        with pytest.raises(StorageError, match="expected 3 dimensions, not 16"):
            index.reindex()
        assert names(sql, table) == before
        monkeypatch.undo()
        index.reindex()  # and the next one is not kept from it
        assert not names(sql, table) & before

    def test_of_nothing(self, make: Make) -> None:
        make(index="ivfflat").reindex()  # there is no table
        index = make(index="none")
        fill(index, 0, 10)
        with pytest.raises(InvalidInput, match="has no index on its vectors, and none was asked"):
            index.reindex()
        with pytest.raises(InvalidInput, match="has no index on its vectors, and none was asked"):
            make().reindex()

    def test_of_vectors_that_are_too_long(self, make: Make) -> None:
        long = np.random.default_rng(1).normal(size=(5, 2_001)).astype(np.float32)
        make(index="none").add(batch(list("abcde"), long))
        with warnings.catch_warnings(action="ignore"):
            with pytest.raises(InvalidInput, match="of which an index 'ivfflat' takes 2,000"):
                make(index="ivfflat").reindex()
            index = make(quantization="bit")
            index.reindex()
        assert index.stats().kind == "hnsw, bit"
        assert index.search(Embedding(long[3]), k=1)[0].id == "d"


def names(sql: Sql, table: str) -> set[str]:
    """Return the names of the indexes on vectors."""
    found = sql(f"SELECT indexname, indexdef FROM pg_indexes WHERE tablename = '{table}'")
    return {name for name, text in map(tuple, found) if " USING hnsw" in text or "ivfflat" in text}


def test_the_stores_of_both_frameworks_take_the_options(postgres_dsn: str) -> None:
    from ragopt import HashingEmbedder
    from ragopt.langchain import PGVectorStore
    from ragopt.llama_index import PGVectorStore as PostgresNodes

    lists = PGVectorStore(
        HashingEmbedder(), connection=postgres_dsn, index="ivfflat", lists=7, probes=3
    )
    options = lists.index._schema.options
    assert (options.kind, options.lists, options.probes) == ("ivfflat", 7, 3)
    bits = PostgresNodes(connection_string=postgres_dsn, quantization="bit", rescore=5).client
    assert isinstance(bits, PgvectorIndex)
    assert (bits._schema.options.kind, bits._schema.options.rescore) == ("hnsw, bit", 5)
