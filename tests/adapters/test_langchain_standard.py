"""LangChain's own suites over every class of `ragopt.langchain`, none of their tests overridden."""

import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import BaseCache
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    AsyncCacheTestSuite,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    SyncCacheTestSuite,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from ragopt import HashingEmbedder, MemoryIndex, MemoryStore, RedisStore, SqliteStore, TieredCache
from ragopt.keys import namespace_prefix
from ragopt.langchain import (
    CachedEmbeddings,
    CachedRetriever,
    EmbedderEmbeddings,
    FaissVectorStore,
    IndexVectorStore,
    LLMCache,
    PGVectorStore,
    RedisVectorStore,
)
from ragopt.protocols import KVStore

STORES = ["memory", "sqlite", "redis", "tiers"]


def make_store(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    kind = request.param
    if kind == "redis":
        store = RedisStore(request.getfixturevalue("redis_url"), timeout=5)
        store.clear(namespace_prefix("default"))
        return store
    if kind == "memory":
        return MemoryStore()
    if kind == "sqlite":
        return SqliteStore(folder / "cache.db")
    return TieredCache(MemoryStore(), SqliteStore(folder / "cache.db"), strict=True)


class TestFaissFlat(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return FaissVectorStore(self.get_embeddings())


class TestFaissHnsw(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return FaissVectorStore(self.get_embeddings(), kind="hnsw")


class TestFaissWithCachedEmbeddings(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return FaissVectorStore(CachedEmbeddings(self.get_embeddings(), model="fake"))


class TestMemoryIndex(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return IndexVectorStore(MemoryIndex(), self.get_embeddings())


class TestPGVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    async def vectorstore(self, postgres_dsn: str) -> Any:
        store = PGVectorStore(
            self.get_embeddings(), connection=postgres_dsn, table_name=f"t_{secrets.token_hex(8)}"
        )
        yield store
        await store.index.aclose()
        store.index.close()


class TestRedisVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    async def vectorstore(self, redis_url: str) -> Any:
        name = f"t_{secrets.token_hex(8)}"
        store = RedisVectorStore(self.get_embeddings(), redis_url=redis_url, index_name=name)
        yield store
        store.index.drop()
        await store.index.aclose()
        store.index.close()


class TestCachedEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return CachedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embeddings": DeterministicFakeEmbedding(size=8), "model": "fake"}


class TestCachedEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return CachedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embeddings": HashingEmbedder(32)}


class TestEmbedderEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return EmbedderEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embedder": HashingEmbedder(32)}


class TestEmbedderEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return EmbedderEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embedder": HashingEmbedder(32)}


class TestCachedRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return CachedRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        texts = ["apples and pears", "cars and buses", "pears and plums", "trains"]
        store = FaissVectorStore.from_texts(texts, EmbedderEmbeddings(HashingEmbedder()))
        return {"retriever": store.as_retriever()}

    @property
    def retriever_query_example(self) -> str:
        return "pears"


class TestLLMCacheSync(SyncCacheTestSuite):
    @pytest.fixture(params=STORES)
    def cache(
        self, request: pytest.FixtureRequest, tmp_path: Path
    ) -> Generator[BaseCache, None, None]:
        store = make_store(request, tmp_path)
        yield LLMCache(store)
        store.close()


class TestLLMCacheAsync(AsyncCacheTestSuite):
    @pytest.fixture(params=STORES)
    async def cache(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        store = make_store(request, tmp_path)
        yield LLMCache(store)
        await store.aclose()
