"""Text search, the same on every backend."""

from tests.contract.places import OnDisk, OnRedis

from ragopt import FaissIndex, MemoryIndex, RedisIndex
from ragopt.testing import TextIndexContract


class TestMemoryIndex(TextIndexContract):
    def make_index(self) -> MemoryIndex:
        return MemoryIndex()


class TestFaissLoadedFromDisk(OnDisk, TextIndexContract):
    def make_index(self) -> FaissIndex:
        return self.fresh()


class TestRedisIndex(OnRedis, TextIndexContract):
    def make_index(self) -> RedisIndex:
        return self.fresh(kind="flat", text_search=True)
