import numpy as np
import pytest
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from ragopt.errors import InvalidInput
from ragopt.retrieval.mmr import mmr


@pytest.mark.parametrize("lambda_mult", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_the_same_choice_as_the_reference(lambda_mult: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    query, candidates = random.normal(size=8), random.normal(size=(30, 8))
    expected = maximal_marginal_relevance(query, list(candidates), lambda_mult, k=10)
    chosen = mmr(
        query.astype(np.float32), candidates.astype(np.float32), k=10, lambda_mult=lambda_mult
    )
    assert chosen == expected


def test_edges() -> None:
    query, candidates = np.ones(2, np.float32), np.eye(2, dtype=np.float32)
    assert sorted(mmr(query, candidates, k=9)) == [0, 1]
    assert mmr(query, candidates[:0], k=3) == []
    with pytest.raises(InvalidInput, match="lambda_mult"):
        mmr(query, candidates, k=1, lambda_mult=2)
