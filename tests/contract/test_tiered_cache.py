from pathlib import Path

import pytest

from ragopt import MemoryStore, SqliteStore, TieredCache
from ragopt.testing import FakeClock, KVStoreContract


class TestOneLayer(KVStoreContract):
    def make_store(self, clock: FakeClock) -> TieredCache:
        return TieredCache(MemoryStore(clock=clock), strict=True, clock=clock)


class TestTwoLayers(KVStoreContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "cache.db"

    def make_store(self, clock: FakeClock) -> TieredCache:
        layers = MemoryStore(clock=clock), SqliteStore(self.path, clock=clock)
        return TieredCache(*layers, strict=True, clock=clock)
