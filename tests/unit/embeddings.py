"""Embeddings of mixed texts, and whether two of them are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tests.checkpoints import MIXED

from ragopt import EmbeddingBatch
from ragopt.types import OUTPUTS


def all_three(embedder: Any, texts: Sequence[str] = MIXED, **options: Any) -> EmbeddingBatch:
    batch: EmbeddingBatch = embedder.embed(texts, outputs=OUTPUTS, **options)
    return batch


def assert_same(one: EmbeddingBatch, other: EmbeddingBatch, atol: float = 1e-5) -> None:
    assert one.dense is not None
    assert other.dense is not None
    np.testing.assert_allclose(one.dense, other.dense, atol=atol)
    for ours, theirs in zip(one.sparse or [], other.sparse or [], strict=True):
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        np.testing.assert_allclose(ours.values, theirs.values, atol=atol)
    for mine, its in zip(one.multi or [], other.multi or [], strict=True):
        np.testing.assert_allclose(mine, its, atol=atol)
