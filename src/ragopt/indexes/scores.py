"""What a score means, for every metric and every backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ragopt.types import Dense, Metric, SparseVector

_SMALL, _LARGE = 1e-30, 1e30  # between which squares add up well in single precision


def relevance(metric: Metric, query: Dense) -> Callable[[float], float]:
    """Return what turns a score into relevance: 1 for the query itself, falling with distance.

    * cosine: ``(1 + score) / 2``
    * inner product: ``(1 + score / |query|²) / 2``, cut to [0, 1]. For unit vectors that is the
      cosine's relevance; a stored vector that is longer than the query may reach 1 early.
    * L2: ``1 / (1 + distance)``

    Plain arithmetic: for the ten hits of a search, numpy takes longer to begin.

    Args:
        metric: The metric that makes the scores.
        query: Shape ``(dimension,)``.
    """
    if metric is Metric.L2:
        return lambda score: 1 / (1 - min(score, 0.0))
    # A zero query has the score 0 with everything: by any scale, relevance is a half.
    square = 1.0 if metric is Metric.COSINE else float(query.dot(query)) or 1.0
    return lambda score: min(max((1 + score / square) / 2, 0.0), 1.0)


def sparse_relevance(query: SparseVector) -> Callable[[float], float]:
    """Return what turns an inner product with a sparse query into relevance.

    That is ``score / |query|²``, cut to [0, 1]: 1 for the query itself, and for what says the
    same more strongly.
    """
    square = float(query.values @ query.values) or 1.0
    return lambda score: min(max(score / square, 0.0), 1.0)


def unit(vectors: Dense) -> Dense:
    """Return the vectors scaled to length 1; a zero vector stays zero."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    beyond = (squares < _SMALL) | (squares > _LARGE)  # the squares of such numbers are inexact
    if beyond.any():
        squares = squares.astype(np.float64)
        squares[beyond] = (vectors[beyond].astype(np.float64) ** 2).sum(axis=1)
    norms = np.sqrt(squares)[:, None]
    return np.asarray(vectors / np.where(norms > 0, norms, np.inf), dtype=np.float32)
