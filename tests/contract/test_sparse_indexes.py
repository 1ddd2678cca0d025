import secrets
from pathlib import Path

import pytest

from ragopt import FaissIndex, MemoryIndex, RedisIndex
from ragopt.testing import SparseIndexContract


class TestMemoryIndex(SparseIndexContract):
    def make_index(self) -> MemoryIndex:
        return MemoryIndex()


class TestFaissIndex(SparseIndexContract):
    def make_index(self) -> FaissIndex:
        return FaissIndex()


class TestFaissLoadedFromDisk(SparseIndexContract):
    """An index that was saved and loaded before the test began is like any other."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_index(self) -> FaissIndex:
        FaissIndex().save(self.folder / "index")
        return FaissIndex.load(self.folder / "index")


class TestRedisIndex(SparseIndexContract):
    @pytest.fixture(autouse=True)
    def _url(self, redis_url: str) -> None:
        self.url = redis_url

    def make_index(self) -> RedisIndex:
        return RedisIndex(self.url, f"t_{secrets.token_hex(8)}", kind="flat")
