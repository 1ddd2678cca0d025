"""Fixtures of the tests of the backends."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ragopt.indexes.pgvector import PgvectorIndex

Make = Callable[..., PgvectorIndex]


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
