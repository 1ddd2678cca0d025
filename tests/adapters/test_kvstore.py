"""LlamaIndex's key-value store, and what is built on it, over real stores."""

from collections.abc import AsyncIterator, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.loading import load_index_from_storage
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.storage.index_store.keyval_index_store import KVIndexStore
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore

from ragopt import MemoryStore, RedisStore, SqliteStore, TieredCache
from ragopt.cache.named import NamedStore
from ragopt.errors import InvalidInput
from ragopt.keys import namespace_prefix
from ragopt.llama_index import CacheKVStore, FaissVectorStore
from ragopt.protocols import KVStore
from ragopt.testing.faces import BothColours, Face

STORES = ["memory", "sqlite", "redis", "tiers"]


@pytest.fixture(params=STORES)
async def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KVStore]:
    kind = request.param
    store: KVStore
    if kind == "redis":
        store = RedisStore(request.getfixturevalue("redis_url"), timeout=5)
        store.clear(namespace_prefix("default"))
    elif kind == "memory":
        store = MemoryStore()
    else:
        near, far = SqliteStore(tmp_path / "near.db"), SqliteStore(tmp_path / "far.db")
        store = TieredCache(near, far, strict=True) if kind == "tiers" else near
    yield store
    await store.aclose()


VALUE: dict[str, Any] = {
    "text": "x\ud83d",
    "n": 1,
    "f": 0.5,
    "none": None,
    "list": [1, [True], {"a": {}}],
    "day": date(2026, 11, 1),
    "bytes": b"\xff",
    "tuple": (1, "two"),
}


class TestKVStore(BothColours):
    @pytest.fixture(autouse=True)
    def _closed(self, cache: KVStore, face: Face) -> Iterator[None]:
        yield
        face(cache).close()  # on the event loop of this test

    @pytest.fixture
    def store(self, cache: KVStore, face: Face) -> Any:
        return face(CacheKVStore(cache))

    def test_is_what_llama_index_expects(self, cache: KVStore) -> None:
        assert isinstance(CacheKVStore(cache), BaseKVStore)

    def test_put_and_get(self, store: Any) -> None:
        assert store.get("a") is None
        store.put("a", VALUE)
        store.put("b", {})
        assert store.get("a") == VALUE
        assert store.get("b") == {}
        assert store.get_all() == {"a": VALUE, "b": {}}
        store.put("a", {"other": 1})
        assert store.get("a") == {"other": 1}

    def test_delete_says_whether_it_was_there(self, store: Any) -> None:
        store.put("a", VALUE)
        assert store.delete("a") is True
        assert store.delete("a") is False
        assert store.get("a") is None
        assert store.get_all() == {}

    @pytest.mark.parametrize("batch_size", [1, 2, 10_000])
    def test_put_all_takes_any_batch_size(self, store: Any, batch_size: int) -> None:
        pairs = [(f"key-{i}", {"i": i}) for i in range(700)]
        store.put_all(pairs, batch_size=batch_size)
        assert store.get_all() == dict(pairs)
        store.put_all([], batch_size=batch_size)
        assert len(store.get_all()) == 700

    def test_collections_are_apart(self, store: Any) -> None:
        names = ["data", "data/", "data:", "da", "", "da%74a", "ta\ud83d", "*"]
        for name in names:
            store.put("a:b", {"in": name}, collection=name)
        for name in names:
            assert store.get_all(collection=name) == {"a:b": {"in": name}}
        store.put("b", {"in": "a"}, collection="da:a")
        assert store.get("a:b", collection="da") == {"in": "da"}
        assert store.delete("a:b", collection="data")
        assert store.get("a:b", collection="data/") == {"in": "data/"}

    def test_values_are_the_callers_own(self, store: Any) -> None:
        value = {"list": [1]}
        store.put("a", value)
        value["list"].append(2)
        store.get("a")["list"].append(3)
        assert store.get("a") == {"list": [1]}

    @pytest.mark.parametrize("value", [[1], "text", None, {"a": object()}, {"a": {1, 2}}])
    def test_what_is_no_plain_dict_is_refused(self, store: Any, value: Any) -> None:
        with pytest.raises(InvalidInput):
            store.put_all([("good", {}), ("bad", value)])
        assert store.get_all() == {}

    def test_keys_and_collections_are_strings(self, store: Any) -> None:
        with pytest.raises(InvalidInput, match="of type int"):
            store.get(1)
        with pytest.raises(InvalidInput, match="of type NoneType"):
            store.get_all(collection=None)

    def test_foreign_bytes_are_absent_and_counted(self, cache: KVStore, face: Face) -> None:
        made = CacheKVStore(cache)
        store = face(made)
        store.put("good", {})
        NamedStore("kv", cache, group="data").set_many({"bad": b"\xc1", "list": b"\x90"})
        assert store.get("bad") is None
        assert store.get_all() == {"good": {}}
        assert made.cache.stats.total("kv", "corrupt") == 3

    def test_namespaces_and_tenants_are_apart(self, cache: KVStore, face: Face) -> None:
        face(CacheKVStore(cache)).put("a", {})
        assert face(CacheKVStore(cache, namespace="other")).get_all() == {}
        assert face(CacheKVStore(cache, tenant="a")).get_all() == {}
        assert face(CacheKVStore(cache)).get_all() == {"a": {}}

    def test_same_as_the_simple_store(self, store: Any, face: Face) -> None:
        simple = face(SimpleKVStore())
        for each in (store, simple):
            each.put_all([("a", {"n": 1}), ("b", {"n": 2})], collection="c")
            each.put("a", {"n": 3}, collection="c")
            each.put("a", {"n": 4})
        for name, arguments in [
            ("get", ("a", "c")),
            ("get", ("x", "c")),
            ("delete", ("b", "c")),
            ("delete", ("b", "c")),
            ("get_all", ("c",)),
            ("get_all", ("nothing",)),
            ("get_all", ()),
        ]:
            assert getattr(store, name)(*arguments) == getattr(simple, name)(*arguments)


NODES = [
    TextNode(id_="a", text="apples", metadata={"n": 1}),
    TextNode(id_="b", text="pears", embedding=[0.5, 1.0]),
    Document(id_="c", text="plums"),
]


def test_a_document_store(cache: KVStore) -> None:
    store = KVDocumentStore(CacheKVStore(cache), batch_size=10)
    store.add_documents(NODES)
    again = KVDocumentStore(CacheKVStore(cache))
    assert again.docs == {node.node_id: node for node in NODES}
    assert again.get_document_hash("a") == NODES[0].hash
    again.delete_document("a")
    assert sorted(store.docs) == ["b", "c"]


async def test_a_document_store_async(cache: KVStore) -> None:
    store = KVDocumentStore(CacheKVStore(cache), batch_size=10)
    await store.async_add_documents(NODES)
    assert await store.aget_document("b") == NODES[1]
    await store.adelete_document("b")
    assert not await store.adocument_exists("b")


def test_an_index_store(cache: KVStore) -> None:
    store = KVIndexStore(CacheKVStore(cache))
    struct = IndexDict(index_id="one", nodes_dict={"a": "b"})
    store.add_index_struct(struct)
    found = KVIndexStore(CacheKVStore(cache)).get_index_struct("one")
    assert found is not None
    assert found.to_dict() == struct.to_dict()
    store.delete_index_struct("one")
    assert store.index_structs() == []


def test_an_index_is_loaded_from_what_was_stored(cache: KVStore) -> None:
    kv = CacheKVStore(cache)
    vectors = FaissVectorStore()

    def context() -> StorageContext:
        return StorageContext.from_defaults(
            docstore=KVDocumentStore(kv), index_store=KVIndexStore(kv), vector_store=vectors
        )

    model = MockEmbedding(embed_dim=4)
    VectorStoreIndex.from_documents([Document(text="apples")], context(), embed_model=model)
    index = load_index_from_storage(context(), embed_model=model)
    assert index.as_retriever().retrieve("apples")[0].text == "apples"


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_an_ingestion_cache(cache: KVStore, colour: str) -> None:
    calls: list[int] = []

    class Counting(MockEmbedding):
        def __call__(self, nodes: Any, **kwargs: Any) -> Any:
            calls.append(len(nodes))
            return super().__call__(nodes, **kwargs)

        async def acall(self, nodes: Any, **kwargs: Any) -> Any:
            return self(nodes, **kwargs)

    async def run() -> Any:
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(), Counting(embed_dim=4)],
            cache=IngestionCache(cache=CacheKVStore(cache)),
        )
        documents = [Document(id_="d", text="apples and pears")]
        if colour == "sync":
            return pipeline.run(documents=documents)
        return await pipeline.arun(documents=documents)

    assert await run() == await run()
    assert calls == [1]
    IngestionCache(cache=CacheKVStore(cache)).clear()
    await run()
    assert calls == [1, 1]
