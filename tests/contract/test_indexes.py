from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ragopt import Embedding, F, FaissIndex, MemoryIndex, Metric
from ragopt.testing import VectorIndexContract
from ragopt.testing.records import batch, exact_scores, vectors


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

    def test_the_nearest_with_their_scores(self, measured: Any) -> None:
        """The contract's test, with room for what the codes lose."""
        matrix, queries = vectors(500), vectors(20, seed=1)
        measured.add(batch([f"r{i}" for i in range(500)], matrix))
        found = 0
        for query in queries:
            truth = exact_scores(query, matrix, measured.metric)
            hits = measured.search(Embedding(query), k=10)
            scores = [hit.score for hit in hits]
            assert len(hits) == 10
            assert scores == sorted(scores, reverse=True)
            expected = [truth[int(hit.id[1:])] for hit in hits]
            np.testing.assert_allclose(scores, expected, rtol=0.06, atol=0.06)
            found += len({f"r{i}" for i in np.argsort(-truth)[:10]} & {hit.id for hit in hits})
        assert found >= self.recall * 10 * len(queries)

    def test_range_search(self, measured: Any) -> None:
        """The contract's test, where records as near to the limit as codes err may be missed."""
        matrix, (query,) = vectors(400), vectors(1, seed=1)
        measured.add(batch([f"r{i}" for i in range(400)], matrix, [{"i": i} for i in range(400)]))
        truth = exact_scores(query, matrix, measured.metric)
        for least in (*np.quantile(truth, [0.25, 0.9]), truth.max() + 1):
            hits = measured.search(Embedding(query), k=None, min_score=float(least))
            found = {hit.id for hit in hits}
            assert {f"r{i}" for i in np.flatnonzero(truth >= least + 0.1)} <= found
            assert found <= {f"r{i}" for i in np.flatnonzero(truth >= least - 0.1)}
            assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
            few = measured.search(
                Embedding(query), k=None, min_score=float(least), where=F("i") < 40
            )
            assert {h.id for h in few} == {h.id for h in hits if h.metadata["i"] < 40}


class TestFaissFp16(Decoded):
    __test__ = True
    recall = 0.99
    options: ClassVar[dict[str, Any]] = {"kind": "fp16"}
    becomes = "IndexScalarQuantizer"


class TestFaissPqRefined(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "pq_refined"}
    becomes = "IndexRefine"


class TestFaissRabitqRefined(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "rabitq_refined"}
    becomes = "IndexRefine"


class TestFaissAuto(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "auto"}
    becomes = "IndexRefine"


class TestFaissIvfFlat(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "ivf_flat"}
    becomes = "IndexIVFFlat"


class TestFaissFactory(Trained):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"factory": "IVF4,SQ8,RFlat"}
    becomes = "IndexRefine"


class TestFaissSq8(Decoded):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {"kind": "sq8"}
    becomes = "IndexScalarQuantizer"


@pytest.mark.slow  # it trains for longer than all others
class TestFaissIvfPq(Decoded):
    __test__ = True
    options: ClassVar[dict[str, Any]] = {
        "kind": "ivf_pq",
        "train_at": 300,
    }  # its codes have 256 values
    becomes = "IndexIVFPQ"
