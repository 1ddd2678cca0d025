"""Where the indexes of the contracts are: each class makes fresh ones with options."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from ragopt import FaissIndex, PgvectorIndex, RedisAlias, RedisIndex
from ragopt.testing.records import batch, vectors


class OnDisk:
    """An index that was saved and loaded before the test began is like any other."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def fresh(self, **options: Any) -> FaissIndex:
        """Return an empty index."""
        FaissIndex(**options).save(self.folder / "index")
        return FaissIndex.load(self.folder / "index")


class OnPostgres:
    """A table of its own."""

    @pytest.fixture(autouse=True)
    def _dsn(self, postgres_dsn: str) -> None:
        self.dsn = postgres_dsn

    def fresh(self, **options: Any) -> PgvectorIndex:
        """Return an empty index."""
        return PgvectorIndex(self.dsn, f"t_{secrets.token_hex(8)}", **options)


class OnRedis:
    """A name of its own."""

    @pytest.fixture(autouse=True)
    def _url(self, redis_url: str) -> None:
        self.url = redis_url

    def fresh(self, **options: Any) -> RedisIndex:
        """Return an empty index."""
        return RedisIndex(self.url, f"t_{secrets.token_hex(8)}", **options)


class ByRedisAlias(OnRedis):
    """An alias of an index of the same name, which has been emptied."""

    def fresh(self, **options: Any) -> RedisIndex:
        """Return the alias, without any option."""
        name = f"t_{secrets.token_hex(8)}"
        with RedisIndex(self.url, name, **options) as index:
            index.add(batch(["gone"], vectors(1)))
            index.clear()
            index.alias(name)
        return RedisAlias(self.url, name)


class OnRedisCluster:
    """A name of its own, on three masters."""

    @pytest.fixture(autouse=True)
    def _url(self, redis_cluster_url: str) -> None:
        self.url = redis_cluster_url

    def fresh(self, **options: Any) -> RedisIndex:
        """Return an empty index."""
        return RedisIndex(self.url, f"t_{secrets.token_hex(8)}", **options)
