"""Search by sparse vectors, the same on every backend."""

from tests.contract.places import OnDisk, OnRedis

from ragopt import FaissIndex, MemoryIndex, RedisIndex
from ragopt.testing import SparseIndexContract


class TestMemoryIndex(SparseIndexContract):
    def make_index(self) -> MemoryIndex:
        return MemoryIndex()


class TestFaissIndex(SparseIndexContract):
    def make_index(self) -> FaissIndex:
        return FaissIndex()


class TestFaissLoadedFromDisk(OnDisk, SparseIndexContract):
    def make_index(self) -> FaissIndex:
        return self.fresh()


class TestRedisIndex(OnRedis, SparseIndexContract):
    def make_index(self) -> RedisIndex:
        return self.fresh(kind="flat")
