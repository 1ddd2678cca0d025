"""The two faces of a store through which processes agree, written once."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Sequence

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.codecs import STAMP_SIZE
from ragopt.protocols import ChangeLog
from ragopt.stores.base import BaseKVStore

KEPT_CHANGES = 100_000
"""Tags that a log of changes remembers, at most."""

CLAIM = b"RC\x01"  # the first bytes of a claim; values begin otherwise


def new_claim() -> bytes:
    """Return the bytes that stand under a key while somebody computes its value."""
    return CLAIM + secrets.token_bytes(STAMP_SIZE - len(CLAIM))


def is_claim(blob: bytes) -> bool:
    """Return whether these bytes are a claim."""
    return blob.startswith(CLAIM)


class CoordinatingStore(BaseKVStore):
    """A ``Coordinator`` from seven operations more, each written once for both colours."""

    @abstractmethod
    async def _claim(
        self, io: Runtime, key: bytes, seconds: float, over: bytes | None
    ) -> bytes | None: ...

    @abstractmethod
    async def _extend(self, io: Runtime, key: bytes, token: bytes, seconds: float) -> bool: ...

    @abstractmethod
    async def _commit(
        self, io: Runtime, key: bytes, token: bytes, value: bytes, expires_at: float | None
    ) -> bool: ...

    @abstractmethod
    async def _release(self, io: Runtime, key: bytes, token: bytes) -> bool: ...

    @abstractmethod
    async def _mark(self, io: Runtime, space: bytes, tags: Sequence[bytes]) -> ChangeLog: ...

    @abstractmethod
    async def _last_changes(
        self, io: Runtime, space: bytes, tags: Sequence[bytes]
    ) -> tuple[ChangeLog, list[int]]: ...

    @abstractmethod
    async def _changes_since(
        self, io: Runtime, space: bytes, seq: int
    ) -> tuple[ChangeLog, list[bytes]]: ...

    def claim(self, key: bytes, /, *, seconds: float, over: bytes | None = None) -> bytes | None:
        """Reserve a key that is absent, or that still holds the entry with the stamp ``over``.

        Args:
            key: The key whose value is to be computed.
            seconds: After this time the claim ends by itself.
            over: Stamp of the entry to replace; None where there was none.

        Returns:
            A token for ``commit``; None if the key holds something else or is reserved.
        """
        return run(self._claim(SYNC, key, seconds, over))

    async def aclaim(
        self, key: bytes, /, *, seconds: float, over: bytes | None = None
    ) -> bytes | None:
        """Reserve a key; see ``claim``."""
        return await self._claim(ASYNC, key, seconds, over)

    def extend(self, key: bytes, token: bytes, /, *, seconds: float) -> bool:
        """Let a claim end ``seconds`` from now; False if it is gone."""
        return run(self._extend(SYNC, key, token, seconds))

    async def aextend(self, key: bytes, token: bytes, /, *, seconds: float) -> bool:
        """Let a claim end ``seconds`` from now; False if it is gone."""
        return await self._extend(ASYNC, key, token, seconds)

    def commit(
        self, key: bytes, token: bytes, value: bytes, /, *, ttl: float | None = None
    ) -> bool:
        """Replace a claim, or the entry with this stamp, by a value; False if it is gone.

        Raises:
            InvalidInput: ``ttl`` is not above 0.
        """
        return run(self._commit(SYNC, key, token, value, self._deadline(ttl)))

    async def acommit(
        self, key: bytes, token: bytes, value: bytes, /, *, ttl: float | None = None
    ) -> bool:
        """Replace a claim, or the entry with this stamp, by a value; see ``commit``."""
        return await self._commit(ASYNC, key, token, value, self._deadline(ttl))

    def release(self, key: bytes, token: bytes, /) -> bool:
        """End a claim, or remove the entry with this stamp; False if it is gone."""
        return run(self._release(SYNC, key, token))

    async def arelease(self, key: bytes, token: bytes, /) -> bool:
        """End a claim, or remove the entry with this stamp; False if it is gone."""
        return await self._release(ASYNC, key, token)

    def mark(self, space: bytes, tags: Sequence[bytes], /) -> ChangeLog:
        """Write down that tags changed, all as one change."""
        return run(self._mark(SYNC, space, tags))

    async def amark(self, space: bytes, tags: Sequence[bytes], /) -> ChangeLog:
        """Write down that tags changed, all as one change."""
        return await self._mark(ASYNC, space, tags)

    def last_changes(self, space: bytes, tags: Sequence[bytes], /) -> tuple[ChangeLog, list[int]]:
        """Return the log's state and, for each tag, the number of its last change (0: none)."""
        return run(self._last_changes(SYNC, space, tags))

    async def alast_changes(
        self, space: bytes, tags: Sequence[bytes], /
    ) -> tuple[ChangeLog, list[int]]:
        """Return the log's state and the last change of each tag; see ``last_changes``."""
        return await self._last_changes(ASYNC, space, tags)

    def changes_since(self, space: bytes, seq: int, /) -> tuple[ChangeLog, list[bytes]]:
        """Return the log's state and the tags that changed after ``seq``.

        What was forgotten is not among them: compare ``seq`` with ``low``.
        """
        return run(self._changes_since(SYNC, space, seq))

    async def achanges_since(self, space: bytes, seq: int, /) -> tuple[ChangeLog, list[bytes]]:
        """Return the log's state and the tags that changed after ``seq``."""
        return await self._changes_since(ASYNC, space, seq)
