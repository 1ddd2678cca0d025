"""Maximal marginal relevance: near the query, and not all alike."""

from __future__ import annotations

import numpy as np

from ragopt.errors import InvalidInput
from ragopt.indexes.scores import unit
from ragopt.types import Dense


def mmr(query: Dense, candidates: Dense, *, k: int, lambda_mult: float = 0.5) -> list[int]:
    """Choose ``k`` candidates one by one, each by ``λ·sim(query) - (1-λ)·max sim(chosen)``.

    Args:
        query: Shape ``(dimension,)``.
        candidates: Shape ``(n, dimension)``.
        k: How many to choose; at most ``n`` are.
        lambda_mult: 1 for relevance alone, 0 for variety alone.

    Returns:
        Positions of the chosen candidates, in the order they were chosen.

    References:
        Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering
        Documents and Producing Summaries", SIGIR 1998. Similarity is the cosine.
    """
    if not 0 <= lambda_mult <= 1:
        raise InvalidInput(f"lambda_mult is {lambda_mult}.", fix="Give a number from 0 to 1.")
    vectors = unit(np.asarray(candidates, dtype=np.float32))
    relevance = vectors @ unit(np.asarray(query, dtype=np.float32)[None, :])[0]
    chosen: list[int] = []
    nearest = np.full(len(vectors), -np.inf, dtype=np.float32)  # to any that is chosen
    gain = relevance.copy()
    for _ in range(min(k, len(vectors))):
        pick = int(np.argmax(gain))
        chosen.append(pick)
        nearest = np.maximum(nearest, vectors @ vectors[pick])
        gain = lambda_mult * relevance - (1 - lambda_mult) * nearest
        gain[chosen] = -np.inf
    return chosen
