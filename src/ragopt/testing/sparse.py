"""What an index of sparse vectors must do, alone and fused with dense ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ragopt.errors import InvalidInput
from ragopt.filters import F, Ids
from ragopt.fusion import Fusion
from ragopt.protocols import VectorIndex
from ragopt.testing.faces import BothColours, Face
from ragopt.testing.records import vectors
from ragopt.types import Embedding, EmbeddingBatch, RecordBatch, SparseVector

_WORDS = 200


class SparseIndexContract(BothColours):
    """Subclass it as ``Test...`` and write ``make_index``."""

    #: Share of the true heaviest that a search must find; 1 for an exact index.
    recall = 1.0

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

    def test_the_heaviest_with_their_scores(self, index: Any) -> None:
        kept, asked = sparse(300), sparse(20, seed=1)
        for begin in range(0, 300, 60):  # in parts, as an index grows
            numbers = range(begin, begin + 60)
            index.add(records([f"r{i}" for i in numbers], kept[begin : begin + 60], seed=begin))
        found = expected = 0
        for query in asked:
            scores = np.array([query.dot(each) for each in kept])
            hits = index.search(Embedding(sparse=query), k=10, by="sparse")
            truth = np.argsort(-scores, kind="stable")[:10]
            assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)
            exact = [scores[int(hit.id[1:])] for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], exact, rtol=1e-5)
            best = {f"r{i}" for i in truth if scores[i] > 0}
            found += len(best & {hit.id for hit in hits})
            expected += len(best)
        assert expected == 200
        assert found >= self.recall * expected

    def test_what_shares_no_token_is_not_found(self, index: Any) -> None:
        index.add(records(["one", "two"], [of({1: 1.0}), of({2: 1.0})]))
        index.add(RecordBatch(["none"], ["without"], EmbeddingBatch.of_dense(vectors(1))))
        assert ids(index.search(Embedding(sparse=of({2: 0.5, 3: 1.0})), by="sparse")) == ["two"]
        assert index.search(Embedding(sparse=of({3: 1.0})), by="sparse") == []
        assert index.search(Embedding(sparse=of({})), by="sparse") == []
        assert index.search_batch(EmbeddingBatch(sparse=[]), by="sparse") == []

    def test_an_empty_index(self, index: Any) -> None:
        assert index.search(Embedding(sparse=of({1: 1.0})), by="sparse") == []
        query = Embedding(vectors(1)[0], of({1: 1.0}))
        assert index.search(query, by=Fusion()) == []

    def test_equal_scores_come_in_the_order_of_adding(self, index: Any) -> None:
        index.add(records(["b", "a", "c"], [of({7: 2.0})] * 3))
        assert ids(index.search(Embedding(sparse=of({7: 1.0})), by="sparse")) == ["b", "a", "c"]

    def test_high_indices(self, index: Any) -> None:
        index.add(records(["a"], [of({0: 1.0, 999_999_999: 3.0})]))
        (hit,) = index.search(Embedding(sparse=of({999_999_999: 2.0})), by="sparse")
        assert hit.score == pytest.approx(6)

    def test_relevance(self, index: Any) -> None:
        index.add(records(["same", "half"], [of({1: 3.0, 2: 4.0}), of({1: 3.0})]))
        same, half = index.search(Embedding(sparse=of({1: 3.0, 2: 4.0})), by="sparse")
        assert (same.score, half.score) == (pytest.approx(25), pytest.approx(9))
        assert (same.relevance, half.relevance) == (pytest.approx(1), pytest.approx(9 / 25))

    def test_a_batch_is_like_single_searches(self, index: Any) -> None:
        index.add(records([f"r{i}" for i in range(50)], sparse(50)))
        asked = sparse(5, seed=2)
        together = index.search_batch(EmbeddingBatch(sparse=asked), k=3, by="sparse")
        alone = [index.search(Embedding(sparse=each), k=3, by="sparse") for each in asked]
        assert [ids(hits) for hits in together] == [ids(hits) for hits in alone]

    def test_a_threshold_alone(self, index: Any) -> None:
        index.add(records([f"r{i}" for i in range(20)], [of({1: i + 1.0}) for i in range(20)]))
        query = Embedding(sparse=of({1: 1.0}))
        assert len(index.search(query, k=None, min_score=6, by="sparse")) == 15
        assert len(index.search(query, k=4, min_score=6, by="sparse")) == 4
        assert index.search(query, min_score=99, by="sparse") == []

    def test_filters_apply_inside(self, index: Any) -> None:
        weights = [of({1: 100.0 - i}) for i in range(100)]
        metadatas = [{"i": i} for i in range(100)]
        index.add(records([f"r{i}" for i in range(100)], weights, metadatas=metadatas))
        query = Embedding(sparse=of({1: 1.0}))
        hits = index.search(query, k=3, where=F("i") >= 95, by="sparse")
        assert ids(hits) == ["r95", "r96", "r97"]
        where = F("i").is_in([7, 3]) & ~Ids(["r3"])
        assert ids(index.search(query, where=where, by="sparse")) == ["r7"]

    # -- writing ---------------------------------------------------------------------------

    def test_vectors_come_back_as_they_were(self, index: Any) -> None:
        first, second = sparse(2)
        index.add(records(["a", "b"], [first, second]))
        index.add(RecordBatch(["c"], ["without"], EmbeddingBatch.of_dense(vectors(1))))
        a, c = index.get(["a", "c"], embeddings=True)
        assert (a.embedding.sparse, c.embedding.sparse) == (first, None)
        assert [each.embedding.sparse for each in index.find(embeddings=True)] == [
            first, second, None,
        ]  # fmt: skip
        (hit, *_) = index.search(Embedding(sparse=first), k=1, embeddings=True, by="sparse")
        assert hit.embedding.sparse == first
        assert hit.embedding.dense is not None
        assert index.search(Embedding(sparse=first), k=1, by="sparse")[0].embedding is None

    def test_replace_and_delete(self, index: Any) -> None:
        query = Embedding(sparse=of({1: 1.0}))
        index.add(records(["a", "b", "c"], [of({1: 3.0}), of({1: 2.0}), of({1: 1.0})]))
        index.add(records(["a"], [of({1: 0.5})]))
        index.add(RecordBatch(["b"], ["without"], EmbeddingBatch.of_dense(vectors(1))))
        assert ids(index.search(query, by="sparse")) == ["c", "a"]
        index.delete(Ids(["c"]))
        assert ids(index.search(query, by="sparse")) == ["a"]
        index.clear()
        assert index.search(query, by="sparse") == []

    def test_many_deletes(self, index: Any) -> None:
        kept = sparse(2000)
        index.add(records([f"r{i}" for i in range(2000)], kept))
        index.delete(Ids([f"r{i}" for i in range(2000) if i % 4]))
        index.add(records(["new"], [of({5000: 1.0})]))
        assert ids(index.search(Embedding(sparse=of({5000: 1.0})), by="sparse")) == ["new"]
        scores = {f"r{i}": kept[8].dot(kept[i]) for i in range(0, 2000, 4)}
        truth = sorted((score for score in scores.values() if score > 0), reverse=True)[:5]
        hits = index.search(Embedding(sparse=kept[8]), k=5, by="sparse")
        np.testing.assert_allclose([hit.score for hit in hits], truth, rtol=1e-5)

    # -- fusion ----------------------------------------------------------------------------

    @pytest.mark.parametrize("method", ["rrf", "relative"])
    def test_fusion_is_its_definition(self, index: Any, method: Any) -> None:
        index.add(records([f"r{i}" for i in range(100)], sparse(100)))
        fusion = Fusion({"dense": 3.0, "sparse": 1.0}, method=method, candidates=20)
        for number in range(5):
            query = Embedding(vectors(1, seed=50 + number)[0], sparse(1, seed=60 + number)[0])
            shares: dict[str, float] = {}
            for by, weight in (("dense", 0.75), ("sparse", 0.25)):
                hits = index.search(query, k=20, by=by)
                low, high = hits[-1].score, hits[0].score
                for rank, hit in enumerate(hits):
                    share = 61 / (61 + rank)
                    if method == "relative":
                        share = (hit.score - low) / (high - low)
                    shares[hit.id] = shares.get(hit.id, 0) + weight * share
            fused = index.search(query, k=10, by=fusion)
            truth = sorted(shares.values(), reverse=True)[:10]
            np.testing.assert_allclose([hit.score for hit in fused], truth, atol=1e-5)
            for hit in fused:
                assert hit.score == hit.relevance
                assert hit.score == pytest.approx(shares[hit.id], abs=1e-5)

    def test_fusion_finds_what_one_way_does_not(self, index: Any) -> None:
        dense = np.eye(4, dtype=np.float32)
        weights = [of({1: 1.0}), of({2: 1.0}), of({3: 1.0}), of({4: 1.0})]
        index.add(records(["a", "b", "c", "d"], weights, dense=dense))
        query = Embedding(dense[0], of({4: 1.0}))
        best = index.search(query, k=2, by=Fusion())
        assert {hit.id for hit in best} == {"a", "d"}
        first = [
            index.search(query, k=1, by=Fusion({"dense": a, "sparse": b}, method="relative"))[0].id
            for a, b in ((9, 1), (1, 9))
        ]
        assert first == ["a", "d"]
        (alone,) = index.search(query, k=3, by=Fusion({"sparse": 1.0}))
        assert (alone.id, alone.score) == ("d", 1)

    def test_fusion_with_filter_threshold_and_vectors(self, index: Any) -> None:
        kept, metadatas = sparse(60), [{"i": i} for i in range(60)]
        index.add(records([f"r{i}" for i in range(60)], kept, metadatas=metadatas))
        query = Embedding(vectors(1, seed=9)[0], kept[3])
        hits = index.search(query, k=60, where=F("i") < 20, embeddings=True, by=Fusion())
        assert {hit.id for hit in hits} == {f"r{i}" for i in range(20)}
        assert all(h.embedding.sparse == kept[int(h.id[1:])] for h in hits)
        above = index.search(query, k=60, where=F("i") < 20, min_score=0.6, by=Fusion())
        assert ids(above) == [hit.id for hit in hits if hit.score >= 0.6]
        assert 0 < len(above) < len(hits)
        batch = EmbeddingBatch.of([query, query])
        assert [ids(each) for each in index.search_batch(batch, k=60, by=Fusion())] == [
            ids(index.search(query, k=60, by=Fusion()))
        ] * 2

    # -- bad input -------------------------------------------------------------------------

    def test_a_bad_vector_changes_nothing(self, index: Any) -> None:
        index.add(records(["kept"], [of({1: 1.0})]))
        bad = records(["a", "b"], [of({1: 1.0}), of({2: float("nan")})])
        with pytest.raises(InvalidInput, match="record 'b' holds NaN"):
            index.add(bad)
        assert index.count() == 1

    @pytest.mark.parametrize(
        ("query", "by", "says"),
        [
            (Embedding(vectors(1)[0]), "sparse", "without a sparse"),
            (Embedding(vectors(1)[0]), Fusion(), "without a sparse"),
            (Embedding(sparse=SparseVector.from_dict({1: 1.0})), "dense", "without a dense"),
            (Embedding(sparse=SparseVector.from_dict({1: 1.0})), Fusion(), "without a dense"),
            (Embedding(sparse=SparseVector.from_dict({1: np.inf})), "sparse", "holds NaN"),
            (Embedding(sparse=SparseVector.from_dict({1: 1.0})), "keyword", "'keyword'"),
        ],
    )
    def test_a_bad_query(self, index: Any, query: Embedding, by: Any, says: str) -> None:
        index.add(records(["a"], [of({1: 1.0})]))
        with pytest.raises(InvalidInput, match=says):
            index.search(query, by=by)


def of(weights: dict[int, float]) -> SparseVector:
    """Return a sparse vector."""
    return SparseVector.from_dict(weights)


def sparse(n: int, seed: int = 0) -> list[SparseVector]:
    """Return random sparse vectors of positive weights."""
    random = np.random.default_rng(seed)
    sizes = random.integers(5, 30, n)
    return [
        SparseVector(
            np.sort(random.choice(_WORDS, size, replace=False)),
            random.uniform(0.1, 2, size).astype(np.float32),
        )
        for size in sizes
    ]


def records(names: list[str], sparse: list[SparseVector], **columns: Any) -> RecordBatch:
    """Return records with both kinds of vectors."""
    dense = columns.pop("dense", None)
    dense = vectors(len(names), seed=columns.pop("seed", 0)) if dense is None else dense
    texts = [f"text of {name}" for name in names]
    return RecordBatch(names, texts, EmbeddingBatch(dense, sparse), **columns)


def ids(hits: Any) -> list[str]:
    """Return the ids of hits, in their order."""
    return [hit.id for hit in hits]
