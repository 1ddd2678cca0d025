"""The two faces of a key-value store, written once."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput
from ragopt.protocols import Clock, Entry


class BaseKVStore(ABC):
    """A ``KVStore`` from seven operations, each written once for both colours.

    Args:
        clock: Seconds since the epoch.
    """

    name: str = "store"

    def __init__(self, *, clock: Clock = time.time) -> None:
        self._clock = clock

    @abstractmethod
    async def _get_many(self, io: Runtime, keys: Sequence[bytes]) -> list[Entry | None]: ...

    @abstractmethod
    async def _set_many(
        self, io: Runtime, items: Mapping[bytes, bytes], expires_at: float | None
    ) -> None: ...

    @abstractmethod
    async def _delete_many(self, io: Runtime, keys: Sequence[bytes]) -> int: ...

    @abstractmethod
    async def _clear(self, io: Runtime, prefix: bytes) -> None: ...

    @abstractmethod
    async def _count(self, io: Runtime, prefix: bytes) -> int: ...

    @abstractmethod
    async def _keys(self, io: Runtime, prefix: bytes) -> list[bytes]: ...

    @abstractmethod
    async def _close(self, io: Runtime) -> None: ...

    def get_many(self, keys: Sequence[bytes], /) -> list[Entry | None]:
        """Return an entry, or None, for each key, in the order of the keys."""
        return run(self._get_many(SYNC, keys))

    async def aget_many(self, keys: Sequence[bytes], /) -> list[Entry | None]:
        """Return an entry, or None, for each key, in the order of the keys."""
        return await self._get_many(ASYNC, keys)

    def set_many(self, items: Mapping[bytes, bytes], /, *, ttl: float | None = None) -> None:
        """Store all items for ``ttl`` seconds (None: until evicted), replacing older ones.

        Raises:
            InvalidInput: ``ttl`` is not above 0.
        """
        run(self._set_many(SYNC, items, self._deadline(ttl)))

    async def aset_many(self, items: Mapping[bytes, bytes], /, *, ttl: float | None = None) -> None:
        """Store all items for ``ttl`` seconds; see ``set_many``."""
        await self._set_many(ASYNC, items, self._deadline(ttl))

    def delete_many(self, keys: Sequence[bytes], /) -> int:
        """Remove keys; return how many were there. A missing key is no error."""
        return run(self._delete_many(SYNC, keys))

    async def adelete_many(self, keys: Sequence[bytes], /) -> int:
        """Remove keys; return how many were there. A missing key is no error."""
        return await self._delete_many(ASYNC, keys)

    def clear(self, prefix: bytes = b"", /) -> None:
        """Remove every key that starts with ``prefix``."""
        run(self._clear(SYNC, prefix))

    async def aclear(self, prefix: bytes = b"", /) -> None:
        """Remove every key that starts with ``prefix``."""
        await self._clear(ASYNC, prefix)

    def count(self, prefix: bytes = b"", /) -> int:
        """Return how many live keys start with ``prefix``."""
        return run(self._count(SYNC, prefix))

    async def acount(self, prefix: bytes = b"", /) -> int:
        """Return how many live keys start with ``prefix``."""
        return await self._count(ASYNC, prefix)

    def keys(self, prefix: bytes = b"", /) -> list[bytes]:
        """Return the live keys that start with ``prefix``, each once, in no order."""
        return run(self._keys(SYNC, prefix))

    async def akeys(self, prefix: bytes = b"", /) -> list[bytes]:
        """Return the live keys that start with ``prefix``, each once, in no order."""
        return await self._keys(ASYNC, prefix)

    def close(self) -> None:
        """Release files, connections and memory. Closing twice is no error."""
        run(self._close(SYNC))

    async def aclose(self) -> None:
        """Release files, connections and memory. Closing twice is no error."""
        await self._close(ASYNC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _deadline(self, ttl: float | None) -> float | None:
        if ttl is None:
            return None
        if not ttl > 0:
            raise InvalidInput(
                f"A time to live of {ttl} seconds was given.",
                fix="Pass seconds above 0, or None to keep the value until it is evicted.",
            )
        return self._clock() + ttl
