"""Embeddings put together: pieces of one text, and parts of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from ragopt.embedders._heads import highest
from ragopt.embedders._tokens import Tokenized
from ragopt.types import Dense, EmbeddingBatch, SparseVector


def one_each(batch: EmbeddingBatch, tokenized: Tokenized, *, normalize: bool) -> EmbeddingBatch:
    """Return one embedding for each text, where some texts were embedded in pieces.

    The dense vectors of the pieces are averaged, weighted by their tokens, and scaled to length 1
    if ``normalize``; of each token id the highest weight counts; multi-vectors are joined.
    """
    owners = tokenized.rows
    if len(set(owners)) == len(owners):
        return batch
    groups = [list(rows) for _, rows in groupby(range(len(owners)), key=owners.__getitem__)]
    lengths = [len(piece) for piece in tokenized.pieces]
    dense: Dense | None = None
    if batch.dense is not None:
        means = [
            np.average(batch.dense[rows], axis=0, weights=[lengths[row] for row in rows])
            for rows in groups
        ]
        dense = np.stack(means).astype(np.float32)
        if normalize:
            dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-12)
    sparse, multi = batch.sparse, batch.multi
    if sparse is not None:
        sparse = [_highest([sparse[row] for row in rows]) for rows in groups]
    if multi is not None:
        multi = [np.concatenate([multi[row] for row in rows]) for rows in groups]
    return EmbeddingBatch(dense, sparse, multi)


def joined(parts: Sequence[EmbeddingBatch]) -> EmbeddingBatch:
    """Return several batches as one."""
    if len(parts) == 1:
        return parts[0]
    dense = [part.dense for part in parts if part.dense is not None]
    return EmbeddingBatch(
        np.concatenate(dense) if dense else None,
        None if parts[0].sparse is None else [each for p in parts for each in p.sparse or ()],
        None if parts[0].multi is None else [each for p in parts for each in p.multi or ()],
    )


def taken(batch: EmbeddingBatch, rows: Sequence[int]) -> EmbeddingBatch:
    """Return some rows of a batch, some of them several times."""
    sparse, multi = batch.sparse, batch.multi
    return EmbeddingBatch(
        None if batch.dense is None else batch.dense[list(rows)],
        None if sparse is None else [sparse[row] for row in rows],
        None if multi is None else [multi[row] for row in rows],
    )


def _highest(vectors: Sequence[SparseVector]) -> SparseVector:
    if len(vectors) == 1:
        return vectors[0]
    indices = np.concatenate([vector.indices for vector in vectors])
    return SparseVector(*highest(indices, np.concatenate([vector.values for vector in vectors])))
