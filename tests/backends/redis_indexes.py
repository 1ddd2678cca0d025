"""Indexes on one Redis server or cluster, which leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from ragopt.indexes.redis import RedisIndex

Make: TypeAlias = Callable[..., RedisIndex]


@contextmanager
def redis_indexes(url: str, name: str, **usual: Any) -> Iterator[Make]:
    """Make indexes of one name, and remove what they stored in the end."""
    made: list[RedisIndex] = []

    def make(dimension: int | None = None, **options: Any) -> RedisIndex:
        index = RedisIndex(url, options.pop("name", name), dimension, **{**usual, **options})
        made.append(index)
        return index

    yield make
    for index in made:
        index.drop()
        index.close()
