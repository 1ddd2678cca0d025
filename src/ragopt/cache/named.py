"""Bytes under names of the caller's own, which can be listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.tiers import TieredCache
from ragopt.errors import InvalidInput
from ragopt.keys import namespace_prefix
from ragopt.protocols import KVStore


class NamedStore:
    """A store for users who choose their keys, where other caches hash theirs.

    The name itself, in UTF-8, ends the key: any string is a name, two names never meet, and the
    names with a prefix are the keys with a prefix.

    A cache may forget what can be computed again. What is stored here may exist nowhere else, so
    the errors of a store are the caller's errors. A ``TieredCache`` that was not made with
    ``strict=True`` goes on without a layer that fails; and a bounded store puts out its oldest
    entries when it is full.

    Args:
        kind: Name in keys and statistics.
        cache: A cache or a store; one in memory of its own if None.
        group: Separates sets of names of one kind.
        ttl: Seconds that a value is kept; None until it is evicted.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
    """

    def __init__(
        self,
        kind: str,
        cache: KVStore | None = None,
        *,
        group: str = "",
        ttl: float | None = None,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        if cache is not None and not isinstance(cache, TieredCache):
            cache = TieredCache(cache, strict=True)
        self.cache = TieredCache.over(cache)
        self.cache.check_tenant(tenant)
        self.kind = kind
        self._ttl = ttl
        # The group is quoted, so that no group and name read as another group and name.
        quoted = quote(_text(group), safe="", errors="surrogatepass")
        self._prefix = namespace_prefix(namespace, tenant, kind) + quoted.encode() + b":"

    def get_many(self, names: Sequence[str], /) -> list[bytes | None]:
        """Return a value, or None, for each name, in the order of the names.

        Raises:
            InvalidInput: A name is no string.
        """
        return run(self._get(SYNC, names))

    async def aget_many(self, names: Sequence[str], /) -> list[bytes | None]:
        """Return a value, or None, for each name; see ``get_many``."""
        return await self._get(ASYNC, names)

    def set_many(self, items: Mapping[str, bytes], /) -> None:
        """Store all items, replacing older ones.

        Raises:
            InvalidInput: A name is no string, or a value no bytes. Nothing was stored.
        """
        run(self._set(SYNC, items))

    async def aset_many(self, items: Mapping[str, bytes], /) -> None:
        """Store all items, replacing older ones; see ``set_many``."""
        await self._set(ASYNC, items)

    def delete_many(self, names: Sequence[str], /) -> int:
        """Remove names; return how many were there. A missing name is no error."""
        return run(self._delete(SYNC, names))

    async def adelete_many(self, names: Sequence[str], /) -> int:
        """Remove names; return how many were there. A missing name is no error."""
        return await self._delete(ASYNC, names)

    def names(self, prefix: str = "", /) -> list[str]:
        """Return the names that start with ``prefix``, each once, in no order."""
        return run(self._names(SYNC, prefix))

    async def anames(self, prefix: str = "", /) -> list[str]:
        """Return the names that start with ``prefix``, each once, in no order."""
        return await self._names(ASYNC, prefix)

    def clear(self) -> None:
        """Forget every name of this kind, group, namespace and tenant, and nothing else."""
        self.cache.clear(self._prefix)

    async def aclear(self) -> None:
        """Forget every name of this kind, group, namespace and tenant, and nothing else."""
        await self.cache.aclear(self._prefix)

    async def _get(self, io: Runtime, names: Sequence[str]) -> list[bytes | None]:
        keys = [self._key(name) for name in names]
        entries = await io.call(self.cache.get_many, self.cache.aget_many, keys)
        values = [None if entry is None else entry.value for entry in entries]
        missing = values.count(None)
        self.cache.stats.count(self.kind, "hit", len(values) - missing)
        self.cache.stats.count(self.kind, "miss", missing)
        return values

    async def _set(self, io: Runtime, items: Mapping[str, bytes]) -> None:
        for name, value in items.items():
            if not isinstance(value, bytes):
                raise InvalidInput(
                    f"The value of {name!r} is of type {type(value).__name__}. Nothing was stored.",
                    fix="Pass bytes.",
                )
        encoded = {self._key(name): value for name, value in items.items()}
        await io.call(self.cache.set_many, self.cache.aset_many, encoded, ttl=self._ttl)

    async def _delete(self, io: Runtime, names: Sequence[str]) -> int:
        keys = [self._key(name) for name in names]
        return await io.call(self.cache.delete_many, self.cache.adelete_many, keys)

    async def _names(self, io: Runtime, prefix: str) -> list[str]:
        keys = await io.call(self.cache.keys, self.cache.akeys, self._key(prefix))
        start = len(self._prefix)
        return [key[start:].decode("utf-8", "surrogatepass") for key in keys]

    def _key(self, name: str) -> bytes:
        return self._prefix + _text(name).encode("utf-8", "surrogatepass")


def _text(name: str) -> str:
    if not isinstance(name, str):
        raise InvalidInput(f"A key of type {type(name).__name__} was given.", fix="Pass strings.")
    return name
