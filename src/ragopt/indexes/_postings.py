"""An inverted index: for each token, the rows that hold it and its weight in each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ragopt.types import Dense, SparseVector


class _Segment(NamedTuple):
    """Entries in the order of their tokens; those of one token in the order of the rows."""

    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]
    weights: Dense


class Postings:
    """Sparse vectors in rows, searched token by token: the work grows with the matches alone.

    What is added becomes a segment, and segments of like size are merged, so that there are few
    (O'Neil et al., "The log-structured merge-tree", Acta Informatica 1996).
    """

    def __init__(self) -> None:
        self._segments: list[_Segment] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the entries."""
        return sum(array.nbytes for segment in self._segments for array in segment)

    def append(self, first_row: int, vectors: Sequence[SparseVector | None]) -> None:
        """Add the vectors of rows that follow each other."""
        held = [(row, each) for row, each in enumerate(vectors, first_row) if each is not None]
        if not held:
            return
        tokens = np.concatenate([each.indices for _, each in held])
        weights = np.concatenate([each.values for _, each in held])
        rows = np.repeat([row for row, _ in held], [len(each) for _, each in held])
        segment = _sorted(tokens, rows, weights)
        while self._segments and len(self._segments[-1].tokens) <= 2 * len(segment.tokens):
            before = self._segments.pop()
            # Stable, and the rows of the older segment are the lower ones.
            segment = _sorted(
                np.concatenate([before.tokens, segment.tokens]),
                np.concatenate([before.rows, segment.rows]),
                np.concatenate([before.weights, segment.weights]),
            )
        self._segments.append(segment)

    def packed(self, kept: NDArray[np.int64], size: int) -> Postings:
        """Return the entries of ``kept`` rows, ascending, renumbered from 0; of ``size`` rows."""
        place = np.full(size, -1)
        place[kept] = np.arange(len(kept))
        packed = Postings()
        for tokens, rows, weights in self._segments:
            stays = place[rows] >= 0
            if stays.any():
                segment = _Segment(tokens[stays], place[rows[stays]], weights[stays])
                packed._segments.append(segment)
        return packed

    def holding(self, tokens: Sequence[int], alive: NDArray[np.bool_]) -> list[int]:
        """Return how many of the rows that are alive hold each token."""
        total = np.zeros(len(tokens), dtype=np.int64)
        for held, owners, _ in self._segments:
            begins = np.searchsorted(held, tokens, "left")
            ends = np.searchsorted(held, tokens, "right")
            for place, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                total[place] += np.count_nonzero(alive[owners[begin:end]])
        return total.tolist()

    def holding_all(self, groups: Iterable[Sequence[int]], rows: int) -> NDArray[np.bool_]:
        """Return which of the first ``rows`` rows hold all tokens of one group."""
        found = np.zeros(rows, dtype=bool)
        for group in groups:
            held = np.zeros(rows, dtype=np.int64)
            for tokens, owners, _ in self._segments:
                begins = np.searchsorted(tokens, group, "left")
                ends = np.searchsorted(tokens, group, "right")
                for begin, end in zip(begins, ends, strict=True):
                    held[owners[begin:end]] += 1  # a row holds a token once
            found |= held == len(group)
        return found

    def scores(self, query: SparseVector, rows: int) -> Dense:
        """Return the inner product of a query with each of the first ``rows`` rows."""
        total = np.zeros(rows)
        for tokens, owners, weights in self._segments:
            begins = np.searchsorted(tokens, query.indices, "left")
            ends = np.searchsorted(tokens, query.indices, "right")
            for begin, end, weight in zip(begins, ends, query.values, strict=True):
                # A row holds a token once, so no row is named twice here.
                total[owners[begin:end]] += weights[begin:end] * np.float64(weight)
        return total.astype(np.float32)


def _sorted(tokens: NDArray[np.int64], rows: NDArray[np.int64], weights: Dense) -> _Segment:
    order = np.argsort(tokens, kind="stable")
    return _Segment(tokens[order], rows[order], weights[order])
