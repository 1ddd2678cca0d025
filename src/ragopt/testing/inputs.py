"""What every vector index makes of arguments that are wrong, or right in an unusual way."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest

from ragopt.errors import DimensionMismatch, InvalidInput
from ragopt.filters import F, Filter
from ragopt.testing.records import batch, vectors
from ragopt.types import Embedding, EmbeddingBatch, Record, RecordBatch


class Language(StrEnum):
    """Strings that are more than strings."""

    ENGLISH = "en"


class Number(IntEnum):
    """Numbers that are more than numbers."""

    ONE = 1


class InputContract:
    """Tests of a fixture ``index``, which shows an index in one colour."""

    @pytest.mark.parametrize(
        ("records", "error", "says"),
        [
            (batch(["a"], vectors(1, 8)), DimensionMismatch, "dimension 8.*has 16"),
            (batch(["a", "b", "a"], vectors(3)), InvalidInput, "'a' is given twice"),
            (batch([""], vectors(1)), InvalidInput, "The id in row 0"),
            (batch([7], vectors(1)), InvalidInput, "The id in row 0"),  # type: ignore[list-item]
            (batch(["a"], vectors(1) * np.nan), InvalidInput, "'a' holds NaN"),
            (batch(["a"], vectors(1) * np.inf), InvalidInput, "'a' holds NaN"),
            (batch(["a"], vectors(2)), InvalidInput, "1 ids came with 2"),
            (batch(["a"], vectors(1), [{}, {}]), InvalidInput, "1 ids came with 2"),
            (batch(["a"], vectors(1), [None]), InvalidInput, "metadata in row 0"),  # type: ignore[list-item]
            (
                RecordBatch(["a"], ["t"], EmbeddingBatch(vectors(1)), None, [5]),  # type: ignore[list-item]
                InvalidInput,
                "document id in row 0",
            ),
            (batch(["a"], vectors(1), texts=[None]), InvalidInput, "text in row 0"),
            (batch(["a"], vectors(1), [{"x": object()}]), InvalidInput, "cannot be stored"),
            (batch(["a"], vectors(1), [{1: "x"}]), InvalidInput, "not a string"),  # type: ignore[dict-item]
            (RecordBatch(["a"], ["t"], EmbeddingBatch()), InvalidInput, "without a dense"),
        ],
    )
    def test_a_bad_batch_changes_nothing(
        self, index: Any, records: RecordBatch, error: type[Exception], says: str
    ) -> None:
        index.add(batch(["kept"], vectors(1, seed=9)))
        version = index.version()
        with pytest.raises(error, match=says):
            index.add(records)
        assert index.count() == 1
        assert index.version() == version
        assert isinstance(index.get(["kept"])[0], Record)

    @pytest.mark.parametrize(
        ("query", "k", "error"),
        [
            (Embedding(vectors(1, 8)[0]), 1, DimensionMismatch),
            (Embedding(vectors(1)[0] * np.nan), 1, InvalidInput),
            (Embedding(), 1, InvalidInput),
            (Embedding(vectors(1)[0]), 0, InvalidInput),
        ],
    )
    def test_a_bad_query(
        self, index: Any, query: Embedding, k: int, error: type[Exception]
    ) -> None:
        index.add(batch(["a"], vectors(1)))
        with pytest.raises(error):
            index.search(query, k=k)

    @pytest.mark.parametrize("where", [None, [], "all", {}])
    def test_delete_needs_a_filter(self, index: Any, where: Any) -> None:
        index.add(batch(["a"], vectors(1)))
        with pytest.raises(InvalidInput, match="instead of a filter"):
            index.delete(where)
        assert index.count() == 1

    def test_what_is_no_id_is_not_looked_for(self, index: Any) -> None:
        index.add(batch(["a"], vectors(1)))
        for ids in ([1], [None], "abc", ["a", 7]):
            with pytest.raises(InvalidInput, match="where ids are expected"):
                index.get(ids)

    def test_ids_of_any_kind_of_collection(self, index: Any) -> None:
        index.add(batch(["a", "b"], vectors(2), [{"tags": ["x"]}, {}]))
        one, _, other = index.get(iter(["a", "b", "a"]))
        one.metadata["tags"].append("y")
        assert other.metadata == {"tags": ["x"]}
        assert [type(record.id) for record in index.get(np.array(["a"]))] == [str]

    def test_a_search_that_makes_no_sense(self, index: Any) -> None:
        index.add(batch(["a"], vectors(1)))
        for name, values in (
            ("k", (-1, 2.5, "3", None)),
            ("min_score", (np.nan, np.inf, -np.inf)),
            ("by", ("nonsense", ["dense"], None)),
        ):
            for value in values:
                with pytest.raises(InvalidInput):
                    index.search(Embedding(vectors(1)[0]), **{name: value})

    def test_numbers_of_any_kind(self, index: Any) -> None:
        index.add(batch(["a", "b", "c"], vectors(3)))
        for k in (np.int64(2), True, 2**63):
            assert len(index.search(Embedding(vectors(1)[0]), k=k)) == min(int(k), 3)

    def test_a_limit_below_nothing(self, index: Any) -> None:
        index.add(batch(["a"], vectors(1)))
        assert index.find(limit=0) == []
        with pytest.raises(InvalidInput, match="first -1 records"):
            index.find(limit=-1)

    def test_values_that_are_more_than_values(self, index: Any) -> None:
        metadatas = [{"lang": Language.ENGLISH, "n": 1}, {"lang": "ja", "n": 2}]
        texts = [Language.ENGLISH, "ja"]
        index.add(batch(["a", "b"], vectors(2), metadatas, texts=texts))
        cases: list[tuple[Filter, str]] = [
            (F("lang") == Language.ENGLISH, "a"),
            (F("lang") == "en", "a"),  # what is kept of the first search is right for this one
            (F("lang") != Language.ENGLISH, "b"),
            (F("lang").is_in([Language.ENGLISH]), "a"),
            (F("n") == Number.ONE, "a"),
            (F("n") == np.float64(1), "a"),
        ]
        for where, found in cases:
            hits = index.search(Embedding(vectors(1)[0]), where=where)
            assert [hit.id for hit in hits] == [found]
        (record, _) = index.get(["a", "b"])
        assert [type(each) for each in (record.text, record.metadata["lang"])] == [str, str]

    def test_a_model_is_named_by_the_first_records(self, index: Any) -> None:
        for model in ("one", "two"):
            index.check_model(model)
            assert index.search(Embedding(vectors(1)[0])) == []
        index.add(batch(["a"], vectors(1)))
        with pytest.raises(InvalidInput, match="made by the model 'two', not by 'one'"):
            index.check_model("one")
        for nothing in ("", None, 5):
            with pytest.raises(InvalidInput, match="is not the name of a model"):
                index.check_model(nothing)
