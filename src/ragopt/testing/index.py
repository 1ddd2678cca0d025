"""What every vector index must do. Exact search in numpy is the measure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ragopt.errors import InvalidInput
from ragopt.filters import Documents, F, Filter, Ids, compile_filter
from ragopt.protocols import VectorIndex
from ragopt.testing.counts import CountsContract
from ragopt.testing.faces import BothColours, Face
from ragopt.testing.inputs import InputContract
from ragopt.testing.records import FILTERS, HOSTILE, METADATA, batch, exact_scores, vectors
from ragopt.types import Embedding, EmbeddingBatch, Metric, RecordBatch


class VectorIndexContract(InputContract, CountsContract, BothColours):
    """Subclass it as ``Test...`` and write ``make_index``."""

    #: Share of the true nearest that a search must find; 1 for an exact index.
    recall = 1.0
    #: Relative and absolute error that a score may have.
    error = (1e-3, 1e-4)
    #: How far from a limit of scores a record may be on its wrong side; for vectors kept as codes.
    margin = 0.0
    #: How many records the test of a selective filter uses.
    many = 10_000

    @abstractmethod
    def make_index(self, metric: Metric) -> VectorIndex:
        """Return an empty index without a dimension."""

    @pytest.fixture
    def raw(self) -> Iterator[VectorIndex]:
        """Return the index under test, for the cosine."""
        index = self.make_index(Metric.COSINE)
        yield index
        index.close()

    @pytest.fixture
    def index(self, raw: VectorIndex, face: Face) -> Iterator[Any]:
        """Return the index under test in one colour."""
        shown = face(raw)
        yield shown
        shown.close()

    @pytest.fixture(params=list(Metric))
    def measured(self, request: pytest.FixtureRequest, face: Face) -> Iterator[Any]:
        """Return an index of every metric in one colour."""
        shown = face(self.make_index(request.param))
        yield shown
        shown.close()

    # -- searching -------------------------------------------------------------------------

    def test_empty(self, raw: VectorIndex, index: Any) -> None:
        assert isinstance(raw, VectorIndex)
        assert index.search(Embedding(vectors(1)[0])) == []
        assert index.search_batch(EmbeddingBatch.of_dense(vectors(3))) == [[], [], []]
        assert index.search_batch(EmbeddingBatch()) == []
        assert index.count() == 0
        assert index.get(["a"]) == [None]
        assert index.find() == []
        assert index.delete(Ids(["a"])) == 0
        assert index.add(RecordBatch([], [], EmbeddingBatch())) == []

    def test_the_nearest_with_their_scores(self, measured: Any) -> None:
        matrix, queries = vectors(500), vectors(20, seed=1)
        measured.add(batch([f"r{i}" for i in range(500)], matrix))
        found = 0
        for query in queries:
            truth = exact_scores(query, matrix, measured.metric)
            best = {f"r{i}" for i in np.argsort(-truth)[:10]}
            hits = measured.search(Embedding(query), k=10)
            assert len(hits) == 10
            scores = [hit.score for hit in hits]
            assert scores == sorted(scores, reverse=True)
            expected = [truth[int(hit.id[1:])] for hit in hits]
            relative, absolute = self.error
            np.testing.assert_allclose(scores, expected, rtol=relative, atol=absolute)
            found += len(best & {hit.id for hit in hits})
        assert found >= self.recall * 10 * len(queries)

    def test_relevance(self, measured: Any) -> None:
        """Identical is 1, and farther is less, down to the opposite."""
        query = np.array([1, 0, 0, 0], dtype=np.float32)
        angles = np.linspace(0, np.pi, 9)
        ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1)
        measured.add(batch([str(i) for i in range(9)], ring.astype(np.float32)))
        hits = measured.search(Embedding(query), k=9)
        assert [hit.id for hit in hits] == [str(i) for i in range(9)]
        relevances = [hit.relevance for hit in hits]
        assert relevances[0] == pytest.approx(1, abs=1e-5)
        assert all(0 <= value <= 1 for value in relevances)
        assert all(a > b for a, b in pairwise(relevances))

    def test_the_query_itself_is_fully_relevant(self, measured: Any) -> None:
        matrix = 7 * vectors(50)  # not of length 1
        measured.add(batch([f"r{i}" for i in range(50)], matrix))
        hits = measured.search(Embedding(matrix[3]), k=50)
        assert {hit.id: hit.relevance for hit in hits}["r3"] == pytest.approx(1, abs=1e-3)
        pairs = [(hit.score, hit.relevance) for hit in hits]
        assert [r for _, r in pairs] == sorted((r for _, r in pairs), reverse=True)

    def test_a_batch_is_its_queries(self, index: Any) -> None:
        index.add(batch([f"r{i}" for i in range(100)], vectors(100)))
        queries = vectors(30, seed=1)
        together = index.search_batch(EmbeddingBatch.of_dense(queries), k=5)
        alone = [index.search(Embedding(query), k=5) for query in queries]
        assert [[h.id for h in hits] for hits in together] == [
            [h.id for h in hits] for hits in alone
        ]

    def test_fewer_than_k(self, index: Any) -> None:
        index.add(batch(["a", "b"], vectors(2)))
        assert len(index.search(Embedding(vectors(1)[0]), k=10)) == 2

    def test_min_score(self, index: Any) -> None:
        index.add(batch(["near", "far"], np.eye(2, dtype=np.float32)))
        query = Embedding(np.array([1, 0], dtype=np.float32))
        assert [hit.id for hit in index.search(query, min_score=0.5)] == ["near"]
        assert index.search(query, min_score=1.5) == []

    def test_range_search(self, measured: Any) -> None:
        """Without k, every record from a score on is found, however many there are."""
        matrix, (query,) = vectors(400), vectors(1, seed=1)
        measured.add(batch([f"r{i}" for i in range(400)], matrix, [{"i": i} for i in range(400)]))
        truth = exact_scores(query, matrix, measured.metric)
        ordered = np.sort(truth)
        for least in (ordered[350:352].mean(), ordered[100:102].mean(), ordered[-1] + 1):
            hits = measured.search(Embedding(query), k=None, min_score=float(least))
            found = {hit.id for hit in hits}
            assert {f"r{i}" for i in np.flatnonzero(truth >= least + self.margin)} <= found
            assert found <= {f"r{i}" for i in np.flatnonzero(truth >= least - self.margin)}
            assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
            few = measured.search(
                Embedding(query), k=None, min_score=float(least), where=F("i") < 40
            )
            assert {h.id for h in few} == {h.id for h in hits if h.metadata["i"] < 40}
        with pytest.raises(InvalidInput, match="return everything"):
            measured.search(Embedding(query), k=None)

    def test_embeddings_on_request(self, index: Any) -> None:
        matrix = vectors(3)
        index.add(batch(["a", "b", "c"], matrix))
        (hit,) = index.search(Embedding(matrix[1]), k=1, embeddings=True)
        (record,) = index.get(["b"], embeddings=True)
        direction = matrix[1] / np.linalg.norm(matrix[1])
        for vector in (hit.embedding.dense, record.embedding.dense):
            np.testing.assert_allclose(vector / np.linalg.norm(vector), direction, atol=1e-3)
        assert index.search(Embedding(matrix[1]), k=1)[0].embedding is None

    # -- filters ---------------------------------------------------------------------------

    @pytest.fixture
    def varied(self, index: Any) -> Any:
        """Return an index with awkward metadata."""
        size = len(METADATA)
        index.add(
            batch(
                [f"r{i}" for i in range(size)],
                vectors(size),
                METADATA,
                document_ids=[f"d{i // 2}" if i < 4 else None for i in range(size)],
            )
        )
        return index

    @pytest.mark.parametrize("where", FILTERS, ids=str)
    def test_filters_mean_the_same_everywhere(self, varied: Any, where: Filter) -> None:
        match = compile_filter(where)
        expected = [
            f"r{i}"
            for i, metadata in enumerate(METADATA)
            if match(f"r{i}", f"d{i // 2}" if i < 4 else None, metadata)
        ]
        assert [record.id for record in varied.find(where)] == expected
        assert varied.count(where) == len(expected)
        hits = varied.search(Embedding(vectors(1, seed=3)[0]), k=20, where=where)
        assert sorted(hit.id for hit in hits) == expected

    def test_a_filter_that_matches_one_of_many(self, index: Any) -> None:
        size = self.many
        matrix = vectors(size)
        index.add(batch([f"r{i}" for i in range(size)], matrix, [{"i": i} for i in range(size)]))
        for wanted in (0, size // 3, size - 1):
            hits = index.search(Embedding(-matrix[wanted]), k=5, where=F("i") == wanted)
            assert [hit.id for hit in hits] == [f"r{wanted}"]
        half = index.search(Embedding(matrix[0]), k=10, where=F("i") >= size // 2)
        assert len(half) == 10
        assert all(hit.metadata["i"] >= size // 2 for hit in half)

    # -- writing ---------------------------------------------------------------------------

    def test_delete_then_add(self, index: Any) -> None:
        matrix = vectors(4)
        index.add(batch(["a", "b", "c"], matrix[:3]))
        assert index.delete(Ids(["a", "missing"])) == 1
        index.add(batch(["d"], matrix[3:]))
        for id_, vector in zip("bcd", matrix[1:], strict=True):
            assert index.search(Embedding(vector), k=1)[0].id == id_
        assert {hit.id for hit in index.search(Embedding(matrix[0]), k=10)} == {"b", "c", "d"}
        assert index.get(["a", "d"])[0] is None
        assert index.delete(Ids(["a"])) == 0

    def test_an_id_again_replaces(self, index: Any) -> None:
        matrix = vectors(3)
        index.add(batch(["a", "b"], matrix[:2], [{"v": 1, "old": 1}, {"v": 1}]))
        index.add(batch(["a"], matrix[2:], [{"v": 2}], texts=["new text"], document_ids=["d"]))
        (record,) = index.get(["a"])
        assert (record.text, record.metadata, record.document_id) == ("new text", {"v": 2}, "d")
        assert index.count() == 2
        assert index.search(Embedding(matrix[2]), k=1)[0].id == "a"
        assert index.search(Embedding(matrix[0]), k=2)[0].score < 0.999
        assert index.count(F("v") == 1) == 1

    def test_delete_by_document_and_by_filter(self, index: Any) -> None:
        ids = [f"r{i}" for i in range(10)]
        documents = [f"d{i // 5}" for i in range(10)]
        index.add(batch(ids, vectors(10), [{"i": i} for i in range(10)], document_ids=documents))
        assert index.delete(Documents(["d0"]) & (F("i") < 3)) == 3
        assert index.delete(Documents(["d1"])) == 5
        assert [record.id for record in index.find()] == ["r3", "r4"]
        assert index.delete(F("i") == 4) == 1
        assert index.delete(Ids([])) == 0
        assert index.count() == 1

    def test_clear(self, index: Any) -> None:
        index.add(batch(["a", "b"], vectors(2)))
        index.clear()
        assert index.count() == 0
        assert index.search(Embedding(vectors(1)[0])) == []
        index.add(batch(["a"], vectors(1)))
        assert index.count() == 1

    def test_another_model_is_refused(self, index: Any) -> None:
        index.check_model("first")  # of an index that may not exist yet
        index.add(batch(["a"], vectors(1)))
        index.check_model("first")
        with pytest.raises(InvalidInput, match="made by the model 'first', not by 'second'"):
            index.check_model("second")
        index.check_model("second", replace=True)
        with pytest.raises(InvalidInput, match="not by 'first'"):
            index.check_model("first")
        index.clear()
        index.check_model("third")
        index.add(batch(["a"], vectors(1)))
        with pytest.raises(InvalidInput, match="made by the model 'third'"):
            index.check_model("second")

    def test_many_deletes(self, index: Any) -> None:
        matrix = vectors(2000)
        index.add(batch([f"r{i}" for i in range(2000)], matrix))
        assert index.delete(Ids([f"r{i}" for i in range(2000) if i % 4])) == 1500
        for i in (0, 400, 1996):
            assert index.search(Embedding(matrix[i]), k=1)[0].id == f"r{i}"
        assert index.count() == 500
        index.add(batch(["new"], -matrix[:1]))
        assert index.search(Embedding(-matrix[0]), k=1)[0].id == "new"

    def test_the_version_moves_with_every_change(self, index: Any) -> None:
        versions = [index.version()]
        index.add(batch(["a", "b"], vectors(2)))
        versions.append(index.version())
        index.search(Embedding(vectors(1)[0]))
        index.get(["a"])
        assert index.version() == versions[-1]
        index.add(batch(["a"], vectors(1)))
        versions.append(index.version())
        index.delete(Ids(["a"]))
        versions.append(index.version())
        index.clear()
        versions.append(index.version())
        assert len(set(versions)) == len(versions)

    # -- records ---------------------------------------------------------------------------

    def test_metadata_comes_back_as_it_was(self, varied: Any) -> None:
        found = varied.get([f"r{i}" for i in range(len(METADATA))])
        assert [record.metadata for record in found] == METADATA
        for record, metadata in zip(found, METADATA, strict=True):
            for key, value in metadata.items():
                assert type(record.metadata[key]) is type(value)

    def test_get_and_find_keep_their_order(self, index: Any) -> None:
        index.add(batch(["c", "a"], vectors(2)))
        index.add(batch(["b"], vectors(1)))
        assert [record and record.id for record in index.get(["b", "x", "c", "b"])] == [
            "b", None, "c", "b",
        ]  # fmt: skip
        assert [record.id for record in index.find()] == ["c", "a", "b"]
        assert [record.id for record in index.find(limit=2)] == ["c", "a"]
        assert index.find(limit=0) == []

    def test_nothing_is_shared_with_the_caller(self, index: Any) -> None:
        matrix, metadata = vectors(1), {"tags": ["a"], "deep": {"x": [1]}}
        index.add(batch(["a"], matrix, [metadata]))
        query = Embedding(matrix[0].copy())
        metadata["tags"].append("b")  # type: ignore[attr-defined]
        matrix[:] = 0
        (hit,) = index.search(query, k=1, embeddings=True)
        assert hit.score == pytest.approx(1, abs=1e-5)
        hit.metadata["tags"].append("c")
        hit.metadata["deep"]["x"][0] = 2
        if hit.embedding.dense.flags.writeable:
            hit.embedding.dense[:] = 0
        (again,) = index.search(query, k=1)
        assert again.metadata == {"tags": ["a"], "deep": {"x": [1]}}
        assert again.score == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("text", HOSTILE)
    def test_any_text_is_data(self, index: Any, text: str) -> None:
        records = batch(
            [text, "other"],
            vectors(2),
            [{"s": text, "tags": [text]}, {"s": "x"}],
            texts=[text, "x"],
            document_ids=[text, "d"],
        )
        index.add(records)
        (record,) = index.get([text])
        assert (record.id, record.text, record.document_id) == (text, text, text)
        for where in (F("s") == text, F("tags").contains(text), Ids([text]), Documents([text])):
            assert [found.id for found in index.find(where)] == [text]
        assert index.delete(Ids([text])) == 1
        assert index.count() == 1

    def test_statistics(self, index: Any) -> None:
        empty = index.stats()
        assert (empty.records, empty.dimension, empty.metric) == (0, None, Metric.COSINE)
        index.add(batch([f"r{i}" for i in range(500)], vectors(500)))
        index.check_model("a model")
        full = index.stats()
        assert (full.records, full.dimension, full.model) == (500, 16, "a model")
        assert full.kind
        assert full.bytes > empty.bytes
        assert 0 <= full.indexed <= 1
        assert full.failures == 0
        index.delete(Ids([f"r{i}" for i in range(100)]))
        assert index.stats().records == 400
