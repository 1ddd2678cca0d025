"""Search by multi-vectors, the same on every backend."""

import secrets
from pathlib import Path

import pytest

from ragopt import FaissIndex, MemoryIndex, PgvectorIndex, RedisIndex
from ragopt.testing import MultiIndexContract


class TestMemoryIndex(MultiIndexContract):
    def make_index(self) -> MemoryIndex:
        return MemoryIndex()


class TestFaissLoadedFromDisk(MultiIndexContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_index(self) -> FaissIndex:
        FaissIndex().save(self.folder / "index")
        return FaissIndex.load(self.folder / "index")


class TestRedisIndex(MultiIndexContract):
    @pytest.fixture(autouse=True)
    def _url(self, redis_url: str) -> None:
        self.url = redis_url

    def make_index(self) -> RedisIndex:
        return RedisIndex(self.url, f"t_{secrets.token_hex(8)}", kind="flat")


class TestPgvectorIndex(MultiIndexContract):
    @pytest.fixture(autouse=True)
    def _dsn(self, postgres_dsn: str) -> None:
        self.dsn = postgres_dsn

    def make_index(self) -> PgvectorIndex:
        return PgvectorIndex(self.dsn, f"t_{secrets.token_hex(8)}", index="none")
