"""Records and queries for the tests of the backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ragopt.types import Embedding, EmbeddingBatch, RecordBatch


def batch(
    ids: list[str],
    vectors: Any = None,
    metadatas: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[str | None] | None = None,
) -> RecordBatch:
    """Return records, with vectors along the four axes in turn if none are given."""
    if vectors is None:
        vectors = np.eye(4, dtype=np.float32)[np.arange(len(ids)) % 4]
    return RecordBatch(
        ids,
        [f"text of {id_}" for id_ in ids],
        EmbeddingBatch.of_dense(vectors),
        metadatas,
        documents,
    )


def query(*values: float) -> Embedding:
    """Return a dense query."""
    return Embedding(np.array(values, dtype=np.float32))
