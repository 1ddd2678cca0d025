"""Sparse and hybrid search through the stores of both frameworks, on every backend."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.schema import Document, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from ragopt import F, HashingEmbedder, MemoryIndex, MemoryStore, RedisIndex, TieredCache
from ragopt.errors import InvalidInput
from ragopt.fusion import Fusion
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.langchain import (
    CachedRetriever,
    FaissVectorStore,
    IndexVectorStore,
    PGVectorStore,
    RedisVectorStore,
)
from ragopt.llama_index import CachedRetriever as CachedNodes
from ragopt.llama_index import EmbedderEmbedding
from ragopt.llama_index import FaissVectorStore as FaissNodes
from ragopt.llama_index import IndexVectorStore as Nodes
from ragopt.llama_index import PGVectorStore as PostgresNodes
from ragopt.llama_index import RedisVectorStore as RedisNodes
from ragopt.protocols import VectorIndex

MODES = VectorStoreQueryMode
TEXTS = ["apples and pears", "cars and buses", "pears pears plums", "trains and cars"]
EMBEDDER = HashingEmbedder(64)


@pytest.fixture(params=["memory", "faiss", "pgvector", "redis"])
def made(request: pytest.FixtureRequest) -> VectorIndex:
    name = f"t_{secrets.token_hex(8)}"
    if request.param == "pgvector":
        return PgvectorIndex(request.getfixturevalue("postgres_dsn"), name)
    if request.param == "redis":
        return RedisIndex(request.getfixturevalue("redis_url"), name)
    return MemoryIndex() if request.param == "memory" else FaissVectorStore(EMBEDDER).index


@pytest.fixture
async def index(made: VectorIndex) -> AsyncIterator[VectorIndex]:
    yield made
    await made.aclose()
    made.close()


class TestLangChain:
    @pytest.fixture
    def store(self, index: VectorIndex) -> IndexVectorStore:
        store = IndexVectorStore(index, EMBEDDER, by=Fusion())
        store.add_texts(TEXTS, [{"n": n} for n in range(4)], ids=list("abcd"))
        return store

    async def test_every_way_in_both_colours(self, store: IndexVectorStore) -> None:
        for by in ("sparse", Fusion(), Fusion({"dense": 1.0, "sparse": 2.0}, method="relative")):
            scored = store.similarity_search_with_score("plums and pears", k=3, by=by)
            assert scored[0][0].id == "c"
            assert scored == await store.asimilarity_search_with_score(
                "plums and pears", k=3, by=by
            )
        found = store.similarity_search("plums", k=4, by="sparse")
        assert [document.id for document in found] == ["c"]
        assert len(store.similarity_search("plums", k=4)) == 4  # the dense list is in it
        relevant = store.similarity_search_with_relevance_scores("pears", k=4)
        assert all(0 <= score <= 1 for _, score in relevant)
        where = {"n": {"$lt": 2}}
        filtered = await store.asimilarity_search("cars", k=4, filter=where, by="sparse")
        assert [document.id for document in filtered] == ["b"]

    async def test_mmr_over_a_fusion(self, store: IndexVectorStore) -> None:
        found = store.max_marginal_relevance_search("pears", k=3, fetch_k=4)
        assert len(found) == 3
        assert found == await store.amax_marginal_relevance_search("pears", k=3, fetch_k=4)
        only = store.max_marginal_relevance_search("plums", k=3, by="sparse")
        assert [document.id for document in only] == ["c"]

    def test_a_retriever_takes_the_way(self, store: IndexVectorStore) -> None:
        retriever = store.as_retriever(search_kwargs={"k": 4, "by": "sparse"})
        assert [document.id for document in retriever.invoke("trains")] == ["d"]

    def test_a_vector_searches_dense(self, store: IndexVectorStore) -> None:
        vector = store.embeddings.embed_query("cars and buses")
        assert store.similarity_search_by_vector(vector, k=1)[0].id == "b"

    def test_a_cached_retriever_tells_ways_apart(self, store: IndexVectorStore) -> None:
        cache = TieredCache(MemoryStore())
        ways: list[Any] = ["sparse", Fusion(), Fusion(method="relative"), "dense"]
        counts = []
        for by in ways * 2:
            other = IndexVectorStore(store.index, EMBEDDER, by=by)
            inner = other.as_retriever(search_kwargs={"k": 4})
            retriever = CachedRetriever(inner, cache)
            found = retriever.invoke("plums")
            assert found == inner.invoke("plums")
            counts.append(cache.stats.total("retrieval", "hit"))
        assert counts == [0, 0, 0, 0, 1, 2, 3, 4]

    def test_dense_only_stores_nothing_sparse(self, index: VectorIndex) -> None:
        store = IndexVectorStore(index, EMBEDDER)
        store.add_texts(TEXTS)
        assert store.similarity_search("pears", by="sparse") == []
        assert all(record.embedding.sparse is None for record in index.find(embeddings=True))


def test_embeddings_without_sparse_vectors_are_refused() -> None:
    with pytest.raises(InvalidInput, match="needs sparse vectors"):
        FaissVectorStore(DeterministicFakeEmbedding(size=8), by=Fusion())


def test_redis_stores_of_both_frameworks(redis_url: str) -> None:
    names = [f"t_{secrets.token_hex(8)}" for _ in range(2)]
    store = RedisVectorStore(EMBEDDER, redis_url=redis_url, index_name=names[0], by=Fusion())
    store.add_texts(TEXTS, ids=list("abcd"))
    assert [d.id for d in store.similarity_search("plums", by="sparse")] == ["c"]
    nodes = RedisNodes(redis_url=redis_url, index_name=names[1], sparse=EMBEDDER, fusion="relative")
    assert nodes.hybrid_settings[1] == "relative"
    nodes.add([TextNode(id_="x", text="plums", embedding=[1.0] * 64)])
    asked = VectorStoreQuery(query_str="plums", mode=MODES.SPARSE)
    assert nodes.query(asked).ids == ["x"]
    store.index.close()
    nodes.client.close()


def test_a_database_is_needed() -> None:
    with pytest.raises(InvalidInput, match="without a database"):
        PGVectorStore(EMBEDDER)
    with pytest.raises(InvalidInput, match="without a database"):
        PostgresNodes()


class Words(BaseSparseEmbedding):
    """A sparse model that is none of ours."""

    model_name: str = "words"

    def _get_query_embedding(self, query: str) -> dict[int, float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> dict[int, float]:
        return self._get_text_embedding(query)

    def _get_text_embedding(self, text: str) -> dict[int, float]:
        (vector,) = EMBEDDER.embed([text], outputs=["sparse"]).sparse or ()
        return vector.to_dict()

    async def _aget_text_embedding(self, text: str) -> dict[int, float]:
        return self._get_text_embedding(text)


class TestLlamaIndex:
    @pytest.fixture(params=["embedder", "another"])
    def store(self, request: pytest.FixtureRequest, index: VectorIndex) -> Nodes:
        sparse = EMBEDDER if request.param == "embedder" else Words()
        store = Nodes(index, sparse=sparse)
        dense = EmbedderEmbedding(EMBEDDER)
        store.add(
            [
                TextNode(id_=id_, text=text, embedding=dense.get_text_embedding(text))
                for id_, text in zip("abcd", TEXTS, strict=True)
            ]
        )
        return store

    @staticmethod
    def ask(text: str, mode: VectorStoreQueryMode, **options: Any) -> VectorStoreQuery:
        (dense,) = EMBEDDER.embed([text], role="query").to_lists()
        vector = None if mode == MODES.SPARSE else dense
        options.setdefault("similarity_top_k", 4)
        return VectorStoreQuery(query_embedding=vector, query_str=text, mode=mode, **options)

    async def test_sparse(self, store: Nodes) -> None:
        query = self.ask("plums and cars", MODES.SPARSE)
        found = store.query(query)
        assert sorted(found.ids or []) == ["a", "b", "c", "d"]
        assert (await store.aquery(query)).ids == found.ids
        assert store.query(self.ask("plums", MODES.SPARSE)).ids == ["c"]
        assert len(store.query(self.ask("and", MODES.SPARSE, sparse_top_k=2)).ids or []) == 2

    async def test_hybrid(self, store: Nodes) -> None:
        query = self.ask("plums and pears", MODES.HYBRID)
        found = store.query(query)
        assert (found.ids or [])[0] == "c"
        assert (await store.aquery(query)).ids == found.ids
        assert len(store.query(self.ask("pears", MODES.HYBRID, hybrid_top_k=2)).ids or []) == 2

    def test_alpha_weighs_the_two(self, store: Nodes) -> None:
        def ids(alpha: float | None, mode: VectorStoreQueryMode) -> list[str]:
            return list(store.query(self.ask("cars pears", mode, alpha=alpha)).ids or [])

        assert ids(1, MODES.HYBRID) == ids(None, MODES.DEFAULT)
        assert ids(0, MODES.HYBRID) == ids(None, MODES.SPARSE)

    def test_filters(self, store: Nodes) -> None:
        for mode in (MODES.SPARSE, MODES.HYBRID):
            result = store.query(self.ask("pears", mode, node_ids=["a", "b"]))
            assert "c" not in (result.ids or [])
            assert "a" in (result.ids or [])

    def test_what_a_mode_needs(self, index: VectorIndex) -> None:
        with pytest.raises(InvalidInput, match="without a model for them"):
            Nodes(index).query(self.ask("pears", MODES.SPARSE))
        store = Nodes(index, sparse=EMBEDDER)
        with pytest.raises(InvalidInput, match="has no text"):
            store.query(VectorStoreQuery(query_embedding=[1.0] * 64, mode=MODES.HYBRID))
        with pytest.raises(InvalidInput, match="has no embedding"):
            store.query(VectorStoreQuery(query_str="x", mode=MODES.HYBRID))
        with pytest.raises(InvalidInput, match="is no fusion"):
            Nodes(index, fusion="sum")  # type: ignore[arg-type]

    def test_through_an_index(self, tmp_path: Path) -> None:
        store = FaissNodes(sparse=EMBEDDER, fusion="relative")
        documents = [Document(text=text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
        built = VectorStoreIndex.from_documents(
            documents,
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=EmbedderEmbedding(EMBEDDER),
        )
        retriever = built.as_retriever(vector_store_query_mode="sparse", similarity_top_k=2)
        assert retriever.retrieve("plums")[0].text == TEXTS[2]
        where = {"where": F("n") > 2}
        narrow = built.as_retriever(vector_store_query_mode="hybrid", vector_store_kwargs=where)
        assert [found.text for found in narrow.retrieve("cars")] == [TEXTS[3]]
        store.persist(str(tmp_path / "index"))
        loaded = FaissNodes.from_persist_path(tmp_path / "index", sparse=EMBEDDER)
        query = self.ask("plums", MODES.SPARSE)
        assert loaded.query(query).ids == store.query(query).ids

    def test_a_cached_retriever_tells_fusions_apart(self, index: VectorIndex) -> None:
        cache, hits = TieredCache(MemoryStore()), []
        dense = EmbedderEmbedding(EMBEDDER)
        for fusion in ("rrf", "relative", "rrf"):
            store = Nodes(index, sparse=EMBEDDER, fusion=fusion)
            inner = VectorStoreIndex.from_vector_store(store, embed_model=dense).as_retriever(
                vector_store_query_mode="hybrid"
            )
            retriever = CachedNodes(inner, cache)
            retriever.retrieve("pears")
            hits.append(retriever.cache.stats.total("retrieval", "hit"))
        assert hits == [0, 0, 1]
