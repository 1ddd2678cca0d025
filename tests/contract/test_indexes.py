from pathlib import Path

import pytest

from ragopt import FaissIndex, MemoryIndex, Metric
from ragopt.testing import VectorIndexContract


class TestMemoryIndex(VectorIndexContract):
    def make_index(self, metric: Metric) -> MemoryIndex:
        return MemoryIndex(metric=metric)


class TestFaissFlat(VectorIndexContract):
    def make_index(self, metric: Metric) -> FaissIndex:
        return FaissIndex(metric=metric)


class TestFaissHnsw(VectorIndexContract):
    recall = 0.95

    def make_index(self, metric: Metric) -> FaissIndex:
        return FaissIndex(metric=metric, kind="hnsw")


class TestFaissLoadedFromDisk(VectorIndexContract):
    """An index that was saved and loaded before the test began is like any other."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_index(self, metric: Metric) -> FaissIndex:
        FaissIndex(metric=metric).save(self.folder / "index")
        return FaissIndex.load(self.folder / "index")
