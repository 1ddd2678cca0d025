"""BGE-M3 at full size on a CPU, with random weights: texts of mixed length, and questions."""

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
from ragopt import BGEM3Embedder
from ragopt.types import OUTPUTS, Output

_ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
_DENSE = {"return_dense": True, "return_sparse": False, "return_colbert_vecs": False}
_BEST, _AT_16, _LONE = Bound(peer=1 / 1.6), Bound(peer=1 / 2.3), Bound(peer=1 / 5)
_INT8 = Bound(peer=1 / 2.5)
_TEXTS, _SHORTEST, _LONGEST = 64, 17, 323  # tokens
_QUESTION = "How do I open a file in the garden?"


class Near:
    """Vectors that are equal to others that differ by rounding only, or by int8."""

    def __init__(self, array: Any, tolerance: float = 1e-4) -> None:
        self.array = array
        self.tolerance = tolerance

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Near) and np.allclose(
            self.array, other.array, rtol=0, atol=max(self.tolerance, other.tolerance)
        )

    __hash__ = None  # type: ignore[assignment]


@contextmanager
def rows(_: Path) -> Iterator[Sequence[Row]]:
    """Build the model, once on a machine; yield a row for many texts and one for a question."""
    torch.set_num_threads(os.cpu_count() or 1)
    folder = full_size(Path(tempfile.gettempdir()) / "bge-m3-full")
    ours = {
        "torch": BGEM3Embedder(folder, device="cpu"),
        "onnx": BGEM3Embedder(folder, engine="onnx"),
        "int8": BGEM3Embedder(folder, engine="onnx", precision="int8"),
    }
    peer = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model.eval()
    texts = _texts(tokenizer)

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

    def engine(name: str, asked: list[str], outputs: Sequence[Output]) -> Contender:
        tolerance = 0.02 if name == "int8" else 1e-4
        return Contender(
            name,
            lambda _: ours[name].embed(asked, outputs=outputs),
            lambda batch: Near(batch.dense, tolerance),
        )

    def of_peer(found: Any) -> Near:
        return Near(found["dense_vecs"])

    def of_size(size: int) -> Contender:
        return Contender(f"FlagEmbedding {size}", lambda _: encode(texts, size, _ALL), of_peer)

    padded, sizes = "padded, batches of 8", (2, 8, 16)
    two, eight, sixteen = (f"FlagEmbedding {size}" for size in sizes)
    yield (
        Row(
            f"BGE-M3, {_TEXTS} texts, three outputs",
            [
                Contender(padded, lambda _: plain(texts, 8), first),
                *(of_size(size) for size in sizes),
                *(engine(name, texts, OUTPUTS) for name in ours),
            ],
            [
                Line("torch, batches of 8", "torch", padded, eight),
                Line("onnx, batches of 2", "onnx", padded, two, _BEST),
                Line("onnx, batches of 8", "onnx", padded, eight, _BEST),
                Line("onnx, batches of 16", "onnx", padded, sixteen, _AT_16),
                Line("int8, batches of 2", "int8", padded, two, _INT8),
                Line("int8, batches of 8", "int8", padded, eight, _INT8),
            ],
        ),
        Row(
            "BGE-M3, one question, dense",
            [
                Contender("padded", lambda _: plain([_QUESTION], 1), first),
                Contender("FlagEmbedding", lambda _: encode([_QUESTION], 1, _DENSE), of_peer),
                *(engine(name, [_QUESTION], ["dense"]) for name in ours),
            ],
            [
                Line("torch", "torch", "padded", "FlagEmbedding"),
                Line("onnx", "onnx", "padded", "FlagEmbedding", _LONE),
                Line("int8", "int8", "padded", "FlagEmbedding"),
            ],
        ),
    )


def _texts(tokenizer: Any) -> list[str]:
    """Return texts of different words, as many short as long ones on a scale of logarithms."""
    random = np.random.default_rng(0)
    known = list(sentences(400, seed=3))
    ends = np.geomspace(_SHORTEST, _LONGEST, _TEXTS).round().astype(int)
    texts = []
    for tokens in random.permutation(ends):
        text = " ".join(random.choice(known, _LONGEST))
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        texts.append(text[: offsets[tokens - 2][1]])
    return texts
