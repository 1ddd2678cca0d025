"""The two faces of a vector index: every public method, sync and async, over one body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Self

import numpy as np

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC
from ragopt.errors import InvalidInput
from ragopt.filters import Filter, Scalar
from ragopt.fusion import By
from ragopt.indexes._operations import IndexOperations
from ragopt.indexes._searching import How
from ragopt.protocols import ChangeListener
from ragopt.types import (
    Embedding,
    EmbeddingBatch,
    Hit,
    IndexStats,
    Metric,
    Record,
    RecordBatch,
)

_FLOAT32 = np.dtype(np.float32)


class BaseVectorIndex(IndexOperations):
    """A ``VectorIndex`` from the abstract methods of ``IndexOperations``.

    Args:
        dimension: Length of the vectors; None to take it from the first record.
        metric: How vectors are compared.
    """

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

    def version(self) -> str:
        """Return a token that every change replaces. Cached results are keyed on it."""
        return run(self._version(SYNC))

    async def aversion(self) -> str:
        """Return a token that every change replaces; see ``version``."""
        return await self._version(ASYNC)

    def check_model(self, model: str, /, *, replace: bool = False) -> None:
        """Make sure that the vectors here are made by this model; the first one named is kept.

        The stores of LangChain call it before they embed anything. A cleared index takes any model.

        Args:
            model: Name of the embedding model.
            replace: Keep this name instead of the one that is kept; for a model that was renamed.

        Raises:
            InvalidInput: The index was made by another model.
        """
        run(self._check_model(SYNC, model, replace))

    async def acheck_model(self, model: str, /, *, replace: bool = False) -> None:
        """Make sure that the vectors here are made by this model; see ``check_model``."""
        await self._check_model(ASYNC, model, replace)

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
        return run(self._checked_get(SYNC, ids, embeddings))

    async def aget(self, ids: Sequence[str], /, *, embeddings: bool = False) -> list[Record | None]:
        """Return a record, or None, for each id, in the order of the ids."""
        return await self._checked_get(ASYNC, ids, embeddings)

    def find(
        self, where: Filter | None = None, /, *, limit: int | None = None, embeddings: bool = False
    ) -> list[Record]:
        """Return the records that match, in the order they were added."""
        return run(self._find(SYNC, where, _checked(limit), embeddings))

    async def afind(
        self, where: Filter | None = None, /, *, limit: int | None = None, embeddings: bool = False
    ) -> list[Record]:
        """Return the records that match, in the order they were added."""
        return await self._find(ASYNC, where, _checked(limit), embeddings)

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

    def counts(self, key: str, where: Filter | None = None, /) -> list[tuple[Scalar, int]]:
        """Return each value of a metadata key, and how many of the records have it.

        The most frequent comes first; equally frequent ones are in order: None, False and True,
        numbers, dates, times, times with a zone, texts. A record counts once for each different
        item of a list, and for nothing if it lacks the key: ``count(~F(key).exists())`` counts
        those.

        Values are the same if a filter takes them for the same: ``True`` is not 1, and 1.0 is,
        which comes back as 1; times with a zone come back in UTC. What no filter can ask for (a
        dict, a list in a list, NaN, bytes) is left out.

        PostgreSQL looks at every record that matches, and returns the values alone. Redis has to
        send the metadata of every record that matches and has the key, which takes as long as
        ``find``.

        Args:
            key: The metadata key.
            where: Which records are counted; None for all.

        Raises:
            InvalidInput: No filter could have this key.
            StorageError: The backend failed.
        """
        return run(self._checked_counts(SYNC, key, where))

    async def acounts(self, key: str, where: Filter | None = None, /) -> list[tuple[Scalar, int]]:
        """Return each value of a metadata key, and how many records have it; see ``counts``."""
        return await self._checked_counts(ASYNC, key, where)

    def clear(self) -> None:
        """Remove every record."""
        run(self._clear(SYNC))

    async def aclear(self) -> None:
        """Remove every record."""
        await self._clear(ASYNC)

    def stats(self) -> IndexStats:
        """Return what the index holds and takes."""
        return run(self._stats(SYNC))

    async def astats(self) -> IndexStats:
        """Return what the index holds and takes."""
        return await self._stats(ASYNC)

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

        Args:
            query: Its dense vector, shape ``(dimension,)``, its sparse vector, both, or neither
                for a search by text.
            k: How many hits at most; None for all from ``min_score`` on (range search).
            where: Which records take part.
            min_score: Leave out hits below this score. For ``l2`` it is minus a radius.
            embeddings: Add the vectors to the hits.
            by: ``"dense"``; ``"sparse"``, which finds records of an inner product above 0;
                ``"text"``, which finds records with one of the words, ranked by BM25; or a
                ``Fusion`` of them.
            text: The words to look for; where ``by`` has text in it.

        Raises:
            DimensionMismatch: The query does not fit the index.
            InvalidInput: The query lacks the vector to search by, or it holds NaN or infinity;
                ``k`` is below 1; or the index cannot search like that.
        """
        how = How(k, where, min_score, embeddings)
        return run(self._checked_search(SYNC, *_one(query, text), by, how, 1))[0]

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
    ) -> list[Hit]:
        """Return the ``k`` best records; see ``search``."""
        how = How(k, where, min_score, embeddings)
        return (await self._checked_search(ASYNC, *_one(query, text), by, how, 1))[0]

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
        """Search for several queries at once; one list of hits for each. See ``search``."""
        how = How(k, where, min_score, embeddings)
        return run(self._checked_search(SYNC, queries, texts, by, how))

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
    ) -> list[list[Hit]]:
        """Search for several queries at once; one list of hits for each. See ``search``."""
        how = How(k, where, min_score, embeddings)
        return await self._checked_search(ASYNC, queries, texts, by, how)

    def close(self) -> None:
        """Release files, connections and memory. Closing twice is no error."""
        run(self._close(SYNC))

    async def aclose(self) -> None:
        """Release files, connections and memory. Closing twice is no error."""
        await self._close(ASYNC)

    def __reduce__(self) -> NoReturn:
        raise InvalidInput(
            f"{self!r} cannot be copied or pickled: it has locks and connections.",
            fix="Make another one of the same arguments; a FaissIndex can be saved and loaded.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _one(query: Embedding, text: str | None) -> tuple[EmbeddingBatch, list[str] | None]:
    dense, usual = query.dense, query.sparse is None and query.multi is None
    if usual and type(dense) is np.ndarray and dense.ndim == 1 and dense.dtype is _FLOAT32:
        batch = EmbeddingBatch(dense[None])  # in half the time
    else:
        batch = EmbeddingBatch.of([query])
    return batch, None if text is None else [text]


def _checked(limit: int | None) -> int | None:
    if limit is not None and limit < 0:
        raise InvalidInput(f"The first {limit} records were asked for.", fix="Ask for 0 or more.")
    return limit


def _required(where: Filter | None) -> Filter:
    if not isinstance(where, Filter):
        raise InvalidInput(
            f"A delete was asked for with {where!r} instead of a filter.",
            fix="Pass Ids([...]), Documents([...]) or another filter; clear() removes everything.",
        )
    return where
