import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import redis
from tests.services import redis_cluster, redis_sentinel

from ragopt import RedisStore
from ragopt.testing import CoordinatorContract, FakeClock


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with redis_cluster() as url:
        yield url


@pytest.fixture(scope="module")
def sentinel_url(redis_url: str) -> Iterator[str]:
    with redis_sentinel(redis_url) as url:
        yield url


class RedisContract(CoordinatorContract):
    ttl = 0.4  # the server has a clock of its own, so time really passes
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url

    @pytest.fixture(autouse=True)
    def _empty(self, redis_url: str, url: str) -> None:
        self.where = url
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()

    def make_store(self, clock: FakeClock) -> RedisStore:
        return RedisStore(self.where, timeout=5, **self.options)

    def advance(self, clock: FakeClock, seconds: float) -> None:
        time.sleep(seconds)


class TestOneServer(RedisContract):
    pass


class TestSignedAndCompressed(RedisContract):
    options: ClassVar[dict[str, Any]] = {"secret": [b"s" * 16, b"t" * 80], "compress_above": 0}


class TestSentinel(RedisContract):
    @pytest.fixture
    def url(self, sentinel_url: str) -> str:
        return sentinel_url


class TestCluster(RedisContract):
    @pytest.fixture
    def url(self, cluster_url: str) -> str:
        for address in cluster_url.removeprefix("redis://").partition("?")[0].split(","):
            with redis.Redis.from_url(f"redis://{address}") as client:
                client.flushdb()
        return cluster_url
