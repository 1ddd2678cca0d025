"""BGE-M3 at full size on a CPU, with random weights: 64 texts of mixed length, and one question."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from FlagEmbedding import BGEM3FlagModel
from tests.checkpoints import full_size, sentences
from transformers import AutoModel, AutoTokenizer

from benchmarks.harness import Bound, Contender, Line, Row
from ragopt import BGEM3Embedder, EmbeddingBatch
from ragopt.types import OUTPUTS

_ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
_DENSE = {"return_dense": True, "return_sparse": False, "return_colbert_vecs": False}
_TOLERANCE = 1e-4
_BEST, _AT_16, _LONE = Bound(peer=1 / 1.6), Bound(peer=1 / 2.3), Bound(peer=1 / 5)
_QUESTION = "How do I open a file in the garden?"


class Near:
    """Vectors that are equal to others that differ by rounding only."""

    def __init__(self, *arrays: Any) -> None:
        self.arrays = arrays

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Near) and all(
            one.shape == two.shape and np.allclose(one, two, atol=_TOLERANCE)
            for one, two in zip(self.arrays, other.arrays, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]


@contextmanager
def rows(_: Path) -> Iterator[Sequence[Row]]:
    """Build the model, once on a machine; yield a row for many texts and one for a question."""
    torch.set_num_threads(os.cpu_count() or 1)
    folder = full_size(Path(tempfile.gettempdir()) / "bge-m3-full")
    texts = _texts()
    ours = BGEM3Embedder(folder, device="cpu")
    peer = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model.eval()

    def plain(asked: list[str], size: int) -> list[Any]:
        """Run the model alone, padded, the longest texts first."""
        found: list[Any] = [None] * len(asked)
        order = sorted(range(len(asked)), key=lambda i: len(asked[i]), reverse=True)
        with torch.inference_mode():
            for start in range(0, len(order), size):
                part = order[start : start + size]
                inputs = tokenizer([asked[i] for i in part], padding=True, return_tensors="pt")
                for i, states in zip(part, model(**inputs).last_hidden_state, strict=True):
                    found[i] = states[0]
        return found

    def encode(asked: list[str], size: int, outputs: dict[str, bool]) -> Any:
        return peer.encode(asked, batch_size=size, max_length=8192, **outputs)

    def first(states: list[Any]) -> Near:
        return Near(torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy())

    def of_ours(batch: EmbeddingBatch) -> Near:
        return Near(batch.dense)

    many = "BGE-M3, 64 texts, three outputs"
    alone = "BGE-M3, one question, dense"
    yield (
        Row(
            many,
            [
                Contender("padded, batches of 8", lambda _: plain(texts, 8), first),
                Contender(
                    "FlagEmbedding 8",
                    lambda _: encode(texts, 8, _ALL),
                    lambda found: Near(found["dense_vecs"]),
                ),
                Contender(
                    "FlagEmbedding 16",
                    lambda _: encode(texts, 16, _ALL),
                    lambda found: Near(found["dense_vecs"]),
                ),
                Contender("ours", lambda _: ours.embed(texts, outputs=OUTPUTS), of_ours),
            ],
            [
                Line("batches of 8", "ours", "padded, batches of 8", "FlagEmbedding 8", _BEST),
                Line("batches of 16", "ours", "padded, batches of 8", "FlagEmbedding 16", _AT_16),
            ],
        ),
        Row(
            alone,
            [
                Contender("padded", lambda _: plain([_QUESTION], 1), first),
                Contender(
                    "FlagEmbedding",
                    lambda _: encode([_QUESTION], 1, _DENSE),
                    lambda found: Near(found["dense_vecs"]),
                ),
                Contender("ours", lambda _: ours.embed([_QUESTION]), of_ours),
            ],
            [Line("float32", "ours", "padded", "FlagEmbedding", _LONE)],
        ),
    )


def _texts() -> list[str]:
    """Return 64 texts of 20 to 320 tokens."""
    generator = np.random.default_rng(0)
    known = list(sentences(400, seed=3))
    return [
        " ".join(generator.choice(known, int(number))) for number in generator.integers(1, 20, 64)
    ]
