"""An answer of 2 KB that is already in Redis: the exact hit of a language model's cache."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from langchain_core.load import dumps, loads
from langchain_core.outputs import Generation
from langchain_redis import RedisCache
from tests.services import redis_server

from benchmarks.data import passages
from benchmarks.harness import Bound, Contender, Line, Row
from benchmarks.llm_cache import ENTRIES, MODEL, answer
from ragopt import MemoryStore, RedisStore, TieredCache
from ragopt.langchain import LLMCache

_BOUND = Bound(factor=1.25)


@contextmanager
def rows(_: Path) -> Iterator[Sequence[Row]]:
    """Fill every cache with the same answers; yield a row for each colour."""
    asked = [json.dumps([{"type": "human", "content": text}]) for text in passages(ENTRIES, 150)]
    answers = [answer(i, text) for i, text in enumerate(passages(ENTRIES, 300))]

    def of_raw(found: bytes) -> list[Generation]:
        return [loads(found.decode(), allowed_objects="core")]

    # Not asyncio.Runner, which prepares for an interrupt at every call: that takes a millisecond.
    loop = asyncio.new_event_loop()
    wait = loop.run_until_complete
    with redis_server() as url, closing(loop):
        raw, araw = redis.Redis.from_url(url), redis.asyncio.Redis.from_url(url)
        peer = RedisCache(redis_client=redis.Redis.from_url(url))
        store = RedisStore(url)
        ours = LLMCache(store, ttl=None)
        tiers = LLMCache(TieredCache(MemoryStore(), store), ttl=None)
        for key, each in zip(asked, answers, strict=True):
            raw.set(key, dumps(each[0]))
            for cache in (peer, ours, tiers):
                cache.update(key, MODEL, each)

        async def read(number: int) -> Any:
            return await araw.get(asked[number])

        async def aread(cache: Any, number: int) -> Any:
            return await cache.alookup(asked[number], MODEL)

        try:
            yield (
                Row(
                    "exact LLM cache hit, 2 KB, Redis",
                    [
                        Contender("GET", lambda i: raw.get(asked[i]), of_raw),
                        Contender("RedisCache", lambda i: peer.lookup(asked[i], MODEL), list),
                        Contender("ours", lambda i: ours.lookup(asked[i], MODEL), list),
                        Contender("tiers", lambda i: tiers.lookup(asked[i], MODEL), list),
                    ],
                    [
                        Line("sync", "ours", "GET", "RedisCache", _BOUND),
                        Line("memory before it", "tiers", "GET", "RedisCache"),
                    ],
                    inputs=ENTRIES,
                ),
                Row(
                    "exact LLM cache hit, 2 KB, Redis, async",
                    [
                        Contender("GET", lambda i: wait(read(i)), of_raw),
                        Contender("RedisCache", lambda i: wait(aread(peer, i)), list),
                        Contender("ours", lambda i: wait(aread(ours, i)), list),
                    ],
                    [Line("async", "ours", "GET", "RedisCache", _BOUND)],
                    inputs=ENTRIES,
                ),
            )
        finally:
            wait(araw.aclose())
            wait(store.aclose())
            raw.close()
            peer.redis.close()
