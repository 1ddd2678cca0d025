"""The index of a vector store by name: one that is there already, or a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ragopt.errors import InvalidInput
from ragopt.indexes.faiss import FaissIndex
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.indexes.redis import RedisIndex

T = TypeVar("T")


def faiss_index(given: object, **options: Any) -> FaissIndex:
    """Return the index that was given, or make one.

    Args:
        given: An index, or None.
        options: Those of a new one; None means that one was not given.

    Raises:
        InvalidInput: It is of another class, or came with options that it would not heed.
    """
    return _given_or_new(given, FaissIndex, options, FaissIndex)


def pgvector_index(given: object, asked: str, default: str, **options: Any) -> PgvectorIndex:
    """Return the index that was given, or make one; see ``faiss_index``.

    Args:
        given: An index, or None; or what a new table is indexed with, which has the same name.
        asked: The store's own name for the option ``dsn``.
        default: The table of a new one.
        options: Of a new one.
    """
    if isinstance(given, str):
        given, options = None, {**options, "index": given}

    def make(dsn: str | None = None, table: str = default, **rest: Any) -> PgvectorIndex:
        if dsn is None:
            raise InvalidInput(
                "A PGVectorStore was made without a database.",
                fix=f"Pass {asked}='postgresql://user:password@host:5432/database', or an index.",
            )
        return PgvectorIndex(dsn, table, **rest)

    return _given_or_new(given, PgvectorIndex, options, make)


def redis_index(given: object, default: str, **options: Any) -> RedisIndex:
    """Return the index that was given, or make one; see ``faiss_index``.

    Args:
        given: An index, or None.
        default: The name of a new one.
        options: Of a new one.
    """

    def make(url: str = "redis://localhost:6379", name: str = default, **rest: Any) -> RedisIndex:
        return RedisIndex(url, name, **rest)

    return _given_or_new(given, RedisIndex, options, make)


def _given_or_new(
    given: object, kind: type[T], options: dict[str, Any], make: Callable[..., T]
) -> T:
    named = {name: value for name, value in options.items() if value is not None}
    if given is None:
        return make(**named)
    if not isinstance(given, kind):
        raise InvalidInput(
            f"A store was given the index {given!r:.100}, which is no {kind.__name__}.",
            fix=f"Pass a {kind.__name__}, or leave index out and give the options of a new one.",
        )
    if named:
        raise InvalidInput(
            f"A store was given an index and {', '.join(named)}, which only a new one heeds.",
            fix="Leave out the index, or what is for a new one.",
        )
    return given
