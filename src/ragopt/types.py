"""Values that travel between the parts of ragopt: vectors, records and hits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragopt.errors import InvalidInput

Dense: TypeAlias = NDArray[np.float32]
Metadata: TypeAlias = Mapping[str, Any]
Role: TypeAlias = Literal["query", "document"]
Output: TypeAlias = Literal["dense", "sparse", "multi"]

OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "multi")
DENSE: tuple[Output, ...] = ("dense",)


class Metric(StrEnum):
    """How two dense vectors are compared. Scores are similarities: higher is better."""

    COSINE = "cosine"
    """Cosine of the angle, in [-1, 1]."""
    IP = "ip"
    """Inner product, unbounded."""
    L2 = "l2"
    """Minus the Euclidean distance, at most 0."""

    @classmethod
    def _missing_(cls, value: object) -> Metric:
        names = ", ".join(repr(str(metric)) for metric in cls)
        raise InvalidInput(f"{value!r} is not a metric.", fix=f"Use one of {names}.")


class SparseLists(NamedTuple):
    """A sparse vector as two lists of plain Python numbers, as Qdrant takes it."""

    indices: list[int]
    values: list[float]


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """A sparse vector: the indices of its non-zero entries, ascending, and their values.

    Batches, SciPy and pgvector are the work of ``ragopt.embedders.sparse``.

    Args:
        indices: Token ids or term hashes, unique and ascending, shape ``(nnz,)``.
        values: Weights, shape ``(nnz,)``.

    Examples:
        >>> SparseVector.from_dict({7: 0.5, 3: 0.25}).to_lists()
        SparseLists(indices=[3, 7], values=[0.25, 0.5])
    """

    indices: NDArray[np.int64]
    values: Dense

    def __post_init__(self) -> None:
        indices = np.asarray(self.indices, dtype=np.int64)
        values = np.asarray(self.values, dtype=np.float32)
        if indices.ndim != 1 or indices.shape != values.shape:
            raise InvalidInput(
                f"A sparse vector has indices of shape {indices.shape} "
                f"and values of shape {values.shape}.",
                fix="Pass two one-dimensional sequences of the same length.",
            )
        if indices.size and (indices[0] < 0 or bool(np.any(indices[1:] <= indices[:-1]))):
            raise InvalidInput(
                "The indices of a sparse vector are not unique, ascending and >= 0.",
                fix="Give each index once. SparseVector.from_dict and from_lists sort them.",
            )
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "values", values)

    @classmethod
    def from_dict(cls, weights: Mapping[int, float]) -> SparseVector:
        """Build a vector from ``{index: value}``."""
        indices = sorted(weights)
        return cls(
            np.array(indices, dtype=np.int64),
            np.array([weights[i] for i in indices], dtype=np.float32),
        )

    def to_dict(self) -> dict[int, float]:
        """Return ``{index: value}`` with plain Python numbers."""
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))

    @classmethod
    def from_lists(cls, indices: Sequence[int], values: Sequence[float]) -> SparseVector:
        """Build a vector from indices in any order, and the value of each.

        Raises:
            InvalidInput: An index is given twice or is below 0, or the lengths differ.
        """
        unsorted = np.asarray(indices, dtype=np.int64)
        weights = np.asarray(values, dtype=np.float32)
        if unsorted.ndim != 1 or unsorted.shape != weights.shape:
            return cls(unsorted, weights)  # which says what is wrong
        order = np.argsort(unsorted)
        return cls(unsorted[order], weights[order])

    def to_lists(self) -> SparseLists:
        """Return ``(indices, values)`` as lists of plain Python numbers."""
        return SparseLists(self.indices.tolist(), self.values.tolist())

    def prune(self, most: int) -> tuple[SparseVector, SparseVector]:
        """Part the entries of the highest weights from all others.

        A weight counts by its magnitude. Of equal ones, those of lower indices are kept.

        Args:
            most: How many entries to keep.

        Returns:
            Two vectors: what is kept, and what is not.

        Raises:
            InvalidInput: ``most`` is below 0.
        """
        if most < 0:
            raise InvalidInput(f"{most} entries were to be kept.", fix="Keep 0 or more.")
        kept = np.zeros(len(self), dtype=bool)
        kept[np.argsort(-np.abs(self.values), kind="stable")[:most]] = True
        return (
            SparseVector(self.indices[kept], self.values[kept]),
            SparseVector(self.indices[~kept], self.values[~kept]),
        )

    def dot(self, other: SparseVector) -> float:
        """Inner product with another sparse vector."""
        _, mine, theirs = np.intersect1d(
            self.indices, other.indices, assume_unique=True, return_indices=True
        )
        return float(self.values[mine] @ other.values[theirs])

    def __len__(self) -> int:
        return int(self.indices.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseVector):
            return NotImplemented
        return np.array_equal(self.indices, other.indices) and np.array_equal(
            self.values, other.values
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What a model says about one text: any of a dense, a sparse and a multi-vector.

    Args:
        dense: Shape ``(dimension,)``.
        sparse: Token id to weight.
        multi: One vector per token, shape ``(tokens, dimension)``.
    """

    dense: Dense | None = None
    sparse: SparseVector | None = None
    multi: Dense | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingBatch:
    """Embeddings of several texts, in the order of the texts. An output not asked for is None.

    Args:
        dense: Shape ``(n, dimension)``, float32.
        sparse: ``n`` sparse vectors.
        multi: ``n`` arrays of shape ``(tokens_i, dimension)``.
    """

    dense: Dense | None = None
    sparse: Sequence[SparseVector] | None = None
    multi: Sequence[Dense] | None = None

    def __post_init__(self) -> None:
        if self.sparse is None and self.multi is None:
            return
        sizes = {len(part) for part in (self.dense, self.sparse, self.multi) if part is not None}
        if len(sizes) > 1:
            raise InvalidInput(
                f"The parts of an embedding batch have different lengths: {sorted(sizes)}.",
                fix="Give every output one entry for each text.",
            )

    @classmethod
    def of_dense(cls, vectors: ArrayLike) -> EmbeddingBatch:
        """Build a batch from dense vectors of shape ``(n, dimension)``, or one of ``(dimension,)``.

        Raises:
            InvalidInput: The vectors are ragged or not numbers.
        """
        try:
            array = np.asarray(vectors, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"The vectors cannot be read as one array of numbers ({error}).",
                fix="Pass rows of the same length which hold numbers only.",
            ) from error
        if array.ndim == 1 and array.size:
            array = array[None, :]
        elif array.size == 0:
            array = array.reshape(0, array.shape[1] if array.ndim == 2 else 0)
        if array.ndim != 2:
            raise InvalidInput(
                f"The vectors have shape {array.shape}.",
                fix="Pass an array of shape (n, dimension).",
            )
        return cls(dense=array)

    def __len__(self) -> int:
        for part in (self.dense, self.sparse, self.multi):
            if part is not None:
                return len(part)
        return 0

    def __getitem__(self, row: int) -> Embedding:
        return Embedding(
            dense=None if self.dense is None else self.dense[row],
            sparse=None if self.sparse is None else self.sparse[row],
            multi=None if self.multi is None else self.multi[row],
        )

    def __iter__(self) -> Iterator[Embedding]:
        return (self[row] for row in range(len(self)))

    def to_lists(self) -> list[list[float]]:
        """Return the dense vectors as lists of Python numbers, as the frameworks want them."""
        vectors: list[list[float]] = np.asarray(self.dense).tolist()
        return vectors

    @classmethod
    def of(cls, embeddings: Sequence[Embedding]) -> EmbeddingBatch:
        """Gather single embeddings, which must carry the same outputs, into a batch."""
        if not embeddings:
            return cls()
        first = embeddings[0]
        for row, other in enumerate(embeddings[1:], 1):
            for name in OUTPUTS:
                if (getattr(first, name) is None) != (getattr(other, name) is None):
                    raise InvalidInput(
                        f"Embeddings 0 and {row} do not carry the same outputs ({name}).",
                        fix="Embed all of them with the same outputs.",
                    )
        dense = [e.dense for e in embeddings if e.dense is not None]
        sparse = [e.sparse for e in embeddings if e.sparse is not None]
        multi = [e.multi for e in embeddings if e.multi is not None]
        return cls(
            dense=cls.of_dense(dense).dense if dense else None,
            sparse=sparse or None,
            multi=multi or None,
        )


@dataclass(frozen=True, slots=True)
class EmbedderSpec:
    """What an embedder is: everything that its vectors depend on, except the text and the role.

    Args:
        model: Name or path of the model.
        revision: Commit or fingerprint of the weights; None where it cannot be known.
        dimension: Length of a dense vector; None before it is known.
        outputs: The outputs the embedder can make.
        params: Other settings that change the vectors, as sorted ``(name, value)`` pairs.
    """

    model: str
    revision: str | None = None
    dimension: int | None = None
    outputs: frozenset[Output] = frozenset({"dense"})
    params: tuple[tuple[str, str | int | float | bool | None], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One entry of a vector index.

    Args:
        id: Unique, not empty.
        text: The passage itself.
        metadata: Values of JSON types, dates included.
        document_id: The document that the passage was cut from.
        embedding: Present where it was asked for.
    """

    id: str
    text: str
    metadata: Metadata = field(default_factory=dict)
    document_id: str | None = None
    embedding: Embedding = field(default_factory=Embedding)


@dataclass(frozen=True, slots=True, eq=False)
class RecordBatch:
    """Records to add, as columns: adding 10,000 rows must not build 10,000 objects.

    Args:
        ids: Unique within the batch, not empty.
        texts: One for each id.
        embeddings: One for each id.
        metadatas: One for each id, or None for none at all.
        document_ids: One for each id, or None for none at all.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    embeddings: EmbeddingBatch
    metadatas: Sequence[Metadata] | None = None
    document_ids: Sequence[str | None] | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> RecordBatch:
        """Turn rows into columns."""
        rows = list(records)
        return cls(
            ids=[row.id for row in rows],
            texts=[row.text for row in rows],
            embeddings=EmbeddingBatch.of([row.embedding for row in rows]),
            metadatas=[row.metadata for row in rows],
            document_ids=[row.document_id for row in rows],
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True, eq=False)
class Hit:
    """A record found by a search. It is the caller's own copy.

    Args:
        id: The record's id.
        score: Similarity on the metric's own scale; higher is better.
        relevance: The same as a number in [0, 1]; 1 for the query itself.
        text: The passage.
        metadata: The passage's metadata.
        document_id: The document that the passage was cut from.
        embedding: Present where it was asked for.
    """

    id: str
    score: float
    relevance: float
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    document_id: str | None = None
    embedding: Embedding | None = None


@dataclass(frozen=True, slots=True)
class IndexStats:
    """What a vector index holds and takes.

    Args:
        records: How many records can be found.
        dimension: Length of the dense vectors; None before it is known.
        metric: How they are compared.
        kind: How they are searched now, in the backend's own words: ``flat``, ``hnsw``...
        model: The embedding model that the index is kept for; None where none was named.
        bytes: What the index takes where it is kept. Memory, for one in this process (vectors and
            postings) or in Redis (without the records themselves); disk, in PostgreSQL (all).
        indexed: Share of the records that the structure of its kind holds, from 0 to 1. The
            others are searched one by one, or not yet, where a server is filling an index again.
        failures: Records that a server could not index.
    """

    records: int
    dimension: int | None
    metric: Metric
    kind: str
    model: str | None = None
    bytes: int = 0
    indexed: float = 1.0
    failures: int = 0
