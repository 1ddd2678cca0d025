"""100,000 vectors of a real model in each HNSW index: how fast they go in, and what is found.

``python -m benchmarks.scale INDEX [URL]`` prints the figures of one index as JSON. It has to be a
process of its own: what another index left behind would be counted too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from tests.services import postgres_server, redis_server

from benchmarks.data import Known
from benchmarks.model_vectors import passages, vectors
from benchmarks.process import apart, forget_peak, memory
from benchmarks.report import Table
from ragopt import Embedding, FaissIndex, PgvectorIndex, RedisIndex
from ragopt.indexes.base import BaseVectorIndex
from ragopt.langchain import IndexVectorStore
from ragopt.types import Dense

_RECORDS, _QUERIES, _K, _BATCH = 100_000, 200, 10, 1_000
_TIE = 1e-5  # a record that is no farther than that behind the tenth is as good
_INDEXES: dict[str, Callable[[str], BaseVectorIndex]] = {
    "FaissIndex": lambda _: FaissIndex(kind="hnsw"),
    "PgvectorIndex": lambda url: PgvectorIndex(url, "scale"),
    "RedisIndex": lambda url: RedisIndex(url, "scale"),
}


def tables(_: Path) -> Iterator[Table]:
    """Yield one table: each index with its defaults, FAISS with its graph."""
    vectors(passages(_RECORDS + _QUERIES))  # by one process, before three ask for them
    with ExitStack() as servers:
        urls = {
            "FaissIndex": "",
            "PgvectorIndex": servers.enter_context(postgres_server()),
            "RedisIndex": servers.enter_context(redis_server()),
        }
        rows = [(name, *apart(__name__, name, url).values()) for name, url in urls.items()]
    yield Table(
        f"{_RECORDS:,} x 384 of all-MiniLM-L6-v2, {_BATCH:,} texts at a time, k={_K}",
        ("", "rows a second", "memory more, MiB", "recall@10", "a search, ms"),
        rows,
        (
            "The index of FAISS is HNSW with the defaults of FaissIndex; it is in this process.",
            "Memory is what the process grew by at its most, beside the texts and one array of all "
            f"vectors, {_RECORDS * 384 * 4 >> 20} MiB.",
            f"{_QUERIES} texts that are not in the index are asked; a search is their median.",
        ),
    )


def fill(name: str, url: str) -> dict[str, float]:
    """Put all records into an index, batch by batch, and search it.

    Returns:
        Rows a second, growth of the memory in MiB, recall and milliseconds of a search.
    """
    texts = passages(_RECORDS + _QUERIES)
    array = vectors(texts)
    asked, texts = array[_RECORDS:], texts[:_RECORDS]
    row_of = {text: row for row, text in enumerate(texts)}
    with _INDEXES[name](url) as index:
        store = IndexVectorStore(index, Known(texts, array))
        forget_peak()
        before = memory("VmRSS")
        start = perf_counter()
        store.add_texts(texts, batch_size=_BATCH, progress=True)
        seconds = perf_counter() - start
        grown = memory("VmHWM") - before
        found, times = [], []
        for query in asked:
            start = perf_counter()
            hits = index.search(Embedding(query), k=_K)
            times.append(perf_counter() - start)
            found.append([row_of[hit.text] for hit in hits])
    return {
        "rows a second": _RECORDS / seconds,
        "memory": grown / 2**20,
        "recall": recall(np.array(found), asked, array[:_RECORDS]),
        "search": 1e3 * median(times),
    }


def recall(found: np.ndarray, asked: Dense, array: Dense) -> float:
    """Return the share of what was found that is among the true nearest, ties included."""
    scores = asked @ array.T
    least = -np.partition(-scores, _K - 1, axis=1)[:, _K - 1 : _K]
    return float(np.mean(np.take_along_axis(scores, found, axis=1) >= least - _TIE))


if __name__ == "__main__":
    print(json.dumps(fill(*sys.argv[1:])))
