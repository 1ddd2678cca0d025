"""Sparse vectors in the shapes that vector stores and frameworks take, and back again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from ragopt._imports import require
from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput, PruningWarning
from ragopt.protocols import Embedder
from ragopt.types import Output, Role, SparseVector

T = TypeVar("T")
Lists: TypeAlias = tuple[list[list[int]], list[list[float]]]

PGVECTOR_STORED = 16_000
"""Non-zero entries of a ``sparsevec`` that PostgreSQL stores."""
PGVECTOR_INDEXED = 1_000
"""Non-zero entries of a ``sparsevec`` that an HNSW index of pgvector takes."""

_PGVECTOR_DIMENSIONS = 1_000_000_000
_SPARSE: tuple[Output, ...] = ("sparse",)


class SparseEncoder(Generic[T]):
    """The sparse vectors of an embedder, under the names that vector stores call.

    ``embed_documents`` and ``embed_query`` are what ``langchain_qdrant`` and ``langchain_milvus``
    call, ``encode_documents`` and ``encode_queries`` what LlamaIndex's ``MilvusVectorStore`` calls.

    Args:
        embedder: An embedder with sparse vectors, such as a ``BGEM3Embedder`` or a cache over one.
        shape: What becomes of each vector: ``SparseVector.to_lists`` for Qdrant,
            ``SparseVector.to_dict`` for Milvus.

    Examples:
        >>> SparseEncoder(embedder, SparseVector.to_dict).embed_query("How do I open a file?")
    """

    def __init__(self, embedder: Embedder, shape: Callable[[SparseVector], T]) -> None:
        self.embedder = embedder
        self._shape = shape

    def embed_documents(self, texts: list[str]) -> list[T]:
        """Return the vector of each document."""
        return run(self._encode(SYNC, texts, "document"))

    async def aembed_documents(self, texts: list[str]) -> list[T]:
        """Return the vector of each document."""
        return await self._encode(ASYNC, texts, "document")

    def embed_query(self, query: str) -> T:
        """Return the vector of a query."""
        return run(self._encode(SYNC, [query], "query"))[0]

    async def aembed_query(self, query: str) -> T:
        """Return the vector of a query."""
        return (await self._encode(ASYNC, [query], "query"))[0]

    def encode_documents(self, documents: list[str]) -> list[T]:
        """Return the vector of each document; see ``embed_documents``."""
        return self.embed_documents(documents)

    async def async_encode_documents(self, documents: list[str]) -> list[T]:
        """Return the vector of each document; see ``embed_documents``."""
        return await self.aembed_documents(documents)

    def encode_queries(self, queries: list[str]) -> list[T]:
        """Return the vector of each query."""
        return run(self._encode(SYNC, queries, "query"))

    async def async_encode_queries(self, queries: list[str]) -> list[T]:
        """Return the vector of each query."""
        return await self._encode(ASYNC, queries, "query")

    async def _encode(self, io: Runtime, texts: list[str], role: Role) -> list[T]:
        embedder = self.embedder
        batch = await io.call(embedder.embed, embedder.aembed, texts, role=role, outputs=_SPARSE)
        return [self._shape(vector) for vector in batch.sparse or ()]


def sparse_fn(embedder: Embedder, role: Role = "document") -> Callable[[list[str]], Lists]:
    """Return a function from texts to ``(indices, values)``, one list of each for every text.

    LlamaIndex's ``QdrantVectorStore`` takes one for documents, ``sparse_doc_fn``, and one for
    queries, ``sparse_query_fn``.

    Args:
        embedder: An embedder with sparse vectors.
        role: Whether the texts are queries or documents.

    Examples:
        >>> indices, values = sparse_fn(embedder, "query")(["How do I open a file?"])
    """

    def encode(texts: list[str]) -> Lists:
        return to_lists(embedder.embed(texts, role=role, outputs=_SPARSE).sparse or ())

    return encode


def to_lists(vectors: Iterable[SparseVector]) -> Lists:
    """Return ``(indices, values)`` of a batch: a list of plain numbers for each vector."""
    lists = [vector.to_lists() for vector in vectors]
    return [each.indices for each in lists], [each.values for each in lists]


def from_lists(
    indices: Sequence[Sequence[int]], values: Sequence[Sequence[float]]
) -> list[SparseVector]:
    """Build a batch from ``(indices, values)``; the indices may have any order.

    Raises:
        InvalidInput: The lengths differ, or the indices of a vector are not unique and >= 0.
    """
    if len(indices) != len(values):
        raise InvalidInput(
            f"Indices of {len(indices)} and values of {len(values)} sparse vectors were given.",
            fix="Give one list of each for every vector.",
        )
    return [SparseVector.from_lists(*each) for each in zip(indices, values, strict=True)]


def to_csr(vectors: Sequence[SparseVector], dimension: int) -> Any:
    """Return a batch as one ``scipy.sparse.csr_array``, as Milvus and scikit-learn take it.

    Args:
        vectors: One for each row; none is allowed.
        dimension: Columns: the size of the model's vocabulary, such as 250,002 of BGE-M3.

    Returns:
        Shape ``(len(vectors), dimension)``, float32.

    Raises:
        InvalidInput: The dimension is below 1, or an index is not below it.
        MissingDependency: SciPy is not installed.
    """
    sparse = require("scipy.sparse", "bge-m3")
    _check_dimension(vectors, dimension)
    ends = np.cumsum([0, *(len(vector) for vector in vectors)])
    # An empty array first, since there may be no vector.
    indices = np.concatenate([np.empty(0, np.int64), *(vector.indices for vector in vectors)])
    values = np.concatenate([np.empty(0, np.float32), *(vector.values for vector in vectors)])
    return sparse.csr_array((values, indices, ends), shape=(len(vectors), dimension))


def from_csr(matrix: Any) -> list[SparseVector]:
    """Build a batch from the rows of a SciPy sparse matrix or array of any format."""
    rows = matrix.tocsr(copy=True)  # which is changed in place
    rows.sum_duplicates()
    ends = rows.indptr.tolist()
    # Copies: a view would keep the whole batch in memory.
    return [
        SparseVector(rows.indices[start:end].copy(), rows.data[start:end].copy())
        for start, end in pairwise(ends)
    ]


def to_pgvector(vector: SparseVector, dimension: int, *, most: int | None = None) -> Any:
    """Return a ``pgvector.SparseVector``, for a column of the type ``sparsevec(dimension)``.

    Entries of the value 0 are not kept: pgvector has none.

    Args:
        vector: What a model says of one text.
        dimension: The size of the model's vocabulary, such as 250,002 of BGE-M3.
        most: Entries to keep: those of the highest weights, with a ``PruningWarning`` that says
            what is left out. ``PGVECTOR_INDEXED`` (1,000) where the column has an HNSW index.
            None for all, which may be ``PGVECTOR_STORED`` (16,000).

    Raises:
        InvalidInput: The dimension is not between 1 and 1,000,000,000, an index is not below
            it, a weight is not finite, or there are more entries than PostgreSQL stores.
        MissingDependency: pgvector is not installed.
    """
    pgvector = require("pgvector", "postgres")
    _check_dimension([vector], dimension, _PGVECTOR_DIMENSIONS)
    if not np.isfinite(vector.values).all():
        raise InvalidInput(
            "The sparse vector holds NaN or infinity, which pgvector does not store.",
            fix="Leave the text out, or run the model in a higher precision.",
        )
    entries = int(np.count_nonzero(vector.values))
    if most is not None and entries > most:
        vector, rest = vector.prune(most)
        lost = np.abs(rest.values).sum() / (np.abs(vector.values).sum() + np.abs(rest.values).sum())
        warnings.warn(
            f"A sparse vector of {entries:,} entries was pruned to the {most:,} of the highest "
            f"weights: {entries - most:,} entries and {lost:.1%} of the weight are left out.",
            PruningWarning,
            stacklevel=2,
        )
        entries = most
    if entries > PGVECTOR_STORED:
        raise InvalidInput(
            f"The sparse vector has {entries:,} entries, pgvector stores {PGVECTOR_STORED:,}.",
            fix=f"Keep the highest weights: most={PGVECTOR_STORED}, or most={PGVECTOR_INDEXED} "
            "for an HNSW index.",
        )
    return pgvector.SparseVector(vector.to_dict(), dimension)


def from_pgvector(value: Any) -> SparseVector:
    """Build a vector from a ``pgvector.SparseVector``, as the drivers return it."""
    return SparseVector.from_lists(value.indices(), value.values())


def _check_dimension(
    vectors: Sequence[SparseVector], dimension: int, largest: int = 2**63 - 1
) -> None:
    if not 1 <= dimension <= largest:
        raise InvalidInput(
            f"A dimension of {dimension:,} was given for sparse vectors.",
            fix=f"Give the size of the model's vocabulary, from 1 to {largest:,}.",
        )
    for row, vector in enumerate(vectors):
        highest = int(vector.indices[-1]) if len(vector) else -1
        if highest >= dimension:
            raise InvalidInput(
                f"Sparse vector {row} has the index {highest:,}, but the dimension is "
                f"{dimension:,}.",
                fix=f"Give the size of the model's vocabulary, {highest + 1:,} or more.",
            )
