"""A deterministic embedder without a model, for tests and as a floor in comparisons."""

from __future__ import annotations

import re
from hashlib import blake2b
from math import log

import numpy as np

from ragopt._runtime import Runtime
from ragopt.embedders.base import BaseEmbedder
from ragopt.errors import InvalidInput
from ragopt.types import (
    OUTPUTS,
    Dense,
    EmbedderSpec,
    EmbeddingBatch,
    Output,
    Role,
    SparseVector,
)

_WORD = re.compile(r"\w+")
_TERMS = 1_000_000_000  # the most that a sparse column of pgvector takes


class HashingEmbedder(BaseEmbedder):
    """Feature hashing: every word and character trigram adds ±1 to one dimension.

    Texts that share words are near each other; there is no meaning in it beyond that. It makes
    all three outputs, the same on every machine and in every process, and needs no weights.

    Args:
        dimension: Length of the dense vectors and of each row of the multi-vectors.

    References:
        Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
    """

    def __init__(self, dimension: int = 256) -> None:
        if dimension < 1:
            raise InvalidInput(f"A dimension of {dimension} was given.", fix="Give 1 or more.")
        self._dimension = dimension

    @property
    def spec(self) -> EmbedderSpec:
        """What the vectors depend on."""
        return EmbedderSpec(
            "ragopt/hashing", revision="2", dimension=self._dimension, outputs=frozenset(OUTPUTS)
        )

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        return await io.cpu(self._compute, texts, role, outputs)

    def _compute(self, texts: list[str], role: Role, outputs: frozenset[Output]) -> EmbeddingBatch:
        words = [_WORD.findall(text.casefold()) or [""] for text in texts]
        dense = sparse = multi = None
        if "dense" in outputs:
            # A pinch of the role keeps a query apart from a document of the same text, as in
            # models with instructions, without changing which documents are nearest.
            pinch = self._vector([f"role:{role}"]) * np.float32(0.05)
            dense = np.stack([_unit(self._vector(_grams(each)) + pinch) for each in words])
        if "sparse" in outputs:
            sparse = [_weights(each) for each in words]
        if "multi" in outputs:
            multi = [np.stack([_unit(self._vector(_grams([w]))) for w in each]) for each in words]
        return EmbeddingBatch(dense, sparse, multi)

    def _vector(self, features: list[str]) -> Dense:
        vector = np.zeros(self._dimension, dtype=np.float32)
        for feature in features:
            number = _hash(feature)
            vector[(number >> 1) % self._dimension] += 1 if number & 1 else -1
        return vector


def _grams(words: list[str]) -> list[str]:
    padded = [f"^{word}$" for word in words]
    return [*words, *(word[i : i + 3] for word in padded for i in range(len(word) - 2))]


def _unit(vector: Dense) -> Dense:
    norm = np.float32(np.sqrt(vector @ vector))
    if norm:
        return vector / norm
    first = np.zeros_like(vector)
    first[0] = 1
    return first


def _weights(words: list[str]) -> SparseVector:
    counts: dict[int, float] = {}
    for word in words:
        term = _hash(word) % _TERMS
        counts[term] = counts.get(term, 0.0) + 1.0
    return SparseVector.from_dict({term: 1 + log(count) for term, count in counts.items()})


def _hash(feature: str) -> int:
    return int.from_bytes(blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest())
