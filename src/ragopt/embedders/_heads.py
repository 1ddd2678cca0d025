"""From what a model says of each token to one embedding of each text.

The sparse and the multi-vector are those of Chen et al., "M3-Embedding", 2024, section 3.2.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragopt.types import Dense, Output, SparseVector

HEADS: dict[Output, str] = {"sparse": "sparse_linear.pt", "multi": "colbert_linear.pt"}
"""The files of the linear layers, beside the model's weights."""


def to_numpy(tensor: Any) -> Dense:
    """Return a tensor as float32 on the CPU."""
    array: Dense = tensor.float().cpu().numpy()
    return array


def sparse_vectors(
    ids: Sequence[Sequence[int]], weights: Dense, special: Collection[int]
) -> list[SparseVector]:
    """Return the highest weight of each token id of each text.

    Args:
        ids: Token ids of each text.
        weights: Weights of all tokens, one text after another, shape ``(tokens,)``.
        special: Token ids that say nothing of a text.
    """
    lengths = [len(each) for each in ids]
    tokens = np.fromiter((token for each in ids for token in each), np.int64, sum(lengths))
    texts = np.repeat(np.arange(len(ids)), lengths)
    kept = (weights > 0) & ~np.isin(tokens, list(special))
    tokens, texts, weights = tokens[kept], texts[kept], weights[kept]
    # One number for a token of a text, so that one sort brings equals together, in order.
    size = int(tokens.max(initial=0)) + 1
    places, best = highest(texts * size + tokens, weights)
    owners = places // size
    bounds = np.searchsorted(owners, np.arange(len(ids) + 1))
    return [
        SparseVector(places[begin:end] - owner * size, best[begin:end])
        for owner, (begin, end) in enumerate(pairwise(bounds))
    ]


def highest(keys: NDArray[np.int64], values: Dense) -> tuple[NDArray[np.int64], Dense]:
    """Return the keys, each once and ascending, and the highest value of each; none is below 0."""
    found, places = np.unique(keys, return_inverse=True)
    best = np.zeros(len(found), np.float32)
    np.maximum.at(best, places, values)
    return found, best


def special_ids(tokenizer: Any) -> set[int]:
    """Return the token ids that have no weight: those at the ends, of padding, and unknown."""
    named = (
        tokenizer.cls_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
    )
    return {each for each in named if each is not None}


def cut_apart(rows: Dense, lengths: Sequence[int]) -> list[Dense]:
    """Return one array for each text, of rows that lie one text after another."""
    ends = np.cumsum(lengths)
    # Copies: a view would keep the whole batch in memory for as long as any of its texts.
    return [rows[end - length : end].copy() for end, length in zip(ends, lengths, strict=True)]


def first_rows(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return where each text begins."""
    return np.cumsum([0, *lengths[:-1]])
