"""Fixtures of the tests of the backends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest
import redis

from ragopt.indexes.pgvector import PgvectorIndex

Make = Callable[..., PgvectorIndex]
Sql = Callable[..., list[Any]]


@pytest.fixture
def table() -> str:
    return f"t_{secrets.token_hex(8)}"


@pytest.fixture
def make(postgres_dsn: str, table: str) -> Iterator[Make]:
    """Make indexes on one fresh table, and close their sync connections in the end."""
    made: list[PgvectorIndex] = []

    def make(dimension: int | None = None, **options: Any) -> PgvectorIndex:
        index = PgvectorIndex(postgres_dsn, options.pop("table", table), dimension, **options)
        made.append(index)
        return index

    yield make
    for index in made:
        index.close()


@pytest.fixture
def sql(postgres_dsn: str) -> Sql:
    """Execute a statement, once for each tuple of arguments, and return the rows of the last."""

    async def execute(statement: str, rows: tuple[Any, ...]) -> list[Any]:
        connection = await asyncpg.connect(postgres_dsn)
        try:
            found: list[Any] = []
            for row in rows or ((),):
                found = await connection.fetch(statement, *row)
            return found
        finally:
            await connection.close()

    return lambda statement, *rows: asyncio.run(execute(statement, rows))


@pytest.fixture
def name() -> str:
    return f"t_{secrets.token_hex(8)}"


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        yield client
