import secrets

import pytest

from ragopt import Metric
from ragopt.indexes.redis import RedisIndex
from ragopt.testing import VectorIndexContract


class Server(VectorIndexContract):
    many = 3_000

    @pytest.fixture(autouse=True)
    def _url(self, redis_url: str) -> None:
        self.url = redis_url


class TestExact(Server):
    def make_index(self, metric: Metric) -> RedisIndex:
        return RedisIndex(self.url, f"t_{secrets.token_hex(8)}", metric=metric, kind="flat")


class TestHnsw(Server):
    recall = 0.95

    def make_index(self, metric: Metric) -> RedisIndex:
        return RedisIndex(self.url, f"t_{secrets.token_hex(8)}", metric=metric)
