"""One question to 50,000 x 1024 in FAISS: what ``auto`` saves, and what it misses for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import faiss
import numpy as np

from benchmarks.data import DIMENSION
from benchmarks.report import Table
from ragopt import Embedding, EmbeddingBatch, F, FaissIndex, Ids, RecordBatch
from ragopt.filters import Filter
from ragopt.types import Dense

_SIZE = 50_000
_QUERIES = 200
_K = 10
_ROUNDS = 5
_CLUSTERS = 500
_COLUMNS = (
    "what is searched",
    "raw IndexFlat ms",
    "flat ms",
    "auto ms",
    "raw / auto",
    "recall@10",
    "of auto choosing rows ms",
)


def clustered(size: int, queries: int, *, decay: float) -> tuple[Dense, Dense]:
    """Return records and questions from the same clusters, of unit length.

    The sizes of the clusters fall with their rank, and what tells members of a cluster apart is
    as long as what they share.

    Args:
        size: How many records.
        queries: How many questions.
        decay: How fast that difference fades from one direction to the next: 0 for the same in
            all, which is the hardest; 0.5 is like the spectrum of embeddings.
    """
    random = np.random.default_rng(5)
    total = size + queries
    centres = _unit(random.standard_normal((_CLUSTERS, DIMENSION), dtype=np.float32))
    shares = np.arange(1, _CLUSTERS + 1) ** -0.5
    picks = random.choice(_CLUSTERS, total, p=shares / shares.sum())
    spectrum = np.arange(1, DIMENSION + 1, dtype=np.float32) ** -decay
    spread = random.standard_normal((total, DIMENSION), dtype=np.float32) * spectrum
    turned, _ = np.linalg.qr(random.standard_normal((DIMENSION, DIMENSION), dtype=np.float32))
    rows = _unit(centres[picks] + _unit(spread @ turned))
    return rows[:size], rows[size:]


def tables(_: Path) -> Iterator[Table]:
    """Search two corpora, then one of them after deletes and with a filter."""
    rows: list[tuple[Any, ...]] = []
    notes = []
    for name, decay in (("embedding-like", 0.5), ("the hardest", 0.0)):
        array, queries = clustered(_SIZE, _QUERIES, decay=decay)
        flat, adding_flat = _made(array, "flat")
        auto, adding_auto = _made(array, "auto")
        notes.append(
            f"{name}: added in {adding_flat:.1f} s (flat) and {adding_auto:.1f} s (auto, which "
            f"chose k_factor {getattr(auto._index, 'k_factor', None)})."
        )
        half = F("half") == 0
        rows.append(_compared(f"{name}, all", flat, auto, queries, None))
        rows.append(_compared(f"{name}, a filter keeps half", flat, auto, queries, half))
        gone = Ids([str(row) for row in range(0, _SIZE, 10)])
        for index in (flat, auto):
            index.delete(gone)
        rows.append(_compared(f"{name}, 10 % deleted", flat, auto, queries, None))
    yield Table(
        f"One question to {_SIZE:,} x {DIMENSION}, k={_K}, median of {_QUERIES} questions",
        _COLUMNS,
        rows,
        (
            *notes,
            "Raw gets a selector made beforehand; ours finds the rows each time, by a loop in "
            "Python over the metadata where there is a filter.",
        ),
    )


def _made(array: Dense, kind: Any) -> tuple[FaissIndex, float]:
    ids = [str(row) for row in range(len(array))]
    metadatas = [{"half": row % 2} for row in range(len(array))]
    index = FaissIndex(metric="ip", kind=kind)
    start = perf_counter()
    index.add(RecordBatch(ids, ids, EmbeddingBatch(dense=array), metadatas))
    return index, perf_counter() - start


def _compared(
    title: str, flat: FaissIndex, auto: FaissIndex, queries: Dense, where: Filter | None
) -> tuple[Any, ...]:
    raw, params = flat._index, None
    if where is not None or flat._table.gaps:
        mask = np.zeros(len(flat._table), dtype=bool)
        mask[flat._table.select(where)] = True
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bits) * 8, faiss.swig_ptr(bits))
        params = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
    contenders: list[Callable[[int], Any]] = [
        lambda i: raw.search(queries[i : i + 1], _K, params=params),
        lambda i: flat.search(Embedding(dense=queries[i]), k=_K, where=where),
        lambda i: auto.search(Embedding(dense=queries[i]), k=_K, where=where),
        lambda _: auto._among(where),
    ]
    truth = [set(map(str, contenders[0](i)[1][0])) for i in range(len(queries))]
    found = [{hit.id for hit in contenders[2](i)} for i in range(len(queries))]
    recall = sum(len(a & b) for a, b in zip(found, truth, strict=True)) / (_K * len(queries))
    times: list[list[float]] = [[] for _ in contenders]
    for number in range(_ROUNDS):  # in turns
        for contender, taken in zip(contenders, times, strict=True):
            seconds = []
            for i in range(number, len(queries), _ROUNDS):
                start = perf_counter()
                contender(i)
                seconds.append(perf_counter() - start)
            taken.append(median(seconds) * 1e3)
    of_raw, of_flat, of_auto, choosing = map(median, times)
    return title, of_raw, of_flat, of_auto, of_raw / of_auto, recall, choosing


def _unit(rows: Dense) -> Dense:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)
