from tests.contract.places import OnRedis

from ragopt import Metric
from ragopt.indexes.redis import RedisIndex
from ragopt.testing import VectorIndexContract


class Server(OnRedis, VectorIndexContract):
    many = 3_000


class TestExact(Server):
    def make_index(self, metric: Metric) -> RedisIndex:
        return self.fresh(metric=metric, kind="flat")


class TestHnsw(Server):
    recall = 0.95

    def make_index(self, metric: Metric) -> RedisIndex:
        return self.fresh(metric=metric)
