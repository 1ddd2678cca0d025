"""Sparse vectors in a real PostgreSQL with pgvector, and the limits that it really has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import numpy as np
import pytest
import pytest_asyncio
from pgvector.asyncpg import register_vector

from ragopt import SparseVector
from ragopt.embedders.sparse import (
    PGVECTOR_INDEXED,
    PGVECTOR_STORED,
    from_pgvector,
    to_pgvector,
)
from ragopt.errors import PruningWarning

VOCABULARY = 250_002


def numbers(count: int) -> SparseVector:
    return SparseVector(np.arange(count) * 3, np.arange(1, count + 1, dtype=np.float32))


@pytest_asyncio.fixture
async def connection(postgres_dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    await register_vector(connection)
    await connection.execute(f"CREATE TEMP TABLE item (words sparsevec({VOCABULARY}))")
    yield connection
    await connection.close()


async def insert(connection: Any, value: Any) -> None:
    await connection.execute("INSERT INTO item VALUES ($1)", value)


@pytest.mark.parametrize("entries", [0, 1, 5, PGVECTOR_STORED])
async def test_what_is_stored_comes_back(connection: Any, entries: int) -> None:
    vector = numbers(entries)
    await insert(connection, to_pgvector(vector, VOCABULARY))
    (row,) = await connection.fetch("SELECT words FROM item")
    assert from_pgvector(row["words"]) == vector


async def test_an_index_takes_what_was_pruned_and_nothing_more(connection: Any) -> None:
    await connection.execute("CREATE INDEX ON item USING hnsw (words sparsevec_ip_ops)")
    vector = numbers(PGVECTOR_INDEXED + 1)
    with pytest.raises(asyncpg.PostgresError, match="more than 1000 non-zero"):
        await insert(connection, to_pgvector(vector, VOCABULARY))
    with pytest.warns(PruningWarning, match="pruned to the 1,000"):
        value = to_pgvector(vector, VOCABULARY, most=PGVECTOR_INDEXED)
    await insert(connection, value)
    query = SparseVector.from_dict({3 * PGVECTOR_INDEXED: 2.0})
    found = await connection.fetch(
        "SELECT -(words <#> $1) AS score FROM item", to_pgvector(query, VOCABULARY)
    )
    assert [row["score"] for row in found] == [query.dot(vector)]


async def test_the_limit_of_what_is_stored_is_that_of_the_server(connection: Any) -> None:
    value = to_pgvector(numbers(PGVECTOR_STORED), VOCABULARY)
    value.indices().append(VOCABULARY - 1)
    value.values().append(1.0)
    with pytest.raises(asyncpg.PostgresError, match="more than 16000 non-zero"):
        await insert(connection, value)
