"""Exact search over one numpy array: no dependency, and the oracle of the tests."""

from __future__ import annotations

import numpy as np

from ragopt.indexes._table import Rows
from ragopt.indexes.local import LocalIndex, best
from ragopt.types import Dense, Metric


class MemoryIndex(LocalIndex):
    """Every search compares the query with every record.

    Args:
        dimension: Length of the vectors; None to take it from the first record.
        metric: ``cosine``, ``ip`` or ``l2``.
    """

    def __init__(self, dimension: int | None = None, *, metric: Metric | str = Metric.COSINE):
        super().__init__(dimension, metric=metric)
        self._matrix: Dense = np.empty((0, 0), dtype=np.float32)
        self._size = 0

    def _append(self, vectors: Dense) -> None:
        needed = self._size + len(vectors)
        if needed > len(self._matrix):
            grown = np.empty((max(needed, 2 * self._size), vectors.shape[1]), dtype=np.float32)
            if self._size:
                grown[: self._size] = self._matrix[: self._size]
            self._matrix = grown
        self._matrix[self._size : needed] = vectors
        self._size = needed

    def _keep(self, rows: Rows | None) -> None:
        self._matrix = self._matrix[:0] if rows is None else self._matrix[rows]
        self._size = len(self._matrix)

    def _vectors(self, rows: Rows) -> Dense:
        return self._matrix[rows]

    def _held(self) -> tuple[str, int, bool]:
        return "flat", self._matrix.nbytes, True

    def _nearest(self, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        matrix = self._matrix[: self._size] if rows is None else self._matrix[rows]
        if self._metric is Metric.L2:
            # The difference itself, not the expanded square: identical vectors are at 0.
            with np.errstate(over="ignore"):  # too far away for a number
                scores = np.stack([-np.linalg.norm(matrix - query, axis=1) for query in queries])
        else:
            scores = queries @ matrix.T
        return best(scores, k, rows)
