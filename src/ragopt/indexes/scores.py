"""What a score means, for every metric and every backend."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ragopt.types import Dense, Metric


def relevance(scores: NDArray[np.floating], metric: Metric, queries: Dense) -> NDArray[np.floating]:
    """Turn scores into relevance in [0, 1]: 1 for the query itself, falling with distance.

    * cosine: ``(1 + score) / 2``
    * inner product: ``(1 + score / |query|²) / 2``, cut to [0, 1]. For unit vectors that is the
      cosine's relevance; a stored vector that is longer than the query may reach 1 early.
    * L2: ``1 / (1 + distance)``

    Args:
        scores: Shape ``(n, k)``, one row for each query.
        metric: The metric that made the scores.
        queries: Shape ``(n, dimension)``.
    """
    if metric is Metric.L2:
        return np.asarray(1 / (1 - np.minimum(scores, 0)))
    if metric is Metric.IP:
        squares = np.einsum("ij,ij->i", queries, queries, dtype=np.float64)[:, None]
        scores = scores / np.where(squares > 0, squares, np.inf)
    return np.minimum(np.maximum((1 + scores) / 2, 0), 1)  # np.clip, without its detours


def unit(vectors: Dense) -> Dense:
    """Return the vectors scaled to length 1; a zero vector stays zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.asarray(vectors / np.where(norms > 0, norms, np.inf), dtype=np.float32)
