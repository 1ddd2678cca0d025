"""The contracts on a cluster: what is found, and in which order, is that of one exact index."""

import pytest
from tests.contract.places import OnRedisCluster

from ragopt import Metric, RedisIndex
from ragopt.testing import (
    MultiIndexContract,
    SparseIndexContract,
    TextIndexContract,
    VectorIndexContract,
)


@pytest.mark.slow
class TestExact(OnRedisCluster, VectorIndexContract):
    many = 3_000

    def make_index(self, metric: Metric) -> RedisIndex:
        return self.fresh(metric=metric, kind="flat")


@pytest.mark.slow
class TestHnsw(OnRedisCluster, VectorIndexContract):
    many = 3_000
    recall = 0.95

    def make_index(self, metric: Metric) -> RedisIndex:
        return self.fresh(metric=metric, shards=7)


@pytest.mark.slow
class TestSparse(OnRedisCluster, SparseIndexContract):
    def make_index(self) -> RedisIndex:
        return self.fresh(kind="flat")


class TestText(OnRedisCluster, TextIndexContract):
    def make_index(self) -> RedisIndex:
        return self.fresh(kind="flat", text_search=True)


@pytest.mark.slow
class TestMulti(OnRedisCluster, MultiIndexContract):
    def make_index(self) -> RedisIndex:
        return self.fresh(kind="flat")
