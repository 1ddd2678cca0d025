"""One FAISS index of any type: how its vectors are read and the nearest of some rows found."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragopt._imports import require
from ragopt.indexes._faiss_kinds import parts
from ragopt.indexes._table import Rows
from ragopt.types import Dense

# Below this share of the records, comparing the query with every match is both faster and
# exact; a graph walk would meet too few of them (50,000 x 384, M = 32: break-even near 10 %).
_EXACT_BELOW = 0.1
# Above this share of the records, scoring candidates again costs as much as scoring everything.
_SIFT_BELOW = 0.25
# A search for fewer sifts as many candidates as one for that many.
_FEWEST = 10
_CHUNK = 8192  # vectors that are decoded at a time
_FEW = 256  # numbers that Python looks at as quickly as numpy


class Engine:
    """A FAISS index and what is known of it.

    Args:
        index: The index.
        flat: Its exact half if it is an ``IndexRefine`` and Python owns that half.

    Attributes:
        index: The index as it is saved.
        flat: The ``IndexFlat`` with the exact vectors; None if there are only codes or lists.
    """

    def __init__(self, index: Any, flat: Any = None) -> None:
        self._faiss = faiss = require("faiss", "faiss")
        self.index = index
        self.flat: Any = flat
        self._sieve: Any = None
        self._selects = True
        if isinstance(index, faiss.IndexFlat):
            self.flat = index
        elif isinstance(index, faiss.IndexHNSWFlat):
            self.flat = faiss.downcast_index(index.storage)
        elif isinstance(index, faiss.IndexRefine):
            exact = faiss.downcast_index(index.refine_index)
            if isinstance(exact, faiss.IndexFlat):
                self._sieve = faiss.downcast_index(index.base_index)
                if flat is None:  # from a file, where the index owns it
                    exact.referenced_objects = [index]
                    self.flat = exact
        ivf = None if self.flat is not None else faiss.try_extract_index_ivf(index)
        if ivf is not None:
            ivf.make_direct_map()  # else its vectors cannot be read by their rows

    @classmethod
    def refining(cls, sieve: Any, flat: Any) -> Engine:
        """Return an engine that scores the candidates of ``sieve`` again by ``flat``."""
        index = require("faiss", "faiss").IndexRefine(sieve, flat)
        return cls(index, flat)

    @property
    def size(self) -> int:
        """Rows."""
        return int((self.index if self.flat is None else self.flat).ntotal)

    @property
    def lossless(self) -> bool:
        """Whether ``vectors`` returns what was added."""
        return self.flat is not None or isinstance(self.index, self._faiss.IndexIVFFlat)

    def add(self, vectors: Dense) -> None:
        """Append rows; all of them, or raise and append none."""
        if self._sieve is None:
            self.index.add(vectors)
            return
        size = self.flat.ntotal
        self.flat.add(vectors)
        try:
            self._sieve.add(vectors)
        except BaseException:
            self.flat.remove_ids(self._faiss.IDSelectorRange(size, self.flat.ntotal))
            raise
        self.index.ntotal = self.flat.ntotal

    def follow(self, source: Engine) -> None:
        """Take in the rows that ``source`` got since this engine was made of it."""
        part = self.index if self._sieve is None else self._sieve
        if part.ntotal < source.size:
            part.add(source.vectors(np.arange(part.ntotal, source.size)))
            self.index.ntotal = source.size

    def vectors(self, rows: Rows) -> Dense:
        """Return vectors, shape ``(len(rows), dimension)``; decoded if there are only codes."""
        holder = self.index if self.flat is None else self.flat
        found: Dense = holder.reconstruct_batch(rows)
        return found

    def emptied(self) -> Engine:
        """Return an engine that has learned the same and holds nothing."""
        faiss = self._faiss
        if self.index is self.flat:
            return Engine(faiss.IndexFlat(self.flat.d, self.flat.metric_type))
        if self._sieve is None:
            return Engine(self._copy(self.index))
        fresh = Engine.refining(
            self._copy(self._sieve), faiss.IndexFlat(self.flat.d, self.flat.metric_type)
        )
        fresh.index.k_factor = self.index.k_factor
        return fresh

    def _copy(self, index: Any) -> Any:
        # Through bytes, since FAISS cannot clone every type.
        copy = self._faiss.deserialize_index(self._faiss.serialize_index(index))
        copy.reset()
        return copy

    # -- searching -------------------------------------------------------------------------

    def nearest(self, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        """Return distances as FAISS means them, and rows, of the ``k`` best among ``rows``.

        Args:
            queries: Shape ``(n, dimension)``.
            k: At most the number of rows to choose from.
            rows: What to choose from; None for all.

        Returns:
            Shapes ``(n, k)``, best first.
        """
        choice = self.size if rows is None else len(rows)
        if self.index is self.flat or choice <= max(k, _EXACT_BELOW * self.size):
            return self.exactly(queries, k, rows)
        search = self._directly if self._sieve is None else self._sifted
        distances, found = search(queries, k, rows)
        short = (found < 0).any(axis=1)
        if short.any():  # the search met fewer than k of the records that match
            distances[short], found[short] = self.exactly(queries[short], k, rows)
        return distances, found

    def exactly(self, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        """Compare with every row; of equal ones the first come first. See ``nearest``."""
        if self.flat is None:
            return self._decoded(queries, k, rows)
        params, most = None, self.size
        if rows is not None:
            selector, most = self._selector(self._mask(rows)), len(rows)
            params = self._faiss.SearchParameters(sel=selector)
        fetched = min(k + 1, most)
        distances, found = self.flat.search(queries, fetched, params=params)
        if _in_order(distances) and min(found[:, -1].tolist()) >= 0:  # as it nearly always is
            return distances[:, :k], found[:, :k]
        # Which of those that are as good as the last one FAISS returns is by chance.
        while fetched < most and (distances[:, k - 1] == distances[:, -1]).any():
            fetched = min(2 * fetched, most)
            distances, found = self.flat.search(queries, fetched, params=params)
        if (found < 0).any():
            self._complete(distances, found, rows)
        farther = distances if self.flat.metric_type == self._faiss.METRIC_L2 else -distances
        order = np.lexsort((found, farther))[:, :k]
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(
            found, order, axis=1
        )

    def _complete(self, distances: Dense, found: Rows, rows: Rows | None) -> None:
        """Put in what FAISS leaves out: rows that are too far away for a number."""
        metric = self.flat.metric_type
        far = np.inf if metric == self._faiss.METRIC_L2 else -np.inf
        among = np.arange(self.size) if rows is None else np.sort(rows)
        for near, places in zip(distances, found, strict=True):
            left = places < 0
            places[left] = np.setdiff1d(among, places[~left])[: left.sum()]
            near[left] = far

    def _decoded(self, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        """Compare with every row, decoding some at a time."""
        faiss, metric = self._faiss, self.index.metric_type
        rows = np.arange(self.size) if rows is None else rows
        best = faiss.ResultHeap(len(queries), k, keep_max=metric == faiss.METRIC_INNER_PRODUCT)
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            near = faiss.knn(queries, self.vectors(some), min(k, len(some)), metric)
            best.add_result(near[0], some[near[1]])
        best.finalize()
        return best.D, best.I

    def _sifted(self, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        """Let the sieve name candidates, drop those that are not in ``rows``, score the others.

        The filter comes between the two steps, since the fast sieves of FAISS know none. Rows of
        -1 where so few candidates are left that others might be nearer.
        """
        choice = self.size if rows is None else len(rows)
        wanted = ceil(self.index.k_factor * max(k, _FEWEST))
        if wanted >= _SIFT_BELOW * choice:
            return self.exactly(queries, k, rows)
        _, found = self._sieve.search(queries, ceil(wanted * self.size / choice))
        if rows is not None:
            found[~self._mask(rows)[found]] = -1
        distances = np.empty(found.shape, dtype=np.float32)
        pointer = self._faiss.swig_ptr
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        self.flat.compute_distance_subset(
            len(queries), pointer(queries), found.shape[1], pointer(distances), pointer(found)
        )
        few = (found >= 0).sum(axis=1) < max(k, wanted / 2)
        farther = distances if self.flat.metric_type == self._faiss.METRIC_L2 else -distances
        order = np.argsort(farther, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(found, order, axis=1)
        found[few] = -1
        return np.take_along_axis(distances, order, axis=1), found

    def _directly(self, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        """Search with a selector of ``rows``, or among more than ``k`` if there can be none."""
        if rows is None:
            distances, found = self.index.search(queries, k, params=self._params(k))
            return distances, found
        mask = self._mask(rows)
        if self._selects:
            params = self._params(k, self._selector(mask))
            try:
                distances, found = self.index.search(queries, k, params=params)
                return distances, found
            except RuntimeError:  # this type knows no selectors
                self._selects = False
        more = min(self.size, ceil(2 * k * self.size / len(rows)))
        distances, found = self.index.search(queries, more, params=self._params(more))
        found[~mask[found]] = -1
        order = np.argsort(found < 0, axis=1, kind="stable")[:, :k]
        return tuple(np.take_along_axis(each, order, axis=1) for each in (distances, found))  # type: ignore[return-value]

    def _mask(self, rows: Rows) -> NDArray[np.bool_]:
        mask = np.zeros(self.size, dtype=bool)
        mask[rows] = True
        return mask

    def _selector(self, mask: NDArray[np.bool_]) -> Any:
        bits = np.packbits(mask, bitorder="little")
        selector = self._faiss.IDSelectorBitmap(len(bits) * 8, self._faiss.swig_ptr(bits))
        selector.referenced_objects = [bits]  # it holds a bare pointer
        return selector

    def _params(self, k: int, selector: Any = None) -> Any:
        """Return the parameters of a search, for the index and what is within it."""
        faiss = self._faiss
        chosen = {} if selector is None else {"sel": selector}
        params = faiss.SearchParameters(**chosen) if chosen else None
        for part in reversed(list(parts(self.index))):
            for type_, class_, own, within in _PARAMS:
                if isinstance(part, getattr(faiss, type_)):
                    rest = {within: params} if within else chosen
                    params = getattr(faiss, class_)(**own(part, k), **rest)
        return params


def _in_order(distances: Dense) -> bool:
    """Return whether no two neighbours in a row are equal."""
    if distances.size <= _FEW:  # numpy takes longer to begin
        return all(len(set(row)) == len(row) for row in distances.tolist())
    return bool((distances[:, 1:] != distances[:, :-1]).all())


# Types of indexes, the class of their parameters, what these are, and the name of those of what
# is within them; only the innermost gets a selector.
_PARAMS: list[tuple[str, str, Callable[[Any, int], dict[str, Any]], str | None]] = [
    (
        "IndexHNSW",
        "SearchParametersHNSW",
        lambda part, k: {"efSearch": max(part.hnsw.efSearch, 2 * k)},
        None,
    ),
    ("IndexIVF", "SearchParametersIVF", lambda part, _: {"nprobe": part.nprobe}, None),
    (
        "IndexRefine",
        "IndexRefineSearchParameters",
        lambda part, _: {"k_factor": part.k_factor},
        "base_index_params",
    ),
    ("IndexPreTransform", "SearchParametersPreTransform", lambda *_: {}, "index_params"),
]
