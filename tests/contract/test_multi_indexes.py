"""Search by multi-vectors, the same on every backend."""

from tests.contract.places import OnDisk, OnPostgres, OnRedis

from ragopt import FaissIndex, MemoryIndex, PgvectorIndex, RedisIndex
from ragopt.testing import MultiIndexContract


class TestMemoryIndex(MultiIndexContract):
    def make_index(self) -> MemoryIndex:
        return MemoryIndex()


class TestFaissLoadedFromDisk(OnDisk, MultiIndexContract):
    def make_index(self) -> FaissIndex:
        return self.fresh()


class TestRedisIndex(OnRedis, MultiIndexContract):
    def make_index(self) -> RedisIndex:
        return self.fresh(kind="flat")


class TestPgvectorIndex(OnPostgres, MultiIndexContract):
    def make_index(self) -> PgvectorIndex:
        return self.fresh(index="none")
