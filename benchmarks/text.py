"""Search by words over public collections: what it finds, and how long it takes on each backend."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
from tests.retrieval_data import FOLDER, Collection, collection
from tests.services import postgres_server, redis_server

from benchmarks.report import Table
from ragopt import Embedding, EmbeddingBatch, MemoryIndex, PgvectorIndex, RecordBatch, RedisIndex
from ragopt.indexes.base import BaseVectorIndex

_TOP, _QUESTIONS = 10, 500
_COLLECTIONS = {
    "cranfield": "Cranfield: abstracts, English",
    "xquad_en": "XQuAD: paragraphs, English",
    "jsquad": "JSQuAD: paragraphs, Japanese",
}


def tables(_: Path) -> Iterator[Table]:
    """Yield one table: each collection on each backend."""
    with postgres_server() as dsn, redis_server() as url:
        rows = [row for name in _COLLECTIONS for row in _searched(name, dsn, url)]
    yield Table(
        f"Search by words, k={_TOP}, one question after the other",
        ("collection", "index", "nDCG@10", "answered by the first", "in the first 10", "ms (p50)"),
        rows,
        (
            "nDCG with linear gain. The texts of the documents, without their titles.",
            "answered: a document that is judged relevant to the question.",
        ),
    )


def _searched(name: str, dsn: str, url: str) -> Iterator[tuple[object, ...]]:
    data = collection(name)
    if data is None:
        raise SystemExit(f"The collection {name} is not in {FOLDER}. Set RAGOPT_DATA.")
    table = f"t_{secrets.token_hex(4)}"
    indexes: Sequence[BaseVectorIndex] = (
        MemoryIndex(),
        PgvectorIndex(dsn, table, index="none", text_search=True),
        RedisIndex(url, table, kind="flat", text_search=True),
    )
    ids, texts = list(data.documents), list(data.documents.values())
    for index in indexes:
        index.add(RecordBatch(ids, texts, EmbeddingBatch(np.ones((len(ids), 2), np.float32))))
        yield _COLLECTIONS[name], type(index).__name__, *_measured(index, data)
        index.close()


def _measured(index: BaseVectorIndex, data: Collection) -> tuple[float, float, float, float]:
    asked = [query for query in data.queries if _good(data.grades.get(query, {}))]
    gains, first, among, times = [], [], [], []
    for query in asked[:: max(1, len(asked) // _QUESTIONS)]:
        start = perf_counter()
        hits = index.search(Embedding(), text=data.queries[query], k=_TOP, by="text")
        times.append(perf_counter() - start)
        good = _good(data.grades[query])
        found = [good.get(hit.id, 0.0) for hit in hits]
        gains.append(_gain(found) / _gain(sorted(good.values(), reverse=True)[:_TOP]))
        first.append(any(found[:1]))
        among.append(any(found))
    return (
        float(np.mean(gains)), float(np.mean(first)), float(np.mean(among)),
        1e3 * float(np.median(times)),
    )  # fmt: skip


def _good(grades: Mapping[str, float]) -> dict[str, float]:
    return {document: grade for document, grade in grades.items() if grade > 0}


def _gain(grades: Sequence[float]) -> float:
    return float(np.sum(np.asarray(grades) / np.log2(np.arange(2, len(grades) + 2))))
