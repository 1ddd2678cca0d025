"""The contracts on an alias, given no option: it does what the index does that it names."""

import pytest
from tests.contract.places import ByRedisAlias

from ragopt import Metric, RedisIndex
from ragopt.testing import (
    MultiIndexContract,
    SparseIndexContract,
    TextIndexContract,
    VectorIndexContract,
)


@pytest.mark.slow
class TestExact(ByRedisAlias, VectorIndexContract):
    many = 3_000
    # An alias names an index that is there, and so has a dimension: these want another, or none.
    test_a_model_is_named_by_the_first_records = None  # type: ignore[assignment]
    test_min_score = None  # type: ignore[assignment]
    test_relevance = None  # type: ignore[assignment]
    test_statistics = None  # type: ignore[assignment]

    def make_index(self, metric: Metric) -> RedisIndex:
        return self.fresh(metric=metric, kind="flat")


@pytest.mark.slow
class TestSparse(ByRedisAlias, SparseIndexContract):
    test_fusion_finds_what_one_way_does_not = None  # type: ignore[assignment]

    def make_index(self) -> RedisIndex:
        return self.fresh(kind="flat")


class TestText(ByRedisAlias, TextIndexContract):
    test_fusion = None  # type: ignore[assignment]

    def make_index(self) -> RedisIndex:
        return self.fresh(kind="flat", text_search=True)


class TestMulti(ByRedisAlias, MultiIndexContract):
    def make_index(self) -> RedisIndex:
        return self.fresh(kind="flat")
