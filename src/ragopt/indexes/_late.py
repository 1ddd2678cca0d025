"""Late interaction: a query's multi-vector against those of records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ragopt.codecs import encode_multi
from ragopt.errors import DimensionMismatch
from ragopt.types import Dense, Hit, Record


def closest(
    query: Dense, records: Sequence[Record], k: int | None, min_score: float | None, whole: bool
) -> list[Hit]:
    """Return the records of the highest MaxSim, best first; equal ones as they came.

    That is the mean, over the query's rows, of the highest inner product with a row of the record:
    in [-1, 1] for rows of length 1, as BGE-M3 makes them (Khattab and Zaharia, "ColBERT", SIGIR
    2020). Records without a multi-vector are left out.

    Args:
        query: Shape ``(tokens, dimension)``.
        records: With their embeddings.
        k: How many at most.
        min_score: The lowest score.
        whole: Leave the embeddings in the hits.
    """
    held = [
        (record, rows)
        for record in records
        if (rows := record.embedding.multi) is not None and len(rows)
    ]
    if not held or not len(query):
        return []
    for record, rows in held:
        if rows.shape[1] != query.shape[1]:
            raise DimensionMismatch(
                f"The multi-vector of the query has dimension {query.shape[1]}, that of record "
                f"{record.id!r} has {rows.shape[1]}.",
                fix="Use the embedding model that the index was made with.",
            )
    begins = np.cumsum([0, *(len(rows) for _, rows in held[:-1])])
    every = query @ np.concatenate([rows for _, rows in held]).T
    scores = np.maximum.reduceat(every, begins, axis=1).mean(axis=0)
    hits = []
    for place in np.argsort(-scores, kind="stable")[:k].tolist():
        record, score = held[place][0], float(scores[place])
        if min_score is not None and score < min_score:
            break
        hits.append(
            Hit(
                id=record.id,
                score=score,
                relevance=min(max((1 + score) / 2, 0.0), 1.0),
                text=record.text,
                metadata=dict(record.metadata),
                document_id=record.document_id,
                embedding=record.embedding if whole else None,
            )
        )
    return hits


def half_precision(vectors: Dense) -> bytes:
    """Return a multi-vector as it is stored: in numbers of 16 bits."""
    return encode_multi(vectors, "float16")
