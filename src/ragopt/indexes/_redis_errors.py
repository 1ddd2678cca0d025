"""What the query engine's refusals mean, as sentences."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import TypeVar

from ragopt.errors import BackendUnavailable, InvalidInput, StorageError

T = TypeVar("T")

_MISSING = re.compile(r"no such index|unknown index|index not found", re.IGNORECASE)


async def explaining(replies: Awaitable[T], name: str, where: str) -> T:
    """Wait for replies, and say what it means where a server refuses something about an index.

    Args:
        replies: What to wait for.
        name: The index.
        where: The server.
    """
    try:
        return await replies
    except BackendUnavailable:
        raise
    except StorageError as error:
        raise _explained(error, name, where) from error.__cause__


def _explained(error: StorageError, name: str, where: str) -> StorageError:
    cause = str(error.__cause__).lower()
    if "unknown command" in cause and "ft." in cause:
        return StorageError(
            f"The Redis server at {where} has no query engine.",
            fix="Use Redis 8, Redis Stack, or load the module redisearch.so (2.10 or later).",
        )
    if "index on db != 0" in cause:
        return StorageError(
            f"The index {name!r} cannot be made: Redis searches database 0 alone.",
            fix="End the URL in /0 or leave the number out.",
        )
    if "limit exceeds maximum" in cause:
        return StorageError(
            f"More records of the index {name!r} were asked for than Redis returns at once.",
            fix="Ask for a smaller k, or raise the server's setting MAXSEARCHRESULTS.",
        )
    return error


def is_missing(error: StorageError) -> bool:
    """Whether the server said that it has no such index."""
    return _MISSING.search(str(error.__cause__)) is not None


def is_duplicate(error: StorageError) -> bool:
    """Whether the server said that it has this index, or this field of it, already."""
    cause = str(error.__cause__)
    return "already exists" in cause or "Duplicate field" in cause


def in_cluster(where: str) -> StorageError:
    """Return the error for one server of a cluster, which has a part of an index at most."""
    return StorageError(
        f"The Redis server at {where} is one of a cluster.", fix="Add ?cluster=true to the URL."
    )


def no_texts(name: str) -> InvalidInput:
    """Return the error for a search by text in an index that was not made for it."""
    return InvalidInput(
        f"The Redis index {name!r} has no text search.",
        fix="Make it with text_search=True; one that is there has to be made anew.",
    )
