import pytest
from tests.contract.places import OnPostgres

from ragopt import Metric
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.testing import SparseIndexContract, TextIndexContract, VectorIndexContract


class Database(OnPostgres, VectorIndexContract):
    many = 3_000


class TestExact(Database):
    def make_index(self, metric: Metric) -> PgvectorIndex:
        return self.fresh(metric=metric, index="none")


class TestHnsw(Database):
    recall = 0.95

    def make_index(self, metric: Metric) -> PgvectorIndex:
        return self.fresh(metric=metric)


@pytest.mark.slow
class TestHalfPrecision(Database):
    recall = 0.95
    many = 1_000

    def make_index(self, metric: Metric) -> PgvectorIndex:
        return self.fresh(metric=metric, precision="float16")


@pytest.mark.slow
class TestIvfflat(Database):
    recall = 0.95

    def make_index(self, metric: Metric) -> PgvectorIndex:
        return self.fresh(metric=metric, index="ivfflat", lists=8, probes=6)


@pytest.mark.slow
class TestBits(Database):
    recall = 0.95

    def make_index(self, metric: Metric) -> PgvectorIndex:
        if metric is Metric.L2:
            pytest.skip("Bits say nothing of lengths: this metric is refused with a sentence.")
        return self.fresh(metric=metric, quantization="bit", rescore=40)


class TestSparse(OnPostgres, SparseIndexContract):
    def make_index(self) -> PgvectorIndex:
        return self.fresh(index="none")


@pytest.mark.slow
class TestSparseHnsw(OnPostgres, SparseIndexContract):
    recall = 0.95

    def make_index(self) -> PgvectorIndex:
        return self.fresh(index="none", sparse_index="hnsw")


class TestText(OnPostgres, TextIndexContract):
    def make_index(self) -> PgvectorIndex:
        return self.fresh(index="none", text_search=True)
