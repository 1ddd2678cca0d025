"""Vectors in the binary formats of pgvector, and what it takes of each type."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ragopt.errors import InvalidInput, PruningWarning
from ragopt.types import Dense, Metric, SparseVector


class DenseType(NamedTuple):
    """A type of dense vectors.

    Args:
        name: Its name in PostgreSQL.
        format: Of one number, as numpy names it.
        indexed: Dimensions that an HNSW index takes.
        stored: Dimensions that a column takes.
    """

    name: str
    format: str
    indexed: int
    stored: int


VECTOR = DenseType("vector", ">f4", 2_000, 16_000)
HALFVEC = DenseType("halfvec", ">f2", 4_000, 16_000)
DENSE_TYPES = {"float32": VECTOR, "float16": HALFVEC}

SPARSE_DIMENSION = 1_000_000_000
"""Of every sparse column: the largest one, so that any vocabulary or hash fits in."""
SPARSE_ENTRIES = {"hnsw": 1_000, "none": 16_000}
"""Entries other than 0 of a sparse vector that an index, and a column, take."""

_OPERATORS = {Metric.COSINE: "cosine_ops", Metric.IP: "ip_ops", Metric.L2: "l2_ops"}


def operator_class(type_name: str, metric: Metric) -> str:
    """Return the operator class of an index on a column of a type."""
    return f"{type_name}_{_OPERATORS[metric]}"


def pack_dense(vectors: Dense, kind: DenseType) -> list[bytes]:
    """Return each vector as the dimension and 0, both uint16, and its numbers.

    A batch is turned at once: a ``pgvector.Vector`` for each row takes several times as long.

    Raises:
        InvalidInput: A number is beyond what the type holds.
    """
    with np.errstate(over="ignore"):
        rows = vectors.astype(kind.format)
    if kind is HALFVEC and not np.isfinite(rows).all():
        raise InvalidInput(
            "A vector has a number beyond 65,504, the largest of float16. Nothing was stored.",
            fix='Use precision="float32", or scale the vectors to length 1.',
        )
    head = struct.pack(">HH", vectors.shape[1], 0)
    return [head + row.tobytes() for row in rows]


def unpack_dense(data: bytes) -> Dense:
    """Read what ``pack_dense`` wrote, or the server; the length tells the type."""
    kind = VECTOR if len(data) == 4 + 4 * int.from_bytes(data[:2]) else HALFVEC
    return np.frombuffer(data, kind.format, offset=4).astype(np.float32)


def pack_sparse(vectors: Sequence[SparseVector], most: int) -> list[bytes]:
    """Return each vector as its dimension, entries and 0, int32, then indices and values.

    Entries of the value 0 are left out. Of those beyond ``most`` the lowest weights are, with one
    ``PruningWarning`` for all vectors.

    Raises:
        InvalidInput: An index is beyond ``SPARSE_DIMENSION``.
    """
    packed, lost = pack_pruned(vectors, most)
    pruned = np.count_nonzero(lost)
    if pruned:
        warnings.warn(
            f"{pruned:,} of {len(vectors):,} sparse vectors have more than {most:,} entries. The "
            f"lowest weights were left out, at most {max(lost):.1%} of the weight of a vector.",
            PruningWarning,
            stacklevel=2,
        )
    return packed


def pack_pruned(vectors: Sequence[SparseVector], most: int) -> tuple[list[bytes], list[float]]:
    """Return what ``pack_sparse`` does, and the share of each vector's weight that was left out."""
    packed, shares = [], []
    for vector in vectors:
        if len(vector) and vector.indices[-1] >= SPARSE_DIMENSION:
            raise InvalidInput(
                f"A sparse vector has the index {vector.indices[-1]:,}. Nothing was stored.",
                fix=f"PostgreSQL takes indices below {SPARSE_DIMENSION:,}: use shorter hashes.",
            )
        kept, rest = vector.prune(min(most, int(np.count_nonzero(vector.values))))
        lost = float(np.abs(rest.values).sum())
        shares.append(lost / (lost + float(np.abs(kept.values).sum())) if lost else 0.0)
        head = struct.pack(">iii", SPARSE_DIMENSION, len(kept), 0)
        packed.append(
            head + kept.indices.astype(">i4").tobytes() + kept.values.astype(">f4").tobytes()
        )
    return packed, shares


def unpack_sparse(data: bytes) -> SparseVector:
    """Read what ``pack_sparse`` wrote, or the server."""
    entries = struct.unpack_from(">i", data, 4)[0]
    return SparseVector(
        np.frombuffer(data, ">i4", entries, 12).astype(np.int64),
        np.frombuffer(data, ">f4", entries, 12 + 4 * entries).astype(np.float32),
    )
