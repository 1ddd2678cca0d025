"""Records, metadata and filters that are awkward, for the contract of indexes."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragopt.filters import Documents, F, Filter, Ids
from ragopt.types import Dense, EmbeddingBatch, Metric, RecordBatch

HOSTILE = [
    "'; DROP TABLE records; --",
    'quote " and \\ backslash',
    "{braces} $where *|-@:[]()",
    "tab\tnewline\n comma, edge ",
    "日本語と한국어",
    "🙂" * 10,
    "%_",
    "x" * 10_000,
]

METADATA: list[dict[str, Any]] = [
    {"n": 1, "s": "one", "tags": ["a", "b"], "flag": True, "when": date(2024, 1, 1)},
    {"n": 2.5, "s": "Two words", "tags": ["b"], "flag": False, "when": date(2025, 6, 1)},
    {"n": -3, "s": "", "tags": [], "flag": True, "nothing": None},
    {"n": 0, "s": "100%_sure", "tags": ["A", "c"], "deep": {"a": [1, {"b": None}]}},
    {"s": "日本語の文書", "tags": ["日本"], "at": datetime(2025, 1, 1, 12, tzinfo=UTC)},
    {"n": True, "s": "1", "tags": [1, "1"]},
    {},
    {"n": "1", "s": "one", "Header 1": "Intro"},
]

FILTERS: list[Filter] = [
    F("n") == 1,
    F("n") == "1",
    F("n") == True,  # noqa: E712 - a comparison with the boolean, not a test of truth
    F("n") != 1,
    F("n") < 1,
    F("n") <= 1,
    F("n") > -3,
    F("n") >= 2.5,
    F("n").between(0, 2),
    F("n").is_in([1, 2.5]),
    F("n").is_in([]),
    F("n").not_in([1, 0]),
    F("s") == "",
    F("s") < "b",
    F("s").text_match("o"),
    F("s").text_match("TWO", case=False),
    F("s").text_match("日本"),
    F("s").like("%e"),
    F("s").like("T_o%"),
    F("s").is_empty(),
    F("tags").contains("b"),
    F("tags").contains("a,b"),
    F("tags").contains(1),
    F("tags").any(["a", "c"]),
    F("tags").all(["a", "b"]),
    F("tags").all([]),
    F("tags").is_empty(),
    F("flag") == True,  # noqa: E712
    F("flag") != True,  # noqa: E712
    F("when") >= date(2025, 1, 1),
    F("at") == datetime(2025, 1, 1, 12, tzinfo=UTC),
    F("nothing").exists(),
    F("nothing").is_empty(),
    F("nothing") == None,  # noqa: E711
    F("Header 1") == "Intro",
    ~(F("n") == 1),
    (F("n") > 0) & (F("s") == "one"),
    (F("n") > 2) | F("tags").contains("c"),
    ~((F("n") > 0) | F("s").is_empty()),
    Ids(["r0", "r3", "missing"]),
    Ids([]),
    Documents(["d0"]),
    Documents(["d0"]) & (F("n") == 1),
]


def vectors(n: int, dimension: int = 16, seed: int = 0) -> Dense:
    """Return random vectors of several lengths."""
    random = np.random.default_rng(seed)
    return random.normal(size=(n, dimension)).astype(np.float32)


def batch(
    ids: list[str], dense: Dense, metadatas: list[dict[str, Any]] | None = None, **columns: Any
) -> RecordBatch:
    """Return records with texts of their own."""
    texts = columns.pop("texts", [f"text of {id_}" for id_ in ids])
    return RecordBatch(ids, texts, EmbeddingBatch.of_dense(dense), metadatas, **columns)


def exact_scores(query: Dense, matrix: Dense, metric: Metric) -> NDArray[np.float64]:
    """Return the definition of each metric, in double precision."""
    q, m = query.astype(np.float64), matrix.astype(np.float64)
    if metric is Metric.L2:
        return np.asarray(-np.linalg.norm(m - q, axis=1))
    scores = np.asarray(m @ q)
    if metric is Metric.COSINE:
        scores = scores / np.linalg.norm(m, axis=1) / np.linalg.norm(q)
    return scores
