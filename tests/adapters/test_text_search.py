"""Search by words through the stores of both frameworks."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from ragopt import (
    F,
    FaissIndex,
    Fusion,
    HashingEmbedder,
    MemoryIndex,
    MemoryStore,
    PgvectorIndex,
    RedisIndex,
    TieredCache,
)
from ragopt.errors import InvalidInput
from ragopt.langchain import CachedRetriever, IndexVectorStore
from ragopt.llama_index import EmbedderEmbedding
from ragopt.llama_index import IndexVectorStore as Nodes
from ragopt.protocols import VectorIndex

MODES = VectorStoreQueryMode
TEXTS = ["apples and pears", "cars and buses", "東京タワーと梨", "trains and cars"]
EMBEDDER = HashingEmbedder(64)


@pytest.fixture(params=["memory", "faiss", "pgvector", "redis"])
def made(request: pytest.FixtureRequest) -> VectorIndex:
    name = f"t_{secrets.token_hex(8)}"
    if request.param == "pgvector":
        return PgvectorIndex(request.getfixturevalue("postgres_dsn"), name, text_search=True)
    if request.param == "redis":
        return RedisIndex(request.getfixturevalue("redis_url"), name, text_search=True)
    return MemoryIndex() if request.param == "memory" else FaissIndex()


@pytest.fixture
async def index(made: VectorIndex) -> AsyncIterator[VectorIndex]:
    yield made
    await made.aclose()
    made.close()


class TestLangChain:
    @pytest.fixture
    def store(self, index: VectorIndex) -> IndexVectorStore:
        # These embeddings know no sparse vectors, and mean nothing.
        store = IndexVectorStore(index, DeterministicFakeEmbedding(size=8), by="text")
        store.add_texts(TEXTS, [{"n": n} for n in range(4)], ids=list("abcd"))
        return store

    async def test_in_both_colours(self, store: IndexVectorStore) -> None:
        for query, expected in (("cars", ["b", "d"]), ("東京タワー", ["c"]), ("nothing", [])):
            scored = store.similarity_search_with_score(query)
            assert sorted(document.id or "" for document, _ in scored) == expected
            assert scored == await store.asimilarity_search_with_score(query)
        found = store.similarity_search("cars", filter={"n": {"$gt": 1}})
        assert [document.id for document in found] == ["d"]
        relevant = store.similarity_search_with_relevance_scores("pears cars")
        assert all(0 < score < 1 for _, score in relevant)

    def test_together_with_vectors(self, store: IndexVectorStore) -> None:
        both = Fusion({"dense": 1.0, "text": 1.0})
        found = store.similarity_search("trains and cars", k=4, by=both)
        assert found[0].id == "d"  # the nearest and the one with the words
        assert len(found) == 4
        diverse = store.max_marginal_relevance_search("cars", k=2, by=both)
        assert len(diverse) == 2

    def test_a_search_by_words_embeds_nothing(self) -> None:
        class Counting(HashingEmbedder):
            calls = 0

            def embed(self, *args: Any, **options: Any) -> Any:
                self.calls += 1
                return super().embed(*args, **options)

        embedder = Counting(64)
        store = IndexVectorStore(MemoryIndex(), embedder)
        store.add_texts(TEXTS)
        before = embedder.calls
        assert before
        assert len(store.similarity_search("cars", by="text")) == 2
        assert embedder.calls == before
        store.similarity_search("cars")
        assert embedder.calls == before + 1

    def test_a_cached_retriever_tells_ways_apart(self, store: IndexVectorStore) -> None:
        cache, hits = TieredCache(MemoryStore()), []
        for by in ("text", "dense", "text"):
            inner = store.as_retriever(search_kwargs={"k": 4, "by": by})
            retriever = CachedRetriever(inner, cache)
            assert retriever.invoke("cars") == inner.invoke("cars")
            hits.append(cache.stats.total("retrieval", "hit"))
        assert hits == [0, 0, 1]


class TestLlamaIndex:
    @pytest.fixture(params=[False, True], ids=["without sparse", "with sparse"])
    def store(self, request: pytest.FixtureRequest, index: VectorIndex) -> Nodes:
        store = Nodes(index, sparse=EMBEDDER if request.param else None)
        dense = EmbedderEmbedding(EMBEDDER)
        store.add(
            [
                TextNode(id_=id_, text=text, embedding=dense.get_text_embedding(text))
                for id_, text in zip("abcd", TEXTS, strict=True)
            ]
        )
        return store

    @staticmethod
    def ask(text: str | None, mode: VectorStoreQueryMode, **options: Any) -> VectorStoreQuery:
        vector = None
        if mode != MODES.TEXT_SEARCH:
            (vector,) = EMBEDDER.embed([text or ""], role="query").to_lists()
        options.setdefault("similarity_top_k", 4)
        return VectorStoreQuery(query_embedding=vector, query_str=text, mode=mode, **options)

    @staticmethod
    def ids(found: Any) -> Sequence[str]:
        return found.ids or []

    async def test_text_search(self, store: Nodes) -> None:
        query = self.ask("cars", MODES.TEXT_SEARCH)
        assert sorted(self.ids(store.query(query))) == ["b", "d"]
        assert self.ids(await store.aquery(query)) == self.ids(store.query(query))
        assert self.ids(store.query(self.ask("梨", MODES.TEXT_SEARCH))) == ["c"]
        assert len(self.ids(store.query(self.ask("and", MODES.TEXT_SEARCH, sparse_top_k=1)))) == 1
        narrow = self.ask("cars", MODES.TEXT_SEARCH, node_ids=["a", "b"])
        assert self.ids(store.query(narrow)) == ["b"]

    async def test_semantic_hybrid(self, store: Nodes) -> None:
        query = self.ask("trains", MODES.SEMANTIC_HYBRID)
        assert self.ids(store.query(query))[0] == "d"
        assert len(self.ids(store.query(query))) == 4
        assert self.ids(await store.aquery(query)) == self.ids(store.query(query))
        words = self.ask("cars", MODES.SEMANTIC_HYBRID, alpha=0)
        assert sorted(self.ids(store.query(words))) == ["b", "d"]
        vectors = self.ask("cars", MODES.SEMANTIC_HYBRID, alpha=1)
        nearest = self.ask("cars", MODES.DEFAULT)
        assert self.ids(store.query(vectors)) == self.ids(store.query(nearest))

    def test_hybrid_without_a_sparse_model_takes_words(self, store: Nodes) -> None:
        found = self.ids(store.query(self.ask("東京", MODES.HYBRID, alpha=0)))
        words = self.ids(store.query(self.ask("東京", MODES.TEXT_SEARCH)))
        assert words == ["c"]
        # The sparse model takes the Japanese text for one word.
        assert found == ([] if store.hybrid_settings[0] else words)

    def test_what_a_mode_needs(self, store: Nodes) -> None:
        with pytest.raises(InvalidInput, match="no text to look for"):
            store.query(VectorStoreQuery(mode=MODES.TEXT_SEARCH))
        with pytest.raises(InvalidInput, match="has no embedding"):
            store.query(VectorStoreQuery(query_str="x", mode=MODES.SEMANTIC_HYBRID))

    def test_through_an_index(self) -> None:
        index = VectorStoreIndex(
            [TextNode(text=text, metadata={"n": n}) for n, text in enumerate(TEXTS)],
            storage_context=StorageContext.from_defaults(vector_store=Nodes(MemoryIndex())),
            embed_model=EmbedderEmbedding(EMBEDDER),
        )
        retriever = index.as_retriever(vector_store_query_mode="text_search")
        assert [found.text for found in retriever.retrieve("東京タワー")] == [TEXTS[2]]
        where = {"where": F("n") > 2}
        narrow = index.as_retriever(
            vector_store_query_mode="semantic_hybrid", vector_store_kwargs=where
        )
        assert [found.text for found in narrow.retrieve("cars")] == [TEXTS[3]]
