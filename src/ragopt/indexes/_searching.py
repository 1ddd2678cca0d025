"""Searching in every way that there is, over what an index does for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain, islice
from math import inf, isfinite
from operator import index
from time import monotonic
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ragopt._runtime import ASYNC, SYNC, PerLoop, Runtime
from ragopt.errors import BackendUnavailable, DimensionMismatch, InvalidInput
from ragopt.filters import Filter, compile_filter
from ragopt.fusion import By, Fusion, Way, candidates, check_by, fuse
from ragopt.indexes._late import closest
from ragopt.indexes.checks import check_finite, check_multi, check_sparse, check_texts
from ragopt.sources import collecting, used
from ragopt.text import TextQuery, WeightedTerms, highest
from ragopt.types import Dense, EmbeddingBatch, Hit, Metric, Record, SparseVector

_UNDER_WAY = 16  # searches that have begun on one event loop; more make nothing faster
_MOST = 2**31 - 1  # hits that every backend can count to
_GROWTH = 4  # how many more records are looked at when too few held a phrase


class How(NamedTuple):
    """What a search returns, in the order in which the operations take it."""

    k: int | None
    where: Filter | None
    min_score: float | None
    embeddings: bool


class Searching(ABC):
    """The ways of searching, and the checks before them.

    Args:
        dimension: Length of the vectors; None to take it from the first record.
        metric: How vectors are compared.
    """

    #: Whether records come back with their multi-vectors.
    _keeps_multi: ClassVar[bool] = False

    def __init__(self, dimension: int | None, metric: Metric | str) -> None:
        if dimension is not None and dimension < 1:
            raise InvalidInput(
                f"An index was given the dimension {dimension}.", fix="Give a dimension above 0."
            )
        self._dimension = dimension
        self._metric = Metric(metric)
        self._patience = inf  # seconds that a search waits for those before it
        self._under_way: PerLoop[Any] = PerLoop(lambda: ASYNC.slots(_UNDER_WAY))

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
        raise self._cannot("sparse vectors")

    @abstractmethod
    async def _get(
        self, io: Runtime, ids: Sequence[str], embeddings: bool
    ) -> list[Record | None]: ...

    async def _search_terms(
        self,
        io: Runtime,
        queries: Sequence[WeightedTerms],
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        """Search the term vectors of the records' texts, as ``_search_sparse`` does others.

        Of a query with groups, only records that hold all terms of one of them are found.
        """
        raise self._cannot("text")

    async def _frequencies(self, io: Runtime, terms: Sequence[int]) -> tuple[int, list[int]]:
        """Return the number of records, and how many of them hold each term."""
        raise self._cannot("text")

    def _cannot(self, kind: str) -> InvalidInput:
        return InvalidInput(
            f"{type(self).__name__} does not search by {kind}.",
            fix='Search by="dense", or use another index.',
        )

    async def _checked_search(self, io: Runtime, *asked: Any) -> list[list[Hit]]:
        """Search when there is a turn to, so that hundreds do not begin in one turn of a loop."""
        if io is SYNC:
            return await self._begun(io, *asked)
        turns, begin = self._under_way.get(), monotonic()
        await turns.acquire()
        try:
            # A timer for each that waits would take as long as all else that is done until then.
            if monotonic() - begin > self._patience:
                raise BackendUnavailable(
                    f"A search in {self!r} could not begin within {self._patience} s: those before "
                    "it take too long.",
                    fix="Search less at the same time, or raise timeout.",
                )
            return await self._begun(io, *asked)
        finally:
            turns.release()

    async def _begun(
        self,
        io: Runtime,
        queries: EmbeddingBatch,
        texts: Sequence[str] | None,
        by: By,
        how: How,
        least: int = 0,
    ) -> list[list[Hit]]:
        check_by(by)
        how = _checked(how)
        if how.k is None and how.min_score is None:
            raise InvalidInput(
                "A search was to return everything.", fix="Give k, or min_score; find() lists all."
            )
        if texts is not None:
            check_texts(texts, len(queries))
        if max(len(queries), len(texts or ()), least) == 0:
            return []
        if isinstance(by, Fusion):
            found = await self._fused(io, queries, texts, by, how)
        else:
            found = await self._by(io, by, queries, texts, how)
        if collecting() is not None:
            used(name for hits in found for hit in hits for name in (hit.id, hit.document_id))
        return found

    async def _by(
        self, io: Runtime, way: Way, queries: EmbeddingBatch, texts: Sequence[str] | None, how: How
    ) -> list[list[Hit]]:
        """Search in one way."""
        if way == "dense":
            return await self._search(io, self._check_vectors(queries, "query"), *how)
        if way == "sparse":
            return await self._search_sparse(io, check_sparse(queries, "query"), *how)
        if way == "multi":
            if how.k is None:
                raise InvalidInput("A search by multi was asked for all.", fix="Give it a k.")
            named = await self._by(io, "dense", queries, texts, _candidates(how, Fusion()))
            return await self._late(io, queries, named, how)
        if texts is None:
            raise InvalidInput("A search by text came without one.", fix="Pass text=, the words.")
        return await self._by_text(io, [TextQuery(text) for text in texts], how)

    async def _fused(
        self,
        io: Runtime,
        queries: EmbeddingBatch,
        texts: Sequence[str] | None,
        fusion: Fusion,
        how: How,
    ) -> list[list[Hit]]:
        if how.k is None:
            raise InvalidInput("A fusion was asked for all hits.", fix="Give it a k.")
        each = _candidates(how, fusion)
        others: list[Way] = [way for way in fusion.weights if way != "multi"]
        lists = await self._legs(io, others or ["dense"], queries, texts, each)
        found = dict(zip(others, lists, strict=False))
        if "multi" in fusion.weights:
            named = [list(chain(*of_all)) for of_all in zip(*lists, strict=True)]
            found["multi"] = await self._late(io, queries, named, each)
        fused = (
            fuse({way: of_all[row] for way, of_all in found.items()}, fusion, how.k)
            for row in range(len(lists[0]))
        )
        least = how.min_score
        return [[hit for hit in hits if least is None or hit.score >= least] for hits in fused]

    async def _legs(
        self,
        io: Runtime,
        ways: Sequence[Way],
        queries: EmbeddingBatch,
        texts: Sequence[str] | None,
        how: How,
    ) -> list[list[list[Hit]]]:
        """Search in several ways, at the same time where the colour can."""
        return await io.gather(self._by(io, way, queries, texts, how) for way in ways)

    async def _late(
        self, io: Runtime, queries: EmbeddingBatch, named: Sequence[Sequence[Hit]], how: How
    ) -> list[list[Hit]]:
        """Compare the multi-vectors of queries with those of the records that were named."""
        vectors = check_multi(queries, "query")
        ids = [list(dict.fromkeys(hit.id for hit in hits)) for hits in named]
        known = await self._get(io, list(dict.fromkeys(chain(*ids))), True)
        passes = (lambda *_: True) if how.where is None else compile_filter(how.where)
        # They may have changed since they were named.
        records = {r.id: r for r in known if r and passes(r.id, r.document_id, r.metadata)}
        return [
            await io.cpu(
                closest,
                query,
                [records[id_] for id_ in each if id_ in records],
                how.k,
                how.min_score,
                how.embeddings,
            )
            for query, each in zip(vectors, ids, strict=True)
        ]

    async def _by_text(
        self, io: Runtime, queries: Sequence[TextQuery], how: How
    ) -> list[list[Hit]]:
        """Search term vectors, and leave out what has the letters of a phrase, but not in a row."""
        terms = sorted(set().union(*(query.terms for query in queries)))
        records, numbers = await self._frequencies(io, terms)
        holding = dict(zip(terms, numbers, strict=True))
        weighted = [query.weighted(records, holding) for query in queries]
        found: list[list[Hit]] = [[] for _ in queries]
        pending = [row for row, vector in enumerate(weighted) if len(vector)]
        wanted = how.k
        while pending:
            vectors = [weighted[row] for row in pending]
            lists = await self._search_terms(io, vectors, *how._replace(k=wanted))
            for row, hits in zip(pending, lists, strict=True):
                passed = (hit for hit in hits if queries[row].matches(hit.text))
                found[row] = list(islice(passed, how.k))
            if wanted is None or how.k is None:
                break
            pending = [
                row
                for row, hits in zip(pending, lists, strict=True)
                if len(found[row]) < how.k and len(hits) == wanted
            ]
            wanted *= _GROWTH
        for hits, vector in zip(found, weighted, strict=True):
            for hit in hits:
                hit.relevance = hit.score / highest(vector)
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
        # All at once: the sum of the squares is no number if one of them is none.
        if not isfinite(np.vdot(vectors, vectors)):
            check_finite(vectors, "vector", what, ids)
        return vectors

    def _check_dimension(self, dimension: int, what: str) -> None:
        if not dimension or dimension != (self._dimension or dimension):
            raise DimensionMismatch(
                f"The {what} vectors have dimension {dimension}, "
                f"the index has {self._dimension or 'none yet'}. Nothing was changed.",
                fix="Use the embedding model that the index was made with, or make a new index.",
            )


def _checked(how: How) -> How:
    """Return how to search with a ``k`` of Python's own, or say what is wrong."""
    k, least = how.k, how.min_score
    if least is not None and not isfinite(least):
        raise InvalidInput(
            f"The hits with a score of at least {least} were asked for.",
            fix="Give a finite number; without min_score no score is too low.",
        )
    if k is None:
        return how
    try:
        k = index(k)  # one of numpy's too
    except TypeError:
        k = 0
    if k < 1:
        raise InvalidInput(f"The best {how.k!r} hits were asked for.", fix="Ask for 1 or more.")
    return how if k is how.k and k <= _MOST else how._replace(k=min(k, _MOST))


def _candidates(how: How, fusion: Fusion) -> How:
    """Return how each way of a fusion searches."""
    return how._replace(k=min(candidates(fusion, how.k or 1), _MOST), min_score=None)
