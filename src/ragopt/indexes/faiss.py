"""FAISS with texts, metadata, filters, stable ids, deletes, and files without pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ragopt._imports import require
from ragopt.errors import InvalidInput
from ragopt.indexes import _files
from ragopt.indexes._table import RecordTable, Rows
from ragopt.indexes.local import LocalIndex
from ragopt.types import Dense, Metric

# Below this share of the records, comparing the query with every match is both faster and
# exact; a graph walk would meet too few of them (50,000 x 384, M = 32: break-even near 10 %).
_EXACT_BELOW = 0.1


class FaissIndex(LocalIndex):
    """A FAISS index that keeps the records with the vectors.

    Args:
        dimension: Length of the vectors; None to take it from the first record.
        metric: ``cosine``, ``ip`` or ``l2``.
        kind: ``flat`` compares with every vector and is exact; ``hnsw`` walks a graph, faster
            from some ten thousand records on, and finds nearly all.
        m: Links per node of the graph.
        ef_construction: Candidates looked at when a node is linked.
        ef_search: Candidates looked at in a search; at least ``2 * k`` are.

    Raises:
        MissingDependency: faiss is not installed.
        InvalidInput: An argument is out of range.

    References:
        Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using
        Hierarchical Navigable Small World graphs", TPAMI 2020.
    """

    def __init__(
        self,
        dimension: int | None = None,
        *,
        metric: Metric | str = Metric.COSINE,
        kind: Literal["flat", "hnsw"] = "flat",
        m: int = 32,
        ef_construction: int = 128,
        ef_search: int = 128,
    ) -> None:
        super().__init__(dimension, metric=metric)
        self._faiss = require("faiss", "faiss")
        if kind not in ("flat", "hnsw"):
            raise InvalidInput(f"{kind!r} is not a kind of index.", fix='Use "flat" or "hnsw".')
        if m < 2 or ef_construction < 1 or ef_search < 1:
            raise InvalidInput(
                f"An index was given m={m}, ef_construction={ef_construction}, "
                f"ef_search={ef_search}.",
                fix="Give m of 2 or more and ef values of 1 or more.",
            )
        self._kind = kind
        self._m = m
        self._ef_construction = ef_construction
        self._ef_search = ef_search
        self._index: Any = None

    def _append(self, vectors: Dense) -> None:
        if self._index is None:
            self._index = self._make(vectors.shape[1])
        self._index.add(vectors)

    def _keep(self, rows: Rows | None) -> None:
        if self._index is None:
            return
        kept = None if rows is None else self._vectors(rows)
        self._index = self._make(self._index.d)
        if kept is not None and len(kept):
            self._index.add(kept)

    def _vectors(self, rows: Rows) -> Dense:
        vectors: Dense = self._index.reconstruct_batch(rows)
        return vectors

    def _nearest(self, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        exact = self._index
        if self._kind == "hnsw":
            exact = self._faiss.downcast_index(self._index.storage)
        few = rows is not None and len(rows) <= max(k, _EXACT_BELOW * len(self._table))
        if self._kind == "flat" or few:
            distances, found = self._run(exact, queries, k, rows)
        else:
            distances, found = self._run(self._index, queries, k, rows)
            short = (found < 0).any(axis=1)
            if short.any():  # the walk met fewer than k of the records that match
                distances[short], found[short] = self._run(exact, queries[short], k, rows)
        if self._metric is Metric.L2:
            distances = -np.sqrt(np.maximum(distances, 0))
        return distances, found

    def _run(self, index: Any, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        options: dict[str, Any] = {}
        if rows is not None:
            mask = np.zeros(len(self._table), dtype=bool)
            mask[rows] = True
            bits = np.packbits(mask, bitorder="little")
            options["sel"] = self._faiss.IDSelectorBitmap(len(bits) * 8, self._faiss.swig_ptr(bits))
        if index is self._index and self._kind == "hnsw":
            options["efSearch"] = max(self._ef_search, 2 * k)
            params = self._faiss.SearchParametersHNSW(**options)
        else:
            params = self._faiss.SearchParameters(**options) if options else None
        distances, found = index.search(queries, k, params=params)
        return distances, found

    def _make(self, dimension: int) -> Any:
        faiss = self._faiss
        metric = faiss.METRIC_L2 if self._metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        if self._kind == "flat":
            return faiss.IndexFlat(dimension, metric)
        index = faiss.IndexHNSWFlat(dimension, self._m, metric)
        index.hnsw.efConstruction = self._ef_construction
        return index

    # -- files -----------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder, atomically: a reader finds the old one or the new one.

        Raises:
            StorageError: The disk is full or the folder cannot be written; what was saved there
                before is as it was.
        """
        with self._lock.write():
            if self._table.gaps:
                self._keep(self._table.pack())
            settings = {
                "kind": self._kind,
                "metric": str(self._metric),
                "dimension": self._dimension,
                "m": self._m,
                "ef_construction": self._ef_construction,
                "ef_search": self._ef_search,
                "version": self._token,
            }
            index = None if not len(self._table) else self._index
            _files.write(Path(folder), settings, self._table.columns(), index)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> FaissIndex:
        """Read an index that ``save`` wrote. It has the version it was saved with.

        Raises:
            StorageError: There is no index in the folder, or a newer format.
            CorruptData: A file is not what was saved.
        """
        settings, columns, index = _files.read(Path(folder))
        token = settings.pop("version")
        loaded = cls(**settings)
        loaded._table = RecordTable.from_columns(columns)
        loaded._index = index
        loaded._token = token
        return loaded
