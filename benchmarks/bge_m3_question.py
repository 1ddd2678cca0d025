"""One question through BGE-M3 at full size on a CPU: what a user waits for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bge_m3 import Sides
from benchmarks.harness import Bound, Line, Row

_QUESTION = ["How do I open a file in the garden?"]
_DENSE = {"return_dense": True, "return_sparse": False, "return_colbert_vecs": False}
_BOUND = Bound(peer=1 / 5)


@contextmanager
def rows(_: Path) -> Iterator[Sequence[Row]]:
    """Build the model, once on a machine; yield one row."""
    sides, peer = Sides(), "FlagEmbedding"
    yield [
        Row(
            "BGE-M3, one question, dense",
            [
                sides.padded("padded", _QUESTION, 1),
                sides.peer(peer, _QUESTION, 1, _DENSE),
                *sides.engines(_QUESTION, ["dense"]),
            ],
            [
                Line("torch", "torch", "padded", peer),
                Line("onnx", "onnx", "padded", peer, _BOUND),
                Line("int8", "int8", "padded", peer),
            ],
        )
    ]
