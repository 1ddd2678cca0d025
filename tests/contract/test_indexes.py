from typing import Any, ClassVar

import pytest
from tests.contract.places import OnDisk

from ragopt import FaissIndex, MemoryIndex, Metric
from ragopt.testing import VectorIndexContract
from ragopt.testing.records import batch, vectors


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


class TestFaissLoadedFromDisk(OnDisk, VectorIndexContract):
    def make_index(self, metric: Metric) -> FaissIndex:
        return self.fresh(metric=metric)


class Trained(VectorIndexContract):
    """A kind that learns, made to learn from so few records that the contract meets it trained."""

    __test__ = False

    recall = 0.95
    many = 3_000
    options: ClassVar[dict[str, Any]]
    #: What serves once there are records enough.
    becomes: ClassVar[str]

    def make_index(self, metric: Metric) -> FaissIndex:
        return FaissIndex(metric=metric, **{"train_at": 64, **self.options})

    def test_the_contract_meets_it_trained(self, index: Any, raw: FaissIndex) -> None:
        index.add(batch([f"r{i}" for i in range(60)], vectors(60)))
        assert type(raw._index).__name__ == "IndexFlat"
        index.add(batch([f"s{i}" for i in range(440)], vectors(440, seed=1)))
        assert type(raw._index).__name__ == self.becomes


class Decoded(Trained):
    """A kind that keeps codes only: its scores are those of the decoded vectors."""

    __test__ = False

    recall = 0.9
    error = (0.06, 0.06)
    margin = 0.1


class TestFaissFp16(Decoded):
    __test__ = True
    recall = 0.99
    options: ClassVar[dict[str, Any]] = {"kind": "fp16"}
    becomes = "IndexScalarQuantizer"


class TestFaissPqRefined(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "pq_refined"}
    becomes = "IndexRefine"


@pytest.mark.slow  # one of its like is among the fast ones
class TestFaissRabitqRefined(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "rabitq_refined"}
    becomes = "IndexRefine"


@pytest.mark.slow  # one of its like is among the fast ones
class TestFaissAuto(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "auto"}
    becomes = "IndexRefine"


class TestFaissIvfFlat(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "ivf_flat"}
    becomes = "IndexIVFFlat"


@pytest.mark.slow  # one of its like is among the fast ones
class TestFaissFactory(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"factory": "IVF4,SQ8,RFlat"}
    becomes = "IndexRefine"


@pytest.mark.slow  # one of its like is among the fast ones
class TestFaissSq8(Decoded):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "sq8"}
    becomes = "IndexScalarQuantizer"


@pytest.mark.slow  # it trains for longer than all others
class TestFaissIvfPq(Decoded):
    __test__ = True
    # Its codes have 256 values.
    options: ClassVar[dict[str, Any]] = {"kind": "ivf_pq", "train_at": 300}
    becomes = "IndexIVFPQ"
