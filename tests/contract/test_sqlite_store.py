from pathlib import Path

import pytest

from ragopt import SqliteStore
from ragopt.testing import CoordinatorContract, FakeClock


class TestSqliteStore(CoordinatorContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "missing" / "folder" / "cache.db"

    def make_store(self, clock: FakeClock) -> SqliteStore:
        return SqliteStore(self.path, clock=clock)
