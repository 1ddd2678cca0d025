"""The two faces of a vector index, and the checks that every backend needs, written once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import DimensionMismatch, InvalidInput
from ragopt.filters import Filter, Ids
from ragopt.indexes.checks import check_columns, copy_metadata
from ragopt.protocols import ChangeListener
from ragopt.sources import collecting, used
from ragopt.types import Dense, Embedding, EmbeddingBatch, Hit, Metric, Record, RecordBatch


class BaseVectorIndex(ABC):
    """A ``VectorIndex`` from eight operations, each written once for both colours.

    Args:
        dimension: Length of the vectors; None to take it from the first record.
        metric: How vectors are compared.
    """

    def __init__(self, dimension: int | None = None, *, metric: Metric | str = Metric.COSINE):
        if dimension is not None and dimension < 1:
            raise InvalidInput(
                f"An index was given the dimension {dimension}.", fix="Give a dimension above 0."
            )
        self._dimension = dimension
        self._metric = Metric(metric)
        self._listeners: list[ChangeListener] = []

    def tell(self, listener: ChangeListener, /) -> None:
        """Tell a listener, such as a ``Lineage``, which records and documents change from now on.

        It is told once the change can be seen, and before the call that made it returns.
        """
        if listener not in self._listeners:
            self._listeners.append(listener)

    @property
    def dimension(self) -> int | None:
        """Length of the dense vectors; None until it is set or the first record is added."""
        return self._dimension

    @property
    def metric(self) -> Metric:
        """How vectors are compared."""
        return self._metric

    @abstractmethod
    async def _version(self, io: Runtime) -> str: ...

    @abstractmethod
    async def _add(self, io: Runtime, records: RecordBatch, vectors: Dense) -> None:
        """Store a batch that has been checked."""

    @abstractmethod
    async def _get(
        self, io: Runtime, ids: Sequence[str], embeddings: bool
    ) -> list[Record | None]: ...

    @abstractmethod
    async def _find(
        self, io: Runtime, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[Record]: ...

    @abstractmethod
    async def _delete(self, io: Runtime, where: Filter | None) -> int:
        """Remove what matches; everything if ``where`` is None."""

    @abstractmethod
    async def _count(self, io: Runtime, where: Filter | None) -> int: ...

    @abstractmethod
    async def _search(
        self,
        io: Runtime,
        queries: Dense,
        k: int,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        """Search for queries that have been checked, shape ``(n, dimension)``, n >= 1."""

    @abstractmethod
    async def _close(self, io: Runtime) -> None: ...

    def version(self) -> str:
        """Return a token that every change replaces. Cached results are keyed on it."""
        return run(self._version(SYNC))

    async def aversion(self) -> str:
        """Return a token that every change replaces; see ``version``."""
        return await self._version(ASYNC)

    def add(self, records: RecordBatch, /) -> list[str]:
        """Store records, replacing those whose id is there already.

        All of the batch is stored, or nothing is and the error says why.

        Returns:
            The ids, in order.

        Raises:
            DimensionMismatch: The vectors do not fit the index.
            InvalidInput: An id is empty or given twice, a vector holds NaN or infinity, columns
                differ in length, or metadata cannot be stored.
            StorageError: The backend failed.
        """
        return run(self._checked_add(SYNC, records))

    async def aadd(self, records: RecordBatch, /) -> list[str]:
        """Store records; see ``add``."""
        return await self._checked_add(ASYNC, records)

    def get(self, ids: Sequence[str], /, *, embeddings: bool = False) -> list[Record | None]:
        """Return a record, or None, for each id, in the order of the ids."""
        return run(self._get(SYNC, ids, embeddings))

    async def aget(self, ids: Sequence[str], /, *, embeddings: bool = False) -> list[Record | None]:
        """Return a record, or None, for each id, in the order of the ids."""
        return await self._get(ASYNC, ids, embeddings)

    def find(
        self, where: Filter | None = None, /, *, limit: int | None = None, embeddings: bool = False
    ) -> list[Record]:
        """Return the records that match, in the order they were added."""
        return run(self._find(SYNC, where, limit, embeddings))

    async def afind(
        self, where: Filter | None = None, /, *, limit: int | None = None, embeddings: bool = False
    ) -> list[Record]:
        """Return the records that match, in the order they were added."""
        return await self._find(ASYNC, where, limit, embeddings)

    def delete(self, where: Filter, /) -> int:
        """Remove the records that match: ``Ids([...])``, ``Documents([...])`` or any filter.

        Returns:
            How many there were. A missing id is no error.

        Raises:
            InvalidInput: No filter was given; ``clear`` removes everything.
        """
        return run(self._told_delete(SYNC, _required(where)))

    async def adelete(self, where: Filter, /) -> int:
        """Remove the records that match; see ``delete``."""
        return await self._told_delete(ASYNC, _required(where))

    def count(self, where: Filter | None = None, /) -> int:
        """Return how many records there are, or how many match."""
        return run(self._count(SYNC, where))

    async def acount(self, where: Filter | None = None, /) -> int:
        """Return how many records there are, or how many match."""
        return await self._count(ASYNC, where)

    def clear(self) -> None:
        """Remove every record."""
        run(self._told_delete(SYNC, None))

    async def aclear(self) -> None:
        """Remove every record."""
        await self._told_delete(ASYNC, None)

    def search(
        self,
        query: Embedding,
        /,
        *,
        k: int = 10,
        where: Filter | None = None,
        min_score: float | None = None,
        embeddings: bool = False,
    ) -> list[Hit]:
        """Return the ``k`` best records that match ``where``, best first.

        The filter applies inside the search: ``k`` records come back when ``k`` match.

        Args:
            query: Its dense vector, shape ``(dimension,)``.
            k: How many hits at most.
            where: Which records take part.
            min_score: Leave out hits below this score.
            embeddings: Add the vectors to the hits.

        Raises:
            DimensionMismatch: The query does not fit the index.
            InvalidInput: The query holds NaN or infinity, or ``k`` is below 1.
        """
        batch = _single(query)
        return run(self._checked_search(SYNC, batch, k, where, min_score, embeddings))[0]

    async def asearch(
        self,
        query: Embedding,
        /,
        *,
        k: int = 10,
        where: Filter | None = None,
        min_score: float | None = None,
        embeddings: bool = False,
    ) -> list[Hit]:
        """Return the ``k`` best records; see ``search``."""
        batch = _single(query)
        return (await self._checked_search(ASYNC, batch, k, where, min_score, embeddings))[0]

    def search_batch(
        self,
        queries: EmbeddingBatch,
        /,
        *,
        k: int = 10,
        where: Filter | None = None,
        min_score: float | None = None,
        embeddings: bool = False,
    ) -> list[list[Hit]]:
        """Search for several queries at once; one list of hits for each. See ``search``."""
        return run(self._checked_search(SYNC, queries, k, where, min_score, embeddings))

    async def asearch_batch(
        self,
        queries: EmbeddingBatch,
        /,
        *,
        k: int = 10,
        where: Filter | None = None,
        min_score: float | None = None,
        embeddings: bool = False,
    ) -> list[list[Hit]]:
        """Search for several queries at once; one list of hits for each. See ``search``."""
        return await self._checked_search(ASYNC, queries, k, where, min_score, embeddings)

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

    async def _checked_add(self, io: Runtime, records: RecordBatch) -> list[str]:
        ids = list(records.ids)
        if not ids:
            return []
        vectors = self._check_vectors(records.embeddings, "record", ids)
        check_columns(records)
        # One pass, and the caller keeps the right to change what was passed in.
        copy = replace(
            records,
            ids=ids,
            texts=list(records.texts),
            metadatas=[copy_metadata(m) for m in records.metadatas or [{}] * len(ids)],
            document_ids=list(records.document_ids or [None] * len(ids)),
        )
        try:
            await self._add(io, copy, vectors)
        finally:  # after a failure too: a server may have stored what it could not confirm
            await self._tell(io, [*ids, *(copy.document_ids or [])])
        return ids

    async def _told_delete(self, io: Runtime, where: Filter | None) -> int:
        if not self._listeners:
            return await self._delete(io, where)
        if where is None:
            try:
                return await self._delete(io, None)
            finally:
                for each in self._listeners:
                    await io.call(each.changed_everything, each.achanged_everything)
        gone = await self._find(io, where, None, False)
        try:
            # Exactly those, and not what has come to match since.
            return await self._delete(io, Ids([record.id for record in gone])) if gone else 0
        finally:
            await self._tell(io, [name for r in gone for name in (r.id, r.document_id)])

    async def _tell(self, io: Runtime, names: Sequence[str | None]) -> None:
        told = {name for name in names if name is not None} if self._listeners else set()
        if told:
            for each in self._listeners:
                await io.call(each.changed, each.achanged, *told)

    async def _checked_search(
        self,
        io: Runtime,
        queries: EmbeddingBatch,
        k: int,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        if k < 1:
            raise InvalidInput(f"The best {k} hits were asked for.", fix="Ask for 1 or more.")
        if not len(queries):
            return []
        vectors = self._check_vectors(queries, "query")
        found = await self._search(io, vectors, k, where, min_score, embeddings)
        if collecting() is not None:
            used(name for hits in found for hit in hits for name in (hit.id, hit.document_id))
        return found

    def _check_vectors(
        self, batch: EmbeddingBatch, what: str, ids: Sequence[str] | None = None
    ) -> Dense:
        """Return the dense vectors as one contiguous array, or say what is wrong with them."""
        if batch.dense is None:
            raise InvalidInput(
                f"A {what} came without a dense vector.",
                fix='Embed it with outputs that include "dense".',
            )
        vectors = np.ascontiguousarray(batch.dense, dtype=np.float32)
        if vectors.ndim != 2:
            raise InvalidInput(
                f"The vectors have shape {vectors.shape}.", fix="Pass shape (n, dimension)."
            )
        if ids is not None and len(vectors) != len(ids):
            raise InvalidInput(
                f"{len(ids)} ids came with {len(vectors)} vectors.", fix="Pass one for each record."
            )
        self._check_dimension(vectors.shape[1], what)
        finite = np.isfinite(vectors)
        if not finite.all():
            row = int(np.argmin(finite.all(axis=1)))
            name = f"{what} {ids[row]!r}" if ids else f"{what} {row}"
            raise InvalidInput(
                f"The vector of {name} holds NaN or infinity. Nothing was changed.",
                fix="Check the text and the model; leave the record out or embed it again.",
            )
        return vectors

    def _check_dimension(self, dimension: int, what: str) -> None:
        if not dimension or dimension != (self._dimension or dimension):
            raise DimensionMismatch(
                f"The {what} vectors have dimension {dimension}, "
                f"the index has {self._dimension or 'none yet'}. Nothing was changed.",
                fix="Use the embedding model that the index was made with, or make a new index.",
            )


def _single(query: Embedding) -> EmbeddingBatch:
    """Return a batch of one; a query without any vector is refused, not taken for no query."""
    if query.dense is None:
        raise InvalidInput(
            "A query came without a dense vector.",
            fix='Embed it with outputs that include "dense".',
        )
    return EmbeddingBatch.of_dense(query.dense)


def _required(where: Filter | None) -> Filter:
    if not isinstance(where, Filter):
        raise InvalidInput(
            f"A delete was asked for with {where!r} instead of a filter.",
            fix="Pass Ids([...]), Documents([...]) or another filter; clear() removes everything.",
        )
    return where
