"""The seams of ragopt: what a backend must offer to take part.

Every method comes in two colours, ``name`` and ``aname``, which do the same. The bases in
``ragopt.stores.base``, ``ragopt.indexes.base`` and ``ragopt.embedders.base`` write both for you
from one body; the contract suites in ``ragopt.testing`` check whatever you make.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from ragopt.fusion import By
from ragopt.types import (
    DENSE,
    EmbedderSpec,
    Embedding,
    EmbeddingBatch,
    Hit,
    IndexStats,
    Metric,
    Output,
    Record,
    RecordBatch,
    Role,
)

if TYPE_CHECKING:
    from ragopt.filters import Filter, Scalar


class Clock(Protocol):
    """Seconds since the epoch; replaced in tests."""

    def __call__(self) -> float: ...


class Entry(NamedTuple):
    """A stored value, when it ends, and what the store calls this very content."""

    value: bytes
    expires_at: float | None = None
    """Seconds since the epoch; None for never."""
    stamp: bytes = b""
    """What tells this content from every other under the key, where the store knows; see
    ``ragopt.codecs.stamp_of``."""


class ChangeLog(NamedTuple):
    """Where the log of changes of one space stands."""

    id: bytes
    """Another one whenever the log began anew: nothing is known of what was before."""
    seq: int
    """The number of the last change."""
    low: int
    """The number of the last change that the log has forgotten; 0 for none."""


@runtime_checkable
class KVStore(Protocol):
    """Bytes under keys, with a time to live. Expired, evicted and corrupt entries are absent."""

    @property
    def name(self) -> str:
        """Short name of the layer in statistics: ``memory``, ``sqlite``, ``redis``."""
        ...

    def get_many(self, keys: Sequence[bytes], /) -> list[Entry | None]:
        """Return an entry, or None, for each key, in the order of the keys."""
        ...

    async def aget_many(self, keys: Sequence[bytes], /) -> list[Entry | None]: ...

    def set_many(self, items: Mapping[bytes, bytes], /, *, ttl: float | None = None) -> None:
        """Store all items for ``ttl`` seconds (None: until evicted), replacing older ones."""
        ...

    async def aset_many(
        self, items: Mapping[bytes, bytes], /, *, ttl: float | None = None
    ) -> None: ...

    def delete_many(self, keys: Sequence[bytes], /) -> int:
        """Remove keys; return how many were there. A missing key is no error."""
        ...

    async def adelete_many(self, keys: Sequence[bytes], /) -> int: ...

    def clear(self, prefix: bytes = b"", /) -> None:
        """Remove every key that starts with ``prefix``."""
        ...

    async def aclear(self, prefix: bytes = b"", /) -> None: ...

    def count(self, prefix: bytes = b"", /) -> int:
        """Return how many live keys start with ``prefix``."""
        ...

    async def acount(self, prefix: bytes = b"", /) -> int: ...

    def keys(self, prefix: bytes = b"", /) -> list[bytes]:
        """Return the live keys that start with ``prefix``, each once, in no order."""
        ...

    async def akeys(self, prefix: bytes = b"", /) -> list[bytes]: ...

    def close(self) -> None:
        """Release files, connections and memory. Closing twice is no error."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class Coordinator(KVStore, Protocol):
    """A store through which threads, processes and machines agree.

    *Claims*: who wants to compute the value of a key reserves it. A claim is no entry: readers
    find nothing. It ends by itself, and any other write or delete of the key ends it too, so a
    value computed before a delete is never stored after it.

    *Changes*: a log for each space says which tags changed when, by number rather than by time.
    """

    def claim(self, key: bytes, /, *, seconds: float, over: bytes | None = None) -> bytes | None:
        """Reserve a key that is absent, or that still holds the entry with the stamp ``over``.

        Returns a token for ``commit``; None if the key holds something else or is reserved.
        """
        ...

    async def aclaim(
        self, key: bytes, /, *, seconds: float, over: bytes | None = None
    ) -> bytes | None: ...

    def extend(self, key: bytes, token: bytes, /, *, seconds: float) -> bool:
        """Let a claim end ``seconds`` from now; False if it is gone."""
        ...

    async def aextend(self, key: bytes, token: bytes, /, *, seconds: float) -> bool: ...

    def commit(
        self, key: bytes, token: bytes, value: bytes, /, *, ttl: float | None = None
    ) -> bool:
        """Replace a claim, or the entry with this stamp, by a value; False if it is gone."""
        ...

    async def acommit(
        self, key: bytes, token: bytes, value: bytes, /, *, ttl: float | None = None
    ) -> bool: ...

    def release(self, key: bytes, token: bytes, /) -> bool:
        """End a claim, or remove the entry with this stamp; False if it is gone."""
        ...

    async def arelease(self, key: bytes, token: bytes, /) -> bool: ...

    def mark(self, space: bytes, tags: Sequence[bytes], /) -> ChangeLog:
        """Write down that tags changed, all as one change."""
        ...

    async def amark(self, space: bytes, tags: Sequence[bytes], /) -> ChangeLog: ...

    def last_changes(self, space: bytes, tags: Sequence[bytes], /) -> tuple[ChangeLog, list[int]]:
        """Return the log's state and, for each tag, the number of its last change (0: none)."""
        ...

    async def alast_changes(
        self, space: bytes, tags: Sequence[bytes], /
    ) -> tuple[ChangeLog, list[int]]: ...

    def changes_since(self, space: bytes, seq: int, /) -> tuple[ChangeLog, list[bytes]]:
        """Return the log's state and the tags that changed after ``seq``.

        What was forgotten is not among them: compare ``seq`` with ``low``.
        """
        ...

    async def achanges_since(self, space: bytes, seq: int, /) -> tuple[ChangeLog, list[bytes]]: ...


class ChangeListener(Protocol):
    """What an index tells of its changes."""

    def changed(self, *documents: str) -> None:
        """Take note that records or documents with these names were changed or removed."""
        ...

    async def achanged(self, *documents: str) -> None: ...

    def changed_everything(self) -> None:
        """Take note that any document may have changed."""
        ...

    async def achanged_everything(self) -> None: ...


@runtime_checkable
class Embedder(Protocol):
    """Texts to vectors."""

    @property
    def spec(self) -> EmbedderSpec:
        """What the vectors depend on. Part of every cache key."""
        ...

    def embed(
        self,
        texts: Sequence[str],
        /,
        *,
        role: Role = "document",
        outputs: Collection[Output] = DENSE,
    ) -> EmbeddingBatch:
        """Embed texts in the order given, with exactly the outputs asked for."""
        ...

    async def aembed(
        self,
        texts: Sequence[str],
        /,
        *,
        role: Role = "document",
        outputs: Collection[Output] = DENSE,
    ) -> EmbeddingBatch: ...


@runtime_checkable
class VectorIndex(Protocol):
    """Records found by the similarity of their vectors."""

    @property
    def dimension(self) -> int | None:
        """Length of the dense vectors; None until it is set or the first record is added."""
        ...

    @property
    def metric(self) -> Metric: ...

    def version(self) -> str:
        """Return a token that every change replaces. Cached results are keyed on it."""
        ...

    async def aversion(self) -> str: ...

    def check_model(self, model: str, /, *, replace: bool = False) -> None:
        """Raise InvalidInput if another embedding model made the vectors; keep the first name."""
        ...

    async def acheck_model(self, model: str, /, *, replace: bool = False) -> None: ...

    def add(self, records: RecordBatch, /) -> list[str]:
        """Store records, replacing those whose id is there already; return the ids in order.

        All of the batch is stored, or nothing is and the error says why.
        """
        ...

    async def aadd(self, records: RecordBatch, /) -> list[str]: ...

    def get(self, ids: Sequence[str], /, *, embeddings: bool = False) -> list[Record | None]:
        """Return a record, or None, for each id, in the order of the ids."""
        ...

    async def aget(
        self, ids: Sequence[str], /, *, embeddings: bool = False
    ) -> list[Record | None]: ...

    def find(
        self, where: Filter | None = None, /, *, limit: int | None = None, embeddings: bool = False
    ) -> list[Record]:
        """Return the records that match, in the order they were added."""
        ...

    async def afind(
        self, where: Filter | None = None, /, *, limit: int | None = None, embeddings: bool = False
    ) -> list[Record]: ...

    def delete(self, where: Filter, /) -> int:
        """Remove the records that match (``Ids([...])``, ``Documents([...])``, any filter).

        Returns how many there were. A missing id is no error.
        """
        ...

    async def adelete(self, where: Filter, /) -> int: ...

    def count(self, where: Filter | None = None, /) -> int:
        """Return how many records there are, or how many match."""
        ...

    async def acount(self, where: Filter | None = None, /) -> int: ...

    def counts(self, key: str, where: Filter | None = None, /) -> list[tuple[Scalar, int]]:
        """Return each value of a metadata key, and how many of the records have it.

        The most frequent comes first. A record counts once for each different item of a list, and
        for nothing if it lacks the key.
        """
        ...

    async def acounts(
        self, key: str, where: Filter | None = None, /
    ) -> list[tuple[Scalar, int]]: ...

    def clear(self) -> None:
        """Remove every record."""
        ...

    async def aclear(self) -> None: ...

    def stats(self) -> IndexStats:
        """Return what the index holds and takes."""
        ...

    async def astats(self) -> IndexStats: ...

    def search(
        self,
        query: Embedding,
        /,
        *,
        k: int | None = 10,
        where: Filter | None = None,
        min_score: float | None = None,
        embeddings: bool = False,
        by: By = "dense",
        text: str | None = None,
    ) -> list[Hit]:
        """Return the ``k`` best records that match ``where``, best first.

        The filter applies inside the search: ``k`` records come back when ``k`` match.
        ``min_score`` leaves out hits below it; with ``k=None`` all others come back.
        ``embeddings`` adds the vectors to the hits. ``by`` is ``"dense"``, ``"sparse"``
        (inner products above 0), ``"text"`` (words, ranked by BM25) or a ``Fusion`` of them; the
        query carries the vectors that this needs, and ``text`` the words.
        """
        ...

    async def asearch(
        self,
        query: Embedding,
        /,
        *,
        k: int | None = 10,
        where: Filter | None = None,
        min_score: float | None = None,
        embeddings: bool = False,
        by: By = "dense",
        text: str | None = None,
    ) -> list[Hit]: ...

    def search_batch(
        self,
        queries: EmbeddingBatch,
        /,
        *,
        k: int | None = 10,
        where: Filter | None = None,
        min_score: float | None = None,
        embeddings: bool = False,
        by: By = "dense",
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Search for several queries at once; one list of hits for each."""
        ...

    async def asearch_batch(
        self,
        queries: EmbeddingBatch,
        /,
        *,
        k: int | None = 10,
        where: Filter | None = None,
        min_score: float | None = None,
        embeddings: bool = False,
        by: By = "dense",
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]: ...

    def close(self) -> None:
        """Release files, connections and memory. Closing twice is no error."""
        ...

    async def aclose(self) -> None: ...
