"""What cached values were made from, so that a changed document kills exactly those."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from time import monotonic
from typing import NamedTuple

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.tiers import FAILED, TieredCache
from ragopt.errors import InvalidInput
from ragopt.keys import encode, namespace_prefix
from ragopt.protocols import ChangeLog, KVStore

TAG_SIZE = 12  # bytes; two of 10^9 documents meet with a chance below 10^-11


class Origin(NamedTuple):
    """What a value was made from.

    Args:
        log: Id of the log of changes.
        seq: Number of the last change before the value was begun.
        tags: Digests of the documents it used.
    """

    log: bytes
    seq: int
    tags: tuple[bytes, ...]


@dataclass
class _Known:
    log: ChangeLog
    at: float


class Lineage:
    """Knows which documents changed when, for all processes that share a store.

    Values are kept with the documents they used and with the number of the last change before
    they were begun. A value is good as long as none of its documents changed later. So one
    written number kills every value built on a document, in every layer and process, and nothing
    else; nothing is searched for.

    Args:
        cache: The cache whose last layer keeps the log; a ``SqliteStore`` or ``RedisStore`` there
            makes it common to several processes.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
        max_staleness: 0 asks the log at every hit: after ``changed`` has returned, no process
            serves what was built on the old text. Above 0, a process asks at most once in so many
            seconds, and may serve the old text for that long.

    Raises:
        InvalidInput: The cache's last layer cannot coordinate.

    Examples:
        >>> lineage = Lineage(cache)
        >>> lineage.changed("handbook.md")
    """

    def __init__(
        self,
        cache: KVStore | None = None,
        *,
        namespace: str = "default",
        tenant: str | None = None,
        max_staleness: float = 0.0,
    ) -> None:
        self.cache = TieredCache.over(cache)
        if self.cache.coordinator is None:
            raise InvalidInput(
                f"The last layer of the cache, {self.cache.layers[-1].name}, "
                "cannot keep a log of changes.",
                fix="Use a MemoryStore, SqliteStore or RedisStore as the last layer.",
            )
        if not max_staleness >= 0:
            raise InvalidInput(
                f"A staleness of {max_staleness} seconds was given.", fix="Give 0 or more."
            )
        self.cache.check_tenant(tenant)
        self._store = self.cache.coordinator
        self._space = namespace_prefix(namespace, tenant, "lineage")
        self._max_staleness = max_staleness
        self._known: _Known | None = None

    def changed(self, *documents: str) -> None:
        """Say that documents were changed or removed; call it when the change can be seen.

        Raises:
            StorageError: The log could not be written, so old answers may still be served.
        """
        run(self._changed(SYNC, documents))

    async def achanged(self, *documents: str) -> None:
        """Say that documents were changed or removed; see ``changed``."""
        await self._changed(ASYNC, documents)

    def changed_everything(self) -> None:
        """Say that any document may have changed: every value with a lineage is dead."""
        run(self._mark(SYNC, [_EVERYTHING]))

    async def achanged_everything(self) -> None:
        """Say that any document may have changed: every value with a lineage is dead."""
        await self._mark(ASYNC, [_EVERYTHING])

    async def _changed(self, io: Runtime, documents: Sequence[str]) -> None:
        if documents:
            await self._mark(io, tags_of(documents))

    async def _mark(self, io: Runtime, tags: Sequence[bytes]) -> None:
        store = self._store
        try:
            await io.call(store.mark, store.amark, self._space, tags)
        finally:
            self._known = None  # of this process at least, the very next hit asks

    async def position(self, io: Runtime) -> Origin | None:
        """Return where the log stands before a value is begun; None if it cannot be read."""
        found = await self._ask(io, ())
        return None if found is None else Origin(found[0].id, found[0].seq, ())

    async def verify(self, io: Runtime, origin: Origin) -> int | None:
        """Return the number of a change up to which a value is good; None if it is not, now."""
        known = self._known
        if (
            known is not None
            and origin.log == known.log.id
            and origin.seq >= known.log.seq
            and monotonic() - known.at < self._max_staleness
        ):
            return origin.seq
        found = await self._ask(io, (_EVERYTHING, *origin.tags))
        if found is None:
            return None
        log, changes = found
        good = log.id == origin.log and origin.seq >= log.low and max(changes) <= origin.seq
        return log.seq if good else None

    async def _ask(self, io: Runtime, tags: Sequence[bytes]) -> tuple[ChangeLog, list[int]] | None:
        asked_at = monotonic()
        store = self._store
        found = await self.cache.attempt(
            io, store.last_changes, store.alast_changes, self._space, tags
        )
        if found is FAILED:
            self.cache.stats.count("lineage", "unverified")
            return None
        self._known = _Known(found[0], asked_at)
        return found


def tags_of(documents: Iterable[str]) -> list[bytes]:
    """Return the digests under which documents stand in the log."""
    return [_tag(("document", document)) for document in documents]


def _tag(name: object) -> bytes:
    return blake2b(encode(name), digest_size=TAG_SIZE).digest()


_EVERYTHING = _tag("everything")  # stands among the tags of every value
