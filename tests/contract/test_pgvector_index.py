import secrets

import pytest

from ragopt import Metric
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.testing import VectorIndexContract


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
