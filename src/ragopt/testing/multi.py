"""What an index of multi-vectors must do, alone and fused with other ways of searching."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from ragopt.errors import DimensionMismatch, InvalidInput
from ragopt.filters import F, Ids
from ragopt.fusion import Fusion
from ragopt.protocols import VectorIndex
from ragopt.testing.faces import BothColours, Face
from ragopt.testing.records import vectors
from ragopt.types import Dense, Embedding, EmbeddingBatch, RecordBatch, SparseVector

BOTH = Fusion({"dense": 1.0, "multi": 1.0})


class MultiIndexContract(BothColours):
    """Subclass it as ``Test...`` and write ``make_index``."""

    @abstractmethod
    def make_index(self) -> VectorIndex:
        """Return an empty index for the cosine, exact in its dense vectors."""

    @pytest.fixture
    def index(self, face: Face) -> Iterator[Any]:
        """Return the index under test in one colour."""
        shown = face(self.make_index())
        yield shown
        shown.close()

    # -- searching -------------------------------------------------------------------------

    def test_the_closest_with_their_scores(self, index: Any) -> None:
        kept = multi(40)  # fewer than the candidates, so that every one is compared
        for begin in (0, 20):
            names = [f"r{i}" for i in range(begin, begin + 20)]
            index.add(records(names, kept[begin : begin + 20]))
        for seed in range(5):
            (asked,) = multi(1, seed=100 + seed)
            truth = np.array([(asked @ each.T).max(axis=1).mean() for each in kept])
            hits = search(index, asked, k=10)
            assert ids(hits) == [f"r{i}" for i in np.argsort(-truth)[:10]]
            exact = [truth[int(hit.id[1:])] for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], exact, atol=2e-3)
            for hit in hits:
                assert hit.relevance == pytest.approx((1 + hit.score) / 2)

    def test_filters_thresholds_and_records_without(self, index: Any) -> None:
        kept = multi(30)
        metadatas = [{"i": i} for i in range(30)]
        index.add(records([f"r{i}" for i in range(30)], kept, metadatas=metadatas))
        index.add(RecordBatch(["none"], ["text"], EmbeddingBatch.of_dense(vectors(1))))
        (asked,) = multi(1, seed=7)
        every = search(index, asked, k=40)
        assert len(every) == 30
        few = search(index, asked, k=40, where=F("i") < 9)
        assert ids(few) == [hit.id for hit in every if hit.metadata["i"] < 9]
        above = search(index, asked, k=40, min_score=every[4].score)
        assert ids(above) == ids(every[:5])
        assert above[0].embedding is None
        assert len(search(index, asked, k=3)) == 3

    def test_a_batch_is_like_single_searches(self, index: Any) -> None:
        index.add(records([f"r{i}" for i in range(30)], multi(30)))
        asked, dense = multi(3, seed=5), vectors(3, seed=5)
        together = index.search_batch(EmbeddingBatch(dense, None, asked), k=4, by="multi")
        alone = [
            index.search(Embedding(each, None, rows), k=4, by="multi")
            for each, rows in zip(dense, asked, strict=True)
        ]
        assert [ids(hits) for hits in together] == [ids(hits) for hits in alone]

    def test_fusion(self, index: Any) -> None:
        dense, kept = np.eye(4, 16, dtype=np.float32), multi(4)
        sparse = [SparseVector.from_dict({i: 1.0}) for i in range(4)]
        batch = EmbeddingBatch(dense, sparse, kept)
        index.add(RecordBatch(list("abcd"), list("abcd"), batch))
        query = Embedding(dense[0], sparse[3], kept[2])
        weights = ((1.0, 1.0), (9.0, 1.0), (1.0, 9.0))
        firsts = [
            index.search(query, k=1, by=Fusion({"dense": a, "multi": b}, method="relative"))[0].id
            for a, b in weights[1:]
        ]
        assert firsts == ["a", "c"]
        alone = index.search(query, k=4, by=Fusion({"multi": 1.0}))
        assert alone[0].id == "c"
        assert ids(alone) == ids(index.search(query, k=4, by="multi"))
        # What only the sparse vectors name is compared as well.
        (named,) = index.search(query, k=4, by=Fusion({"sparse": 1.0, "multi": 1.0}))
        assert (named.id, named.score) == ("d", 1)

    def test_an_empty_index(self, index: Any) -> None:
        (asked,) = multi(1)
        assert search(index, asked) == []
        assert search(index, asked, by=BOTH) == []

    # -- writing ---------------------------------------------------------------------------

    def test_vectors_come_back_in_half_precision(self, index: Any) -> None:
        kept = multi(2)
        index.add(records(["a", "b"], kept))
        index.add(RecordBatch(["c"], ["text"], EmbeddingBatch.of_dense(vectors(1))))
        a, c = index.get(["a", "c"], embeddings=True)
        np.testing.assert_array_equal(a.embedding.multi, kept[0].astype(np.float16))
        assert a.embedding.multi.dtype == np.float32
        assert c.embedding.multi is None
        assert [len(r.embedding.multi) for r in index.find(Ids(["a", "b"]), embeddings=True)] == [
            len(rows) for rows in kept
        ]
        (hit, *_) = search(index, kept[1], k=1, embeddings=True)
        np.testing.assert_array_equal(hit.embedding.multi, kept[1].astype(np.float16))

    def test_replace_and_delete(self, index: Any) -> None:
        one, other = multi(2)
        index.add(records(["a", "b"], [one, one]))
        index.add(records(["a"], [other]))
        assert ids(search(index, one)) == ["b", "a"]
        index.add(RecordBatch(["b"], ["text"], EmbeddingBatch.of_dense(vectors(1))))
        assert ids(search(index, one)) == ["a"]
        index.delete(Ids(["a"]))
        assert search(index, one) == []
        index.add(records(["c"], [other]))
        index.clear()
        assert search(index, one) == []

    # -- bad input -------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("rows", "says"),
        [(np.full((2, 16), np.nan), "record 'a' holds NaN"), (np.zeros(16), "has the shape")],
    )
    def test_a_bad_vector_changes_nothing(self, index: Any, rows: Any, says: str) -> None:
        index.add(records(["kept"], multi(1)))
        with pytest.raises(InvalidInput, match=says):
            index.add(records(["a"], [rows.astype(np.float32)]))
        assert index.count() == 1

    def test_a_bad_query(self, index: Any) -> None:
        index.add(records(["a"], multi(1)))
        (asked,) = multi(1)
        with pytest.raises(InvalidInput, match="without a multi-vector"):
            index.search(Embedding(vectors(1)[0]), by="multi")
        with pytest.raises(InvalidInput, match="without a multi-vector"):
            index.search(Embedding(vectors(1)[0]), by=BOTH)
        with pytest.raises(InvalidInput, match="without a dense"):
            index.search(Embedding(multi=asked), by="multi")
        with pytest.raises(InvalidInput, match="Give it a k"):
            search(index, asked, k=None, min_score=0.5)
        with pytest.raises(DimensionMismatch, match="dimension 8, that of record 'a' has 16"):
            search(index, asked[:, :8])


def multi(n: int, seed: int = 0) -> list[Dense]:
    """Return multi-vectors of one to nine rows of length 1."""
    random = np.random.default_rng(seed)
    found = []
    for size in random.integers(1, 10, n):
        rows = random.normal(size=(size, 16)).astype(np.float32)
        found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return found


def records(names: list[str], multi: Sequence[Dense], **columns: Any) -> RecordBatch:
    """Return records with dense vectors and multi-vectors."""
    batch = EmbeddingBatch(vectors(len(names)), None, multi)
    return RecordBatch(names, [f"text of {name}" for name in names], batch, **columns)


def search(index: Any, asked: Dense, **how: Any) -> Any:
    """Search by a multi-vector."""
    query = Embedding(vectors(1, seed=9)[0], None, asked)
    return index.search(query, **{"by": "multi", **how})


def ids(hits: Sequence[Any]) -> list[str]:
    """Return the ids of hits, in their order."""
    return [hit.id for hit in hits]
