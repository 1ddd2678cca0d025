"""What every index in this process has in common: a table of records and a lock."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np

from ragopt._operators import MISSING
from ragopt._runtime import Runtime, Turns
from ragopt.errors import UnkeyableValue
from ragopt.filters import Filter, Ids
from ragopt.indexes._lock import ReadWriteLock
from ragopt.indexes._postings import Postings
from ragopt.indexes._table import RecordTable, Rows, copied
from ragopt.indexes.base import BaseVectorIndex
from ragopt.indexes.scores import relevance, sparse_relevance, unit
from ragopt.keys import encode
from ragopt.text import WeightedTerms
from ragopt.types import (
    Dense,
    Embedding,
    Hit,
    IndexStats,
    Metric,
    Record,
    RecordBatch,
    SparseVector,
)

_PACK_ABOVE = 256  # gaps that are not worth packing
_FILTERS = 4  # whose rows are kept: eight bytes for each row


class LocalIndex(BaseVectorIndex):
    """An index over rows of vectors in memory. Safe to share: many readers or one writer.

    For the cosine, vectors are stored with length 1 and compared by inner product; what comes
    back as an embedding then has length 1 as well.
    """

    _keeps_multi = True

    def __init__(self, dimension: int | None = None, *, metric: Metric | str = Metric.COSINE):
        super().__init__(dimension, metric=metric)
        self._table = RecordTable()
        self._lock = ReadWriteLock()
        self._token = secrets.token_hex(8)
        self._turns = Turns()
        self._matching: dict[bytes, Rows] = {}  # rows of the last filters, since the last change
        self._matching_lock = Lock()

    @abstractmethod
    def _append(self, vectors: Dense) -> None:
        """Store vectors in the next rows; all of them, or raise and store none."""

    @abstractmethod
    def _keep(self, rows: Rows | None) -> None:
        """Keep these rows alone, in this order; None drops everything."""

    @abstractmethod
    def _vectors(self, rows: Rows) -> Dense:
        """Return the vectors of rows, shape ``(len(rows), dimension)``."""

    @abstractmethod
    def _held(self) -> tuple[str, int, bool]:
        """Return how vectors are searched, the bytes they take, and whether it is as asked for."""

    @abstractmethod
    def _nearest(self, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        """Return scores and rows of the ``k`` best among ``rows`` (None: there are no gaps).

        ``k`` is at most the number of rows to choose from. Shapes ``(n, k)``, best first.
        """

    async def _version(self, io: Runtime) -> str:
        return self._token

    async def _add(self, io: Runtime, records: RecordBatch, vectors: Dense) -> None:
        await io.cpu(self._add_now, records, vectors)

    async def _get(self, io: Runtime, ids: Sequence[str], embeddings: bool) -> list[Record | None]:
        found = {record.id: record for record in await self._find(io, Ids(ids), None, embeddings)}
        return [found.get(id_) for id_ in ids]

    async def _find(
        self, io: Runtime, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[Record]:
        return await io.brief(self._turns, self._find_now, where, limit, embeddings)

    async def _delete(self, io: Runtime, where: Filter | None) -> int:
        return await io.cpu(self._delete_now, where)

    async def _count(self, io: Runtime, where: Filter | None) -> int:
        return await io.brief(self._turns, self._count_now, where)

    async def _counts(self, io: Runtime, key: str, where: Filter | None) -> list[tuple[Any, int]]:
        return await io.brief(self._turns, self._counts_now, key, where)

    async def _stats(self, io: Runtime) -> IndexStats:
        return await io.brief(self._turns, self._stats_now)

    async def _search(
        self,
        io: Runtime,
        queries: Dense,
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        return await io.brief(
            self._turns, self._search_now, queries, k, where, min_score, embeddings
        )

    async def _search_sparse(
        self, io: Runtime, queries: Sequence[SparseVector], *how: Any
    ) -> list[list[Hit]]:
        return await io.brief(self._turns, self._search_sparse_now, queries, *how)

    async def _search_terms(
        self, io: Runtime, queries: Sequence[WeightedTerms], *how: Any
    ) -> list[list[Hit]]:
        return await io.brief(self._turns, self._search_terms_now, queries, *how)

    async def _frequencies(self, io: Runtime, terms: Sequence[int]) -> tuple[int, list[int]]:
        return await io.brief(self._turns, self._frequencies_now, terms)

    async def _close(self, io: Runtime) -> None:
        return None

    # -- blocking work, in place or in a thread --------------------------------------------

    def _add_now(self, records: RecordBatch, vectors: Dense) -> None:
        if self._metric is Metric.COSINE:
            vectors = unit(vectors)
        with self._lock.write():
            self._check_dimension(vectors.shape[1], "record")  # another thread may have set it
            self._append(vectors)
            self._dimension = vectors.shape[1]
            self._table.append(records)
            self._changed()

    def _find_now(self, where: Filter | None, limit: int | None, embeddings: bool) -> list[Record]:
        with self._lock.read():
            rows = self._table.select(where)[:limit]
            vectors = self._vectors(rows) if embeddings and len(rows) else None
            return [
                Record(
                    id=self._table.ids[row],
                    text=self._table.texts[row],
                    metadata=copied(self._table.metadatas[row]),
                    document_id=self._table.document_ids[row],
                    embedding=Embedding()
                    if vectors is None
                    else self._table.embedding(row, vectors[i]),
                )
                for i, row in enumerate(rows.tolist())
            ]

    def _delete_now(self, where: Filter | None) -> int:
        with self._lock.write():
            if where is None:
                removed = self._table.live
                self._table = RecordTable()
                self._keep(None)
                self._changed()
                return removed
            rows = self._table.select(where)
            if len(rows):
                self._table.remove(rows)
                self._changed()
            return len(rows)

    def _count_now(self, where: Filter | None) -> int:
        with self._lock.read():
            return self._table.live if where is None else len(self._table.select(where))

    def _counts_now(self, key: str, where: Filter | None) -> list[tuple[Any, int]]:
        with self._lock.read():
            metadatas = self._table.metadatas
            rows = self._table.select(where).tolist()
            return [(metadatas[row].get(key, MISSING), 1) for row in rows]

    def _stats_now(self) -> IndexStats:
        with self._lock.read():
            kind, size, indexed = self._held()
            return IndexStats(
                records=self._table.live,
                dimension=self._dimension,
                metric=self._metric,
                kind=kind,
                model=self._model,
                bytes=size + self._table.nbytes,
                indexed=float(indexed),
            )

    def _search_now(
        self,
        queries: Dense,
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        if self._metric is Metric.COSINE:
            queries = unit(queries)
        with self._lock.read():
            rows = self._among(where)
            most = len(self._table) if rows is None else len(rows)
            k = most if k is None else min(k, most)
            if k == 0:
                return [[] for _ in queries]
            scores, found = self._nearest(queries, k, rows)
            return [
                self._hits(relevance(self._metric, query), top, places, min_score, embeddings)
                for query, top, places in zip(queries, scores, found, strict=True)
            ]

    def _search_sparse_now(self, queries: Sequence[SparseVector], *how: Any) -> list[list[Hit]]:
        with self._lock.read():
            return self._heaviest(self._table.postings, queries, *how)

    def _search_terms_now(self, queries: Sequence[WeightedTerms], *how: Any) -> list[list[Hit]]:
        with self._lock.read():
            terms = self._table.terms
            if terms is not None:
                return self._heaviest(terms, queries, *how)
        with self._lock.write():  # packed, or emptied, since the frequencies were asked for
            return self._heaviest(self._table.read_texts(), queries, *how)

    def _frequencies_now(self, terms: Sequence[int]) -> tuple[int, list[int]]:
        with self._lock.read():
            if self._table.terms is not None:
                return self._table.live, self._table.holding(terms)
        with self._lock.write():
            return self._table.live, self._table.holding(terms)

    def _heaviest(
        self,
        postings: Postings,
        queries: Sequence[SparseVector],
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        """Return the records of the highest inner products above 0."""
        rows = self._among(where)
        found = []
        for query in queries:
            scores = postings.scores(query, len(self._table))
            if isinstance(query, WeightedTerms) and query.groups:
                scores[~postings.holding_all(query.groups, len(self._table))] = 0
            touched = np.flatnonzero(scores > 0) if rows is None else rows[scores[rows] > 0]
            most = len(touched) if k is None else min(k, len(touched))
            (top,), (places,) = best(scores[None, touched], most, touched)
            relevant = sparse_relevance(query)
            found.append(self._hits(relevant, top, places, min_score, embeddings))
        return found

    def _among(self, where: Filter | None) -> Rows | None:
        """Return the rows to search; None for all of them, if there are no gaps.

        Rows of the last few filters are kept until a change: a tenant asks more than once, and
        looking at the metadata of 50,000 records takes as long as comparing their vectors.
        """
        if where is None:
            return self._table.select(None) if self._table.gaps else None
        try:
            key = encode(where)
        except UnkeyableValue:  # a function
            return self._table.select(where)
        rows = self._matching.get(key)
        if rows is None:
            rows = self._table.select(where)
            with self._matching_lock:
                while len(self._matching) >= _FILTERS:
                    del self._matching[next(iter(self._matching))]
                self._matching[key] = rows
        return rows

    def _hits(
        self,
        relevant: Callable[[float], float],
        scores: Dense,
        rows: Rows,
        min_score: float | None,
        embeddings: bool,
    ) -> list[Hit]:
        table = self._table
        vectors = self._vectors(rows) if embeddings and len(rows) else None
        ids, texts, metadatas, documents = (
            table.ids, table.texts, table.metadatas, table.document_ids,
        )  # fmt: skip
        return [
            Hit(
                ids[row],
                score,
                relevant(score),
                texts[row],
                copied(metadatas[row]),
                documents[row],
                None if vectors is None else table.embedding(row, vectors[rank]),
            )
            for rank, (score, row) in enumerate(zip(scores.tolist(), rows.tolist(), strict=True))
            if min_score is None or score >= min_score
        ]

    def _changed(self) -> None:
        """Move the version, and pack when more than half of the rows are gaps."""
        if self._table.gaps > max(_PACK_ABOVE, self._table.live):
            self._pack()
        self._token = secrets.token_hex(8)
        self._matching.clear()

    def _pack(self) -> None:
        """Close the gaps, in the table and beside it; or raise and leave both as they are."""
        packed, kept = self._table.packed()
        self._keep(kept)
        self._table = packed


def best(scores: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
    """Return the ``k`` best columns of scores ``(n, m)`` and their rows; ties by row, ascending."""
    m = scores.shape[1]
    if k < m:
        part = np.argpartition(-scores, k - 1, axis=1)
        # argpartition breaks ties at the k-th place at random: take all of those, then sort.
        limit = np.take_along_axis(scores, part[:, k - 1 : k], axis=1)
        picks = [np.flatnonzero(row >= low) for row, low in zip(scores, limit, strict=True)]
    else:
        picks = [np.arange(m) for _ in scores]
    order = np.stack([_first(pick, row, k) for pick, row in zip(picks, scores, strict=True)])
    top = np.take_along_axis(scores, order, axis=1)
    return top, order if rows is None else rows[order]


def _first(candidates: Rows, scores: Dense, k: int) -> Rows:
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
