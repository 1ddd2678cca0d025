import time
from collections.abc import Iterator

import pytest
import redis

from ragopt import RedisStore
from ragopt.testing import FakeClock, KVStoreContract


class TestRedisStore(KVStoreContract):
    ttl = 0.4  # the server has a clock of its own, so time really passes

    @pytest.fixture(autouse=True)
    def _empty(self, redis_url: str) -> Iterator[None]:
        self.url = redis_url
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
            yield

    def make_store(self, clock: FakeClock) -> RedisStore:
        return RedisStore(self.url, timeout=5)

    def advance(self, clock: FakeClock, seconds: float) -> None:
        time.sleep(seconds)
