"""BGE-M3 at full size on a CPU, with random weights: texts of mixed length."""

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
_BEST, _AT_16 = Bound(peer=1 / 1.6), Bound(peer=1 / 2.3)
_INT8 = Bound(peer=1 / 2.5)
_TEXTS, _SHORTEST, _LONGEST = 64, 17, 323  # tokens


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


class Sides:
    """The model in FlagEmbedding, in plain transformers and in each engine of ragopt."""

    def __init__(self) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        folder = full_size(Path(tempfile.gettempdir()) / "bge-m3-full")
        self.ours = {
            "torch": BGEM3Embedder(folder, device="cpu"),
            "onnx": BGEM3Embedder(folder, engine="onnx"),
            "int8": BGEM3Embedder(folder, engine="onnx", precision="int8"),
        }
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._peer = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")
        self._model = AutoModel.from_pretrained(folder).eval()

    def engines(self, asked: list[str], outputs: Sequence[Output]) -> list[Contender]:
        """Return a contender for each engine of ours."""

        def engine(name: str) -> Contender:
            tolerance = 0.02 if name == "int8" else 1e-4
            return Contender(
                name,
                lambda _: self.ours[name].embed(asked, outputs=outputs),
                lambda batch: Near(batch.dense, tolerance),
            )

        return [engine(name) for name in self.ours]

    def peer(self, name: str, asked: list[str], size: int, outputs: dict[str, bool]) -> Contender:
        """Return FlagEmbedding with a batch size."""
        encode = self._peer.encode
        return Contender(
            name,
            lambda _: encode(asked, batch_size=size, max_length=8192, **outputs),
            lambda found: Near(found["dense_vecs"]),
        )

    def padded(self, name: str, asked: list[str], size: int) -> Contender:
        """Return the model alone, with padded batches, the longest texts first."""

        def run(_: int) -> list[Any]:
            found: list[Any] = [None] * len(asked)
            order = sorted(range(len(asked)), key=lambda i: len(asked[i]), reverse=True)
            with torch.inference_mode():
                for start in range(0, len(order), size):
                    part = order[start : start + size]
                    texts = [asked[i] for i in part]
                    inputs = self.tokenizer(texts, padding=True, return_tensors="pt")
                    states = self._model(**inputs).last_hidden_state
                    for i, each in zip(part, states, strict=True):
                        found[i] = each[0]
            return found

        def first(states: list[Any]) -> Near:
            return Near(torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy())

        return Contender(name, run, first)


@contextmanager
def rows(_: Path) -> Iterator[Sequence[Row]]:
    """Build the model, once on a machine; yield one row."""
    sides = Sides()
    texts = _texts(sides.tokenizer)
    padded, sizes = "padded, batches of 8", (2, 8, 16)
    two, eight, sixteen = names = [f"FlagEmbedding {size}" for size in sizes]
    yield [
        Row(
            f"BGE-M3, {_TEXTS} texts, three outputs",
            [
                sides.padded(padded, texts, 8),
                *(sides.peer(*each, _ALL) for each in zip(names, [texts] * 3, sizes, strict=True)),
                *sides.engines(texts, OUTPUTS),
            ],
            [
                Line("torch, batches of 8", "torch", padded, eight),
                Line("onnx, batches of 2", "onnx", padded, two, _BEST),
                Line("onnx, batches of 8", "onnx", padded, eight, _BEST),
                Line("onnx, batches of 16", "onnx", padded, sixteen, _AT_16),
                Line("int8, batches of 2", "int8", padded, two, _INT8),
                Line("int8, batches of 8", "int8", padded, eight, _INT8),
            ],
        )
    ]


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
