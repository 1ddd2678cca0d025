"""Looks into the shards of an index in Redis, for the tests that change what happens there."""

from __future__ import annotations

from ragopt.indexes._redis_shard import RedisShard
from ragopt.indexes._redis_shards import ClusterShards, OneShard
from ragopt.indexes.redis import RedisIndex


def only(index: RedisIndex) -> RedisShard:
    """Return the shard of an index on a single server."""
    assert isinstance(index._shards, OneShard)
    return index._shards.shard


def shards_of(index: RedisIndex) -> list[RedisShard]:
    """Return the shards of an index on a cluster, as far as it knows them."""
    assert isinstance(index._shards, ClusterShards)
    assert index._shards._known is not None
    return index._shards._known.shards
