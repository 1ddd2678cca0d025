"""A name that goes over from one Redis index to another while it is in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput, StorageError
from ragopt.indexes._redis_made import Made
from ragopt.indexes._redis_schema import alias_key, root_key
from ragopt.indexes.redis import RedisIndex

__all__ = ["RedisAlias"]


@dataclass(slots=True)
class _Target:
    """An index that the alias names, or has named.

    Args:
        name: Its name.
        made: What it says that it was made for; other bytes with each making.
        index: The object that does the operations on it.
        model: The embedding model that it was compared with.
    """

    name: bytes
    made: bytes
    index: RedisIndex
    model: str | None = None


def _followed(operation: str) -> Any:
    """Return an operation that is one of the index which the alias names when it begins."""

    async def follow(self: RedisAlias, io: Runtime, *args: Any, **kwargs: Any) -> Any:
        return await getattr(await self._now(io), operation)(io, *args, **kwargs)

    return follow


class RedisAlias(RedisIndex):
    """The index that an alias names at the moment: see ``RedisIndex.alias``.

    Each operation first reads which index that is, in one more round trip, and is then done on it
    as a whole: no answer is put together of two. Dimension, metric, kind and precision are those
    of the index, and known from the first operation on.

    A model that ``check_model`` was told, as stores do, is compared with every index that comes to
    have the alias: after a switch to vectors of another model an operation is an error.

    Records can be changed through an alias. It makes no index, and drops none.

    Args:
        url: See ``RedisStore``; the database is 0.
        name: The alias.
        ef_search: Candidates of a search, where the index has an HNSW graph.
        timeout: Seconds to wait for other searches on the event loop, for a connection, and for
            each answer.
        max_connections: Bound on the connections of each pool.
        prefix: What the keys of the indexes begin with.

    Raises:
        MissingDependency: The redis package is not installed.
        InvalidInput: The URL or the name cannot be used. From every operation: no index has the
            alias, or one of another model.
        BackendUnavailable: From every operation: the server could not be reached, or did not
            answer in time.
        StorageError: From every operation: the index is not there any more, or the server refused
            it. The sentence says why.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        ef_search: int = 100,
        timeout: float = 5.0,
        max_connections: int = 64,
        prefix: str = "ragopt:",
    ) -> None:
        options: dict[str, Any] = {
            **{"ef_search": ef_search, "timeout": timeout},
            **{"max_connections": max_connections, "prefix": prefix},
        }
        super().__init__(url, name, **options)
        self._open: Callable[..., RedisIndex] = partial(RedisIndex, self._servers, **options)
        self._key = alias_key(prefix, name)
        self._lock = Lock()
        self._target: _Target | None = None
        self._embedded_by: str | None = None

    def __repr__(self) -> str:
        return f"RedisAlias({self._servers.name!r}, {self._name!r})"

    # As a whole on one index: a search may have several steps, and what is told of a change too.
    _begun = _followed("_begun")
    _checked_add = _followed("_checked_add")
    _checked_counts = _followed("_checked_counts")
    _checked_get = _followed("_checked_get")
    _told_delete = _followed("_told_delete")
    _clear = _followed("_clear")

    _find = _followed("_find")
    _count = _followed("_count")
    _stats = _followed("_stats")
    _give = _followed("_give")
    _take = _followed("_take")

    async def _version(self, io: Runtime) -> str:
        index = await self._now(io)
        return f"{index._name}.{await index._version(io)}"  # no two empty ones are the same

    async def _check_model(self, io: Runtime, model: str, *how: Any) -> None:
        target = await self._read(io)
        await target.index._check_model(io, model, *how)
        self._embedded_by = target.model = model

    async def _drop(self, io: Runtime) -> None:
        raise InvalidInput(
            f"An index was to be dropped by its alias {self._name!r}. Nothing was changed.",
            fix="Open it by its own name and drop that; unalias() removes an alias alone.",
        )

    async def _now(self, io: Runtime) -> RedisIndex:
        """Return the index that the alias names now."""
        target = await self._read(io)
        if self._embedded_by not in (None, target.model):
            # Those who were told once that their model fits do not ask again.
            await target.index._check_model(io, self._embedded_by, False)
            target.model = self._embedded_by
        return target.index

    async def _read(self, io: Runtime) -> _Target:
        known = self._target
        ask = ("GET", self._key), *(() if known is None else (self._asked(known.name),))
        name, *made = await self._servers.ask(io, [(words[1], words) for words in ask])
        if known is not None and (name, *made) == (known.name, known.made):
            return known
        if name is None:
            raise InvalidInput(
                f"No Redis index at {self._servers.name} has the alias {self._name!r}.",
                fix=f'Give it to one that has records: RedisIndex(url, "docs").alias('
                f"{self._name!r}). One that has this name itself is a RedisIndex.",
            )
        words = self._asked(name)
        (text,) = await self._servers.ask(io, [(words[1], words)])
        if text is None:
            raise StorageError(
                f"The Redis index {_text(name)!r}, which the alias {self._name!r} names, is not "
                "there any more.",
                fix=f'Give the alias to another one: RedisIndex(url, "docs").alias('
                f"{self._name!r}).",
            )
        return self._switched(known, _Target(name, text, self._opened(name, text)))

    def _asked(self, name: bytes) -> tuple[Any, ...]:
        """Return the command for what an index was made for."""
        return "HGET", root_key(self._prefix, _text(name), self._servers.is_cluster), "schema"

    def _opened(self, name: bytes, text: bytes) -> RedisIndex:
        made = Made.load(text, _text(name))
        index = self._open(
            _text(name),
            made.dimension,
            metric=made.metric,
            kind=made.kind,
            precision=made.precision,
            # Should it be dropped and made again at the next moment, it is the same once more.
            text_search=made.text,
            shards=made.shards if self._servers.is_cluster else None,
        )
        index._listeners = self._listeners
        return index

    def _switched(self, known: _Target | None, to: _Target) -> _Target:
        """Go over to an index, unless another thread or task has just done so."""
        with self._lock:
            now = self._target
            if now is not known and now is not None and (now.name, now.made) == (to.name, to.made):
                return now
            self._target = to
            self._dimension, self._metric = to.index.dimension, to.index.metric
        return to


def _text(name: bytes) -> str:
    return str(name, "utf-8", "replace")  # anybody may have written it
