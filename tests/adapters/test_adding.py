"""Many texts into a LangChain store: in batches, with progress, and what happens in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ragopt import HashingEmbedder, MemoryIndex
from ragopt.errors import InvalidInput
from ragopt.langchain import IndexVectorStore
from ragopt.testing.faces import BothColours, Face
from ragopt.types import EmbedderSpec, EmbeddingBatch


class Watched(HashingEmbedder):
    """Notes how many texts each call brings, and fails at one of them."""

    def __init__(self) -> None:
        super().__init__(16)
        self.sizes: list[int] = []

    def _compute(self, texts: list[str], *args: Any) -> EmbeddingBatch:
        self.sizes.append(len(texts))
        if "bad" in texts:
            raise InvalidInput("The text cannot be embedded.", fix="Leave it out.")
        return super()._compute(texts, *args)


class TestAdding(BothColours):
    @pytest.fixture
    def embedder(self) -> Watched:
        return Watched()

    @pytest.fixture
    def store(self, embedder: Watched) -> IndexVectorStore:
        return IndexVectorStore(MemoryIndex(), embedder)

    def test_a_generator_is_taken_batch_by_batch(
        self, store: IndexVectorStore, embedder: Watched, face: Face
    ) -> None:
        taken = 0

        def texts() -> Iterator[str]:
            nonlocal taken
            for number in range(2_500):
                taken += 1
                assert taken <= store.index.count() + 1_000, "more than one batch was taken"
                yield f"text {number}"

        ids = face(store).add_texts(texts())
        assert embedder.sizes == [1_000, 1_000, 500]
        assert len(set(ids)) == store.index.count() == 2_500
        (record,) = store.index.get(ids[2_100:2_101])
        assert record is not None
        assert record.text == "text 2100"

    def test_progress(self, store: IndexVectorStore, face: Face) -> None:
        seen: list[Any] = []
        face(store).add_texts(list("abcde"), batch_size=2, progress=lambda *each: seen.append(each))
        assert seen == [(2, 5), (4, 5), (5, 5)]
        seen.clear()
        face(store).add_texts(iter("abc"), batch_size=2, progress=lambda *each: seen.append(each))
        assert seen == [(2, None), (3, None)]

    def test_a_bar(
        self, store: IndexVectorStore, face: Face, capsys: pytest.CaptureFixture[str]
    ) -> None:
        face(store).add_texts(list("abc"), batch_size=1, progress=True)
        assert "3/3" in capsys.readouterr().err

    def test_columns_go_with_their_texts(self, store: IndexVectorStore, face: Face) -> None:
        metadatas = [{"n": n} for n in range(5)]
        ids = face(store).add_texts(
            iter("abcde"), metadatas, ids=["a", None, "c", "d", "e"], batch_size=2
        )
        assert [ids[0], *ids[2:]] == ["a", "c", "d", "e"]
        found = {record.text: record for record in store.index.find()}
        assert [found[text].metadata["n"] for text in "abcde"] == [0, 1, 2, 3, 4]
        assert [found[text].id for text in "abcde"] == ids

    def test_an_error_in_the_middle_says_what_is_stored(
        self, store: IndexVectorStore, face: Face
    ) -> None:
        with pytest.raises(InvalidInput) as caught:
            face(store).add_texts(
                ["a", "b", "c", "d", "bad", "f"], ids=list("abcdef"), batch_size=2
            )
        assert caught.value.__notes__ == [
            "Before this, 4 texts were stored, the last one with the id 'd'."
        ]
        assert [record.id for record in store.index.find()] == list("abcd")
        with pytest.raises(InvalidInput) as caught:
            face(store).add_texts(["bad"])
        assert not hasattr(caught.value, "__notes__")

    @pytest.mark.parametrize(
        ("texts", "columns", "says"),
        [
            ("abc", {"ids": ["a", "b"]}, "2 ids came with 3 texts"),
            ("abc", {"metadatas": [{}]}, "1 metadatas came with 3 texts"),
            ("abc", {"ids": ["x", "y", "x"]}, "'x' is given twice"),
            ("abc", {"batch_size": 0}, "A batch of 0 texts"),
        ],
    )
    def test_bad_input_stores_nothing(
        self, store: IndexVectorStore, face: Face, texts: str, columns: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(InvalidInput, match=says):
            face(store).add_texts(iter(texts), **{"batch_size": 1, **columns})
        assert store.index.count() == 0
        assert face(store).add_texts([]) == []


class Named(HashingEmbedder):
    """An embedder of the same dimension under a name of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(16)
        self.name = name
        self.calls = 0

    @property
    def spec(self) -> EmbedderSpec:
        return replace(super().spec, model=self.name)

    def _compute(self, texts: list[str], *args: Any) -> EmbeddingBatch:
        self.calls += 1
        return super()._compute(texts, *args)


class TestModels(BothColours):
    def test_another_model_is_refused_before_it_embeds(self, face: Face) -> None:
        index = MemoryIndex()
        face(IndexVectorStore(index, Named("one"))).add_texts(["pears"])
        other = Named("two")
        store = face(IndexVectorStore(index, other))
        uses = store.add_texts, store.max_marginal_relevance_search, store.similarity_search
        for use, asked in zip(uses, (["apples"], "apples", "apples"), strict=True):
            with pytest.raises(InvalidInput, match="made by the model 'one', not by 'two'"):
                use(asked)
        assert (index.count(), other.calls) == (1, 0)
        index.check_model("two", replace=True)  # it was renamed
        assert len(store.similarity_search("pears")) == 1

    def test_words_and_models_without_a_name_are_not_compared(self, face: Face) -> None:
        index = MemoryIndex()
        face(IndexVectorStore(index, Named("one"))).add_texts(["pears"])
        assert len(face(IndexVectorStore(index, Named(""))).similarity_search("apples")) == 1
        by_words = face(IndexVectorStore(index, Named("two"), by="text"))
        assert len(by_words.similarity_search("pears")) == 1
