"""Opening a saved FAISS index of 100,000 x 384: reading the vectors, or mapping them into memory.

``python -m benchmarks.faiss_open FOLDER read|mapped`` prints the figures of one opening as JSON. It
has to be a process of its own: what another opening left behind would be counted too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.process import apart, memory
from benchmarks.report import Table
from ragopt import Embedding, EmbeddingBatch, FaissIndex, RecordBatch

_SIZE, _DIMENSION, _ROUNDS = 100_000, 384, 5
_SEARCHES = 20


def tables(folder: Path) -> Iterator[Table]:
    """Yield one table: each kind, read and mapped in turns."""
    rows = []
    array = np.random.default_rng(11).standard_normal((_SIZE, _DIMENSION), dtype=np.float32)
    ids = [f"record {row}" for row in range(_SIZE)]
    for kind in ("flat", "auto"):
        index = FaissIndex(kind=kind)
        index.add(RecordBatch(ids, ids, EmbeddingBatch(array)))
        index.save(folder / kind)
        (file,) = (folder / kind).glob("vectors-*")
        found: dict[str, list[dict[str, float]]] = {"read": [], "mapped": []}
        for _ in range(_ROUNDS):
            for way, figures in found.items():
                figures.append(apart(__name__, folder / kind, way))
        for way, figures in found.items():
            middle = (median(each[name] for each in figures) for name in figures[0])
            rows.append((f"{kind}, {way}", *middle, file.stat().st_size / 2**20))
    yield Table(
        f"Opening {_SIZE:,} x {_DIMENSION}, median of {_ROUNDS} processes in turns",
        (
            "",
            "open, ms",
            "of it vectors, ms",
            "own memory, MiB",
            "pages of files, MiB",
            "a search, ms",
            "file of vectors, MiB",
        ),
        rows,
        (
            "Records are an id and a text of 13 letters; they are read either way.",
            "The file is in the page cache of the system. Memory is that after the opening and "
            f"{_SEARCHES} searches, less that before.",
        ),
    )


def opened(folder: str, way: str) -> dict[str, float]:
    """Open an index and search it."""
    faiss: Any = import_module("faiss")
    reading, read_index = 0.0, faiss.read_index

    def timed(*arguments: Any) -> Any:
        nonlocal reading
        start = perf_counter()
        index = read_index(*arguments)
        reading += perf_counter() - start
        return index

    faiss.read_index = timed
    own, pages = memory("RssAnon"), memory("RssFile")
    start = perf_counter()
    index = FaissIndex.load(folder, mmap=way == "mapped")
    opening, times = perf_counter() - start, []
    for row in np.random.default_rng(12).standard_normal((_SEARCHES, _DIMENSION), np.float32):
        start = perf_counter()
        index.search(Embedding(row), k=10)
        times.append(perf_counter() - start)
    return {
        "open": 1e3 * opening,
        "vectors": 1e3 * reading,
        "own": (memory("RssAnon") - own) / 2**20,
        "pages": (memory("RssFile") - pages) / 2**20,
        "search": 1e3 * median(times),
    }


if __name__ == "__main__":
    print(json.dumps(opened(*sys.argv[1:])))
