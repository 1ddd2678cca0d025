import secrets

import pytest

from ragopt import Metric
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.testing import SparseIndexContract, TextIndexContract, VectorIndexContract


class Database(VectorIndexContract):
    many = 3_000

    @pytest.fixture(autouse=True)
    def _dsn(self, postgres_dsn: str) -> None:
        self.dsn = postgres_dsn


class TestExact(Database):
    def make_index(self, metric: Metric) -> PgvectorIndex:
        return PgvectorIndex(self.dsn, f"t_{secrets.token_hex(8)}", metric=metric, index="none")


class TestHnsw(Database):
    recall = 0.95

    def make_index(self, metric: Metric) -> PgvectorIndex:
        return PgvectorIndex(self.dsn, f"t_{secrets.token_hex(8)}", metric=metric)


@pytest.mark.slow
class TestHalfPrecision(Database):
    recall = 0.95
    many = 1_000

    def make_index(self, metric: Metric) -> PgvectorIndex:
        name = f"t_{secrets.token_hex(8)}"
        return PgvectorIndex(self.dsn, name, metric=metric, precision="float16")


class Sparse(SparseIndexContract):
    @pytest.fixture(autouse=True)
    def _dsn(self, postgres_dsn: str) -> None:
        self.dsn = postgres_dsn


class TestSparse(Sparse):
    def make_index(self) -> PgvectorIndex:
        return PgvectorIndex(self.dsn, f"t_{secrets.token_hex(8)}", index="none")


@pytest.mark.slow
class TestSparseHnsw(Sparse):
    recall = 0.95

    def make_index(self) -> PgvectorIndex:
        name = f"t_{secrets.token_hex(8)}"
        return PgvectorIndex(self.dsn, name, index="none", sparse_index="hnsw")


class TestText(TextIndexContract):
    @pytest.fixture(autouse=True)
    def _dsn(self, postgres_dsn: str) -> None:
        self.dsn = postgres_dsn

    def make_index(self) -> PgvectorIndex:
        name = f"t_{secrets.token_hex(8)}"
        return PgvectorIndex(self.dsn, name, index="none", text_search=True)
