"""What every vector index does around its own operations, written once for both colours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ragopt._runtime import Runtime
from ragopt.errors import DimensionMismatch, InvalidInput
from ragopt.filters import Filter, Ids
from ragopt.fusion import By, Fusion, candidates, fuse
from ragopt.indexes.checks import check_columns, check_sparse, copy_metadata
from ragopt.protocols import ChangeListener
from ragopt.sources import collecting, used
from ragopt.types import (
    Dense,
    EmbeddingBatch,
    Hit,
    Metric,
    Output,
    Record,
    RecordBatch,
    SparseVector,
)


class IndexOperations(ABC):
    """The operations of an index, and the checks before and the telling after them.

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
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        """Search for queries that have been checked, shape ``(n, dimension)``, n >= 1.

        ``k`` is None only with a ``min_score``.
        """

    async def _search_sparse(
        self,
        io: Runtime,
        queries: Sequence[SparseVector],
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        """Search by sparse vectors: records of an inner product above 0."""
        raise InvalidInput(
            f"{type(self).__name__} does not search by sparse vectors.",
            fix='Search by="dense", or use another index.',
        )

    @abstractmethod
    async def _close(self, io: Runtime) -> None: ...

    async def _checked_add(self, io: Runtime, records: RecordBatch) -> list[str]:
        ids = list(records.ids)
        if not ids:
            return []
        vectors = self._check_vectors(records.embeddings, "record", ids)
        self._check_kept(records.embeddings)
        if records.embeddings.sparse is not None:
            check_sparse(records.embeddings, "record", ids)
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
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
        by: By,
        least: int = 0,
    ) -> list[list[Hit]]:
        if k is None and min_score is None:
            raise InvalidInput(
                "A search was to return everything.", fix="Give k, or min_score; find() lists all."
            )
        if k is not None and k < 1:
            raise InvalidInput(f"The best {k} hits were asked for.", fix="Ask for 1 or more.")
        if max(len(queries), least) == 0:
            return []
        if isinstance(by, Fusion):
            found = await self._fused(io, queries, k, where, min_score, embeddings, by)
        else:
            found = await self._by(io, by, queries, k, where, min_score, embeddings)
        if collecting() is not None:
            used(name for hits in found for hit in hits for name in (hit.id, hit.document_id))
        return found

    async def _by(
        self, io: Runtime, way: Output, queries: EmbeddingBatch, *how: Any
    ) -> list[list[Hit]]:
        """Search by one kind of vector."""
        if way == "dense":
            return await self._search(io, self._check_vectors(queries, "query"), *how)
        if way == "sparse":
            return await self._search_sparse(io, check_sparse(queries, "query"), *how)
        raise InvalidInput(
            f"An index cannot search by {way!r}.", fix='Search by "dense", "sparse" or a Fusion.'
        )

    async def _fused(
        self,
        io: Runtime,
        queries: EmbeddingBatch,
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
        fusion: Fusion,
    ) -> list[list[Hit]]:
        if k is None:
            raise InvalidInput("A fusion was asked for all hits.", fix="Give it a k.")
        most = candidates(fusion, k)
        ways = list(fusion.weights)
        found = await io.gather(
            self._by(io, way, queries, most, where, None, embeddings) for way in ways
        )
        return [
            [
                hit
                for hit in fuse(dict(zip(ways, lists, strict=True)), fusion, k)
                if min_score is None or hit.score >= min_score
            ]
            for lists in zip(*found, strict=True)
        ]

    def _check_kept(self, batch: EmbeddingBatch) -> None:
        """Refuse vectors that would be lost."""
        searched = type(self)._search_sparse is not IndexOperations._search_sparse
        kind = None
        if batch.sparse is not None and not searched:
            kind = "sparse vectors"
        elif batch.multi is not None:
            kind = "multi-vectors"
        if kind is not None:
            raise InvalidInput(
                f"{type(self).__name__} keeps no {kind}. Nothing was stored.",
                fix="Embed without them: outputs says which vectors are made.",
            )

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
