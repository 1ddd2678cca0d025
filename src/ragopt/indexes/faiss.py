"""FAISS with texts, metadata, filters, stable ids, deletes, and files without pickle."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ragopt._imports import require
from ragopt.errors import InvalidInput, StorageError
from ragopt.filters import Filter
from ragopt.indexes import _files
from ragopt.indexes._faiss_engine import Engine
from ragopt.indexes._faiss_kinds import REFINED, Kind, Settings, reason, size_of
from ragopt.indexes._faiss_training import training_rows, tune
from ragopt.indexes._table import RecordTable, Rows
from ragopt.indexes.local import LocalIndex
from ragopt.types import Dense, Metric, RecordBatch

_GROWTH = 4  # an index learns again when it has grown that many times
_CHUNK = 8192  # vectors that are read under one lock


class FaissIndex(LocalIndex):
    """A FAISS index that keeps the records with the vectors.

    ========================  ===========================================================
    ``kind``                  What it is
    ========================  ===========================================================
    ``flat``                  Compares with every vector: exact.
    ``auto``                  Flat while it is small, then ``pq_refined`` as hard as
                              ``recall`` asks for. Good without knowing FAISS.
    ``pq_refined``            4-bit codes name candidates, exact vectors score them: a
                              tenth of the time of flat, or less, at 50,000 x 1,024.
    ``rabitq_refined``        The same with 1-bit codes that need no clusters.
    ``hnsw``                  Walks a graph: fast, but slow to build, and deleted records
                              stay in its way until they are packed.
    ``ivf_flat``              Looks into the nearest of many lists of exact vectors.
    ``ivf_pq``                The same over codes: a thirtieth of the memory, but training
                              takes a minute and more, and codes tell near ones apart badly.
    ``sq8``, ``fp16``         Flat over numbers of 8 or 16 bits: a quarter or half of the
                              memory.
    ========================  ===========================================================

    ``ivf_pq``, ``sq8``, ``fp16`` and a ``factory`` without ``RFlat`` keep codes only. Their
    scores, and the embeddings they return, are those of the decoded vectors.

    Kinds that need training serve exactly until they hold enough records. Then the ``add`` that
    brings enough trains in its own thread, after its records can be found, while others go on
    searching and adding; they wait only while the knobs are turned, a second or two. It trains
    again each time the index has grown fourfold, if it keeps exact vectors. If training fails,
    for want of memory say, the index stays as it was, warns, and tries again when it has
    doubled.

    Args:
        dimension: Length of the vectors; None to take it from the first record.
        metric: ``cosine``, ``ip`` or ``l2``.
        kind: One of the table.
        factory: What FAISS's ``index_factory`` takes, such as ``"IVF256,PQ64x4fs,RFlat"``,
            instead of a kind. Write ``PQ64np``, not ``PQ64``, unless minutes do not count.
        recall: Share of the true nearest to find, for the knobs that are not given: training
            measures with 128 of the records how much work that takes. 1 makes ``auto`` flat.
        train_at: How many records training waits for. By default 10,000; ``sq8`` and ``fp16``
            1,000; ``auto`` 10,240,000 / dimension and a factory 39 for each list, if that is more.
        m: Links per node of the graph.
        ef_construction: Candidates looked at when a node is linked.
        ef_search: Candidates looked at in a walk; at least ``2 * k`` are.
        nprobe: Lists looked at in a search; None to find out.
        k_factor: Candidates scored again for each of ``k``, which counts as 10 at least; None
            to find out.

    Raises:
        MissingDependency: faiss is not installed.
        InvalidInput: An argument is out of range, or FAISS cannot make such an index. Without
            a dimension the factory is checked when the first record comes.

    References:
        Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using
        Hierarchical Navigable Small World graphs", TPAMI 2020. Jégou et al., "Product
        Quantization for Nearest Neighbor Search", TPAMI 2011. André et al., "Quicker ADC",
        TPAMI 2021. Gao and Long, "RaBitQ", SIGMOD 2024.
    """

    def __init__(
        self,
        dimension: int | None = None,
        *,
        metric: Metric | str = Metric.COSINE,
        kind: Kind = "flat",
        factory: str | None = None,
        recall: float = 0.99,
        train_at: int | None = None,
        m: int = 32,
        ef_construction: int = 128,
        ef_search: int = 128,
        nprobe: int | None = None,
        k_factor: float | None = None,
    ) -> None:
        super().__init__(dimension, metric=metric)
        self._faiss = require("faiss", "faiss")
        self._settings = Settings(
            kind=kind,
            factory=factory,
            recall=recall,
            train_at=train_at,
            m=m,
            ef_construction=ef_construction,
            ef_search=ef_search,
            nprobe=nprobe,
            k_factor=k_factor,
        )
        self._engine: Engine | None = None
        self._train_at: int | None = None
        self._training = Lock()
        self._mapped = False
        if dimension is not None:
            self._settings.make(dimension, self._metric)

    @property
    def _index(self) -> Any:
        """The FAISS index; None before the first record."""
        return None if self._engine is None else self._engine.index

    def _append(self, vectors: Dense) -> None:
        if self._engine is None:
            self._begin(vectors.shape[1])
        try:
            self._filled.add(vectors)
        except RuntimeError as error:
            raise StorageError(
                f"FAISS could not add {len(vectors)} vectors ({reason(error)}). "
                "Nothing was stored.",
                fix="Use a kind or a factory to which vectors can be added at any time.",
            ) from error

    def _begin(self, dimension: int) -> None:
        made = self._settings.make(dimension, self._metric)
        self._train_at = self._settings.first_training(made)
        if self._train_at is not None:
            made = self._faiss.IndexFlat(dimension, made.metric_type)
        self._engine = Engine(made)

    @property
    def _filled(self) -> Engine:
        assert self._engine is not None, "there are records"
        return self._engine

    def _keep(self, rows: Rows | None) -> None:
        if self._engine is None:
            return
        if rows is None:
            self._begin(self._engine.index.d)
            return
        kept = self._engine.vectors(rows)
        made = self._settings.make(kept.shape[1], self._metric)
        waits = self._settings.first_training(made) is not None
        fresh = self._engine.emptied() if waits else Engine(made)
        if len(kept):
            fresh.add(kept)
        self._engine = fresh

    def _vectors(self, rows: Rows) -> Dense:
        return self._filled.vectors(rows)

    def _held(self) -> tuple[str, int, bool]:
        if self._engine is None:
            return "flat", 0, True
        index, asked = self._engine.index, self._settings
        waits = isinstance(index, self._faiss.IndexFlat) and self._train_at is not None
        kind = "flat" if waits else asked.factory or asked.kind
        return kind, size_of(index), not waits or asked.kind == "auto"

    def _nearest(self, queries: Dense, k: int, rows: Rows | None) -> tuple[Dense, Rows]:
        distances, found = self._filled.nearest(queries, k, rows)
        if self._metric is Metric.L2:
            distances = -np.sqrt(np.maximum(distances, 0))
        return distances, found

    # -- training --------------------------------------------------------------------------

    def _add_now(self, records: RecordBatch, vectors: Dense) -> None:
        self._check_changeable()
        super()._add_now(records, vectors)
        if not self._wants_training() or not self._training.acquire(blocking=False):
            return
        try:
            if self._wants_training():  # another thread may just have done it
                self._train()
        except (MemoryError, RuntimeError) as error:
            self._train_at = 2 * self._table.live
            warnings.warn(
                f"The index could not be trained on {self._table.live} records "
                f"({reason(error)}). It goes on as it was, and tries again at {self._train_at}.",
                RuntimeWarning,
                stacklevel=2,
            )
        finally:
            self._training.release()

    def _wants_training(self) -> bool:
        return self._train_at is not None and self._table.live >= self._train_at

    def _train(self) -> None:
        """Make an index of the kind beside the one that serves, and put it in its place."""
        with self._lock.read():
            old, rows = self._filled, self._table.select(None)
            fresh = self._settings.make(old.index.d, self._metric, len(rows), whole=False)
            sample = old.vectors(training_rows(fresh, rows))
        fresh.train(sample)
        while True:
            with self._lock.read():
                if self._engine is not old:  # packed or cleared meanwhile: the rows have moved
                    return
                start = fresh.ntotal
                if start == old.size:
                    refines = self._settings.text(fresh.d, len(rows)).endswith(REFINED)
                    new = Engine.refining(fresh, old.flat) if refines else Engine(fresh)
                    self._settings.apply(new.index)
                    tune(new, self._settings, old, rows)
                    break
                vectors = old.vectors(np.arange(start, min(start + _CHUNK, old.size)))
            fresh.add(vectors)
        with self._lock.write():
            if self._engine is old:
                new.follow(old)
                self._engine = new
                self._train_at = _GROWTH * self._table.live if new.lossless else None

    # -- files -----------------------------------------------------------------------------

    def _delete_now(self, where: Filter | None) -> int:
        self._check_changeable()
        return super()._delete_now(where)

    def _check_changeable(self) -> None:
        if self._mapped:  # FAISS would end the process
            raise InvalidInput(
                "An index that was loaded with mmap=True cannot be changed. Nothing was changed.",
                fix="Load it without mmap, change that one, save it, and load it again.",
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder, atomically: a reader finds the old one or the new one.

        Processes that save to one folder wait for each other, and the last one stays.

        Raises:
            StorageError: The disk is full or the folder cannot be written; what was saved there
                before is as it was.
        """
        if not os.fspath(folder):
            raise InvalidInput("An index was to be saved to no folder.", fix="Name a folder.")
        with self._lock.write():
            if self._table.gaps:
                self._pack()
            settings = {
                **asdict(self._settings),
                "metric": str(self._metric),
                "dimension": self._dimension,
                "version": self._token,
                "model": self._model,
                "next_training": self._train_at,
            }
            index = self._index if len(self._table) else None
            _files.write(Path(folder), settings, self._table.columns(), index)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, mmap: bool = False) -> FaissIndex:
        """Read an index that ``save`` wrote: trained as it was, with the version it had.

        Args:
            folder: What it was saved to.
            mmap: Map the vectors into memory instead of reading them. They open at once,
                processes share their pages, and they may be larger than memory; texts and
                metadata are read, and so are the links of a graph. The index cannot be changed.
                Whoever saves to the folder later leaves it as it is. Of the file of vectors the
                size alone is checked, since a checksum would read all of it: map what you trust.

        Raises:
            StorageError: There is no index in the folder, or a newer format.
            CorruptData: A file is not what was saved.
        """
        settings, columns, index = _files.read(Path(folder), mapped=mmap)
        token, train_at = settings.pop("version"), settings.pop("next_training", None)
        model = settings.pop("model", None)
        loaded = cls(**settings)
        loaded._table = RecordTable.from_columns(columns)
        if index is not None:
            loaded._settings.apply(index)
            loaded._engine, loaded._train_at = Engine(index), train_at
        loaded._token, loaded._model, loaded._mapped = token, model, mmap
        return loaded
