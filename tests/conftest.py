"""Fixtures for every test. A server starts when the first test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.services import postgres_server, redis_cluster, redis_server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a Redis server with the query engine. The tests share it."""
    if given := os.environ.get("RAGOPT_TEST_REDIS_URL"):
        yield given
        return
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis_cluster_url() -> Iterator[str]:
    """URL of a cluster of three masters with the query engine. The tests share it."""
    with redis_cluster() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_dsn() -> Iterator[str]:
    """DSN of a PostgreSQL server with the vector extension. The tests share it."""
    if given := os.environ.get("RAGOPT_TEST_POSTGRES_URL"):
        yield given
        return
    with postgres_server() as dsn:
        yield dsn
