"""What a search costs in statements, and connections through a pooler in transaction mode."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.backends.records import batch, query
from tests.pooler import transaction_pooler
from tests.services import postgres_server

from ragopt.errors import StorageError
from ragopt.filters import F, Ids
from ragopt.fusion import Fusion
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.types import Embedding, EmbeddingBatch, SparseVector

Make = Callable[..., PgvectorIndex]

_ROWS = 1_000
_VECTORS = np.random.default_rng(11).random((_ROWS, 8), dtype=np.float32)  # no cosine below 0


def fill(index: PgvectorIndex) -> None:
    ids = [str(row) for row in range(_ROWS)]
    index.add(batch(ids, _VECTORS, [{"group": row % 10} for row in range(_ROWS)]))


@pytest.fixture(scope="module")
def pooled_dsn(postgres_dsn: str) -> Iterator[str]:
    with ExitStack() as stack:
        given = "RAGOPT_TEST_POSTGRES_URL" in os.environ  # it may ask for a password
        dsn = stack.enter_context(postgres_server()) if given else postgres_dsn
        yield stack.enter_context(transaction_pooler(dsn))


@pytest.fixture
def pooled(pooled_dsn: str, table: str) -> Iterator[Make]:
    made: list[PgvectorIndex] = []

    def make(**options: Any) -> PgvectorIndex:
        made.append(PgvectorIndex(pooled_dsn, table, **options))
        return made[-1]

    yield make
    for index in made:
        index.close()


async def statements(index: PgvectorIndex, work: Callable[[], Any]) -> list[str]:
    """Return what an index with one connection asks the server."""
    seen: list[str] = []
    async with index._postgres.connection() as connection:
        only = connection._con
    await only.execute("SET enable_seqscan = off")  # which is as fast in tables of this size
    with only.query_logger(lambda record: seen.append(record.query)):
        await work()
    return [each for each in seen if "WITH RECURSIVE" not in each and "'jit'" not in each]


async def waits(index: PgvectorIndex, work: Callable[[], Any]) -> set[float | None]:
    """Return how long an index with one connection would wait for the statement that merges."""
    seen: list[Any] = []
    async with index._postgres.connection() as connection:
        only = connection._con
    with only.query_logger(seen.append):
        await work()
    return {each.timeout for each in seen if "FROM ragopt_batch" in each.query}


async def left(index: PgvectorIndex) -> tuple[bool, str]:
    """Return what a connection leaves at the server: prepared statements, and a setting."""
    async with index._postgres.connection() as connection:
        row = await connection.fetchrow(
            "SELECT EXISTS (SELECT FROM pg_prepared_statements), current_setting('hnsw.ef_search')"
        )
    return tuple(row)


class TestASearch:
    async def test_is_one_statement(self, make: Make) -> None:
        async with make(max_connections=1) as index:
            await asyncio.to_thread(fill, index)
            options: dict[str, Any]
            for options, goes_on in (
                ({"k": 10}, False), ({"k": 200}, True), ({"k": 60, "where": F("group") == 3}, True),
            ):  # fmt: skip
                search = partial(index.asearch, Embedding(_VECTORS[3]), **options)
                seen = await statements(index, search)
                assert len(seen) == 1, options
                assert ("strict_order" in seen[0]) is goes_on  # which costs time

    def test_of_several_ways_sends_them_out_together(self, make: Make) -> None:
        """In a sync call too, so that it takes as long as the slower one."""
        met = asyncio.Barrier(2)

        class Meeting(PgvectorIndex):
            async def _nearest(self, *asked: Any) -> Any:
                async with asyncio.timeout(5):
                    await met.wait()
                return await super()._nearest(*asked)

            async def _heaviest(self, *asked: Any) -> Any:
                async with asyncio.timeout(5):
                    await met.wait()
                return await super()._heaviest(*asked)

        plain = make(4)
        plain.add(batch(["a"]))
        with Meeting(plain._postgres._dsn, plain._schema.name) as index:
            both = Embedding(np.ones(4, np.float32), SparseVector.from_dict({1: 1.0}))
            assert [hit.id for hit in index.search(both, by=Fusion())] == ["a"]

    async def test_of_a_batch_sees_one_snapshot(self, make: Make) -> None:
        async with make(4, max_connections=1, index="none") as index:
            await index.aadd(batch(["a"]))
            queries = EmbeddingBatch.of_dense(np.eye(4)[:3])
            seen = await statements(index, lambda: index.asearch_batch(queries))
            assert "REPEATABLE READ" in seen[0]

    async def test_a_table_that_another_one_replaced(self, make: Make) -> None:
        async with make(max_connections=1) as index, make() as again:
            await index.aadd(batch(["a"]))
            for _ in range(3):
                assert [hit.id for hit in await index.asearch(query(1, 0, 0, 0))] == ["a"]
            await again.adrop()
            other = make(precision="float16")
            other.add(batch(["b"]))
            assert [hit.id for hit in await again.asearch(query(1, 0, 0, 0))] == ["b"]
            # Its statements were prepared for float32.
            assert [hit.id for hit in await index.asearch(query(1, 0, 0, 0))] == ["b"]


async def test_many_records_are_given_time(make: Make) -> None:
    options: dict[str, Any]
    for options, expected in (
        ({}, 150.0), ({"command_timeout": 20}, 50.0), ({"command_timeout": None}, None),
    ):  # fmt: skip
        async with make(4, index="none", max_connections=1, **options) as index:
            ids = [str(row) for row in range(2_500)]
            assert await waits(index, partial(index.aadd, batch(ids))) == {expected}


class TestThroughAPooler:
    def test_all_works(self, pooled: Make) -> None:
        index = pooled()
        fill(index)
        for k in (10, 200):
            hits = index.search(Embedding(_VECTORS[3]), k=k)
            assert len(hits) == k
            assert hits[0].id == "3"
        some = index.search_batch(EmbeddingBatch(_VECTORS[:5]), k=1)
        assert [hits[0].id for hits in some] == ["0", "1", "2", "3", "4"]
        sparse = Embedding(sparse=SparseVector.from_dict({1: 1.0}))
        assert index.search(sparse, by="sparse") == []
        assert index.count(F("group") == 3) == _ROWS // 10
        where = F("text").text_match("X", case=False)
        assert index.search(Embedding(_VECTORS[3]), where=where) == []
        assert index.delete(Ids(["3", "4"])) == 2
        assert index.get(["3", "5"])[0] is None
        index.clear()
        assert index.count() == 0
        index.drop()

    async def test_many_at_once(self, pooled: Make) -> None:
        async with pooled(max_connections=4) as index:
            await asyncio.to_thread(fill, index)
            found = await asyncio.gather(
                *(index.asearch(Embedding(vector), k=5) for vector in _VECTORS[:40])
            )
            assert [hits[0].id for hits in found] == [str(row) for row in range(40)]

    async def test_nothing_is_left_behind(self, pooled: Make, make: Make) -> None:
        direct, others = (True, "123"), (False, "40")
        for new, options, expected in (
            (make, {}, direct), (pooled, {}, others), (make, {"statement_cache_size": 0}, others),
        ):  # fmt: skip
            async with new(dimension=4, max_connections=1, ef_search=123, **options) as index:
                await index.aadd(batch(["a"]))
                for _ in range(3):
                    await index.asearch(query(1, 0, 0, 0))
                assert await left(index) == expected

    async def test_indexes_are_made_in_a_transaction(self, pooled: Make) -> None:
        async with pooled(index="ivfflat", lists=4, max_connections=1) as index:
            await asyncio.to_thread(fill, index)
            before = await index.astats()
            await index.areindex()
            after = await index.astats()
            assert before.kind == after.kind == "ivfflat"
            async with index._postgres.connection() as connection:
                locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                assert await connection.fetchval(locks) == 0
                valid = (
                    f"SELECT indisvalid FROM pg_index WHERE indrelid = '{index._table}'::regclass"
                )
                assert [row[0] for row in await connection.fetch(valid)] == [True] * 3

    def test_prepared_statements_would_not_work(self, pooled: Make) -> None:
        """Without this one, the others might pass behind a pooler that is none."""
        with pytest.raises(StorageError, match="prepared statement"):
            pooled(statement_cache_size=100).count()
