"""Text search, the same on every backend."""

import secrets
from pathlib import Path

import pytest

from ragopt import FaissIndex, MemoryIndex, RedisIndex
from ragopt.testing import TextIndexContract


class TestMemoryIndex(TextIndexContract):
    def make_index(self) -> MemoryIndex:
        return MemoryIndex()


class TestFaissLoadedFromDisk(TextIndexContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_index(self) -> FaissIndex:
        FaissIndex().save(self.folder / "index")
        return FaissIndex.load(self.folder / "index")


class TestRedisIndex(TextIndexContract):
    @pytest.fixture(autouse=True)
    def _url(self, redis_url: str) -> None:
        self.url = redis_url

    def make_index(self) -> RedisIndex:
        name = f"t_{secrets.token_hex(8)}"
        return RedisIndex(self.url, name, kind="flat", text_search=True)
