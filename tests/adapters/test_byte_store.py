"""LangChain's byte store and its own suites, none of their tests overridden."""

from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.stores import BaseStore, ByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests.base_store import BaseStoreAsyncTests, BaseStoreSyncTests
from pydantic import Field

from ragopt import MemoryStore, RagoptError, RedisStore, SqliteStore, TieredCache
from ragopt.cache.named import NamedStore
from ragopt.errors import InvalidInput, StorageError
from ragopt.keys import namespace_prefix
from ragopt.langchain import CacheByteStore
from ragopt.protocols import KVStore
from ragopt.testing import FakeClock

STORES = ["memory", "sqlite", "redis", "tiers"]
VALUES = (b"", b"bar", bytes(range(256)))


def make_store(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    kind = request.param
    if kind == "redis":
        store = RedisStore(request.getfixturevalue("redis_url"), timeout=5)
        store.clear(namespace_prefix("default"))
        return store
    if kind == "memory":
        return MemoryStore()
    near, far = SqliteStore(folder / "near.db"), SqliteStore(folder / "far.db")
    return TieredCache(near, far, strict=True) if kind == "tiers" else near


class TestByteStoreSync(BaseStoreSyncTests[bytes]):
    @pytest.fixture(params=STORES)
    def kv_store(
        self, request: pytest.FixtureRequest, tmp_path: Path
    ) -> Generator[BaseStore[str, bytes], None, None]:
        made = make_store(request, tmp_path)
        yield CacheByteStore(made)
        made.close()

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return VALUES


class TestByteStoreAsync(BaseStoreAsyncTests[bytes]):
    @pytest.fixture(params=STORES)
    async def kv_store(
        self, request: pytest.FixtureRequest, tmp_path: Path
    ) -> AsyncGenerator[BaseStore[str, bytes], None]:
        made = make_store(request, tmp_path)
        yield CacheByteStore(made)
        await made.aclose()

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return VALUES


@pytest.fixture(params=STORES)
async def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[KVStore, None]:
    made = make_store(request, tmp_path)
    yield made
    await made.aclose()


KEYS = [
    "",
    "a",
    "a:b",
    "a*?[b]\\",
    "é",
    "e\u0301",
    "鍵",
    "\0",
    "\ud83d",
    "\ud83d\ude00",
    "😀",
    "%3A",
]


def test_any_string_is_a_key_and_comes_back(cache: KVStore) -> None:
    store: ByteStore = CacheByteStore(cache)
    store.mset([(key, repr(key).encode()) for key in KEYS])
    assert sorted(store.yield_keys()) == sorted(KEYS)
    assert store.mget(KEYS) == [repr(key).encode() for key in KEYS]
    for prefix in KEYS:
        expected = sorted(key for key in KEYS if key.startswith(prefix))
        assert sorted(store.yield_keys(prefix=prefix)) == expected


texts = st.text(st.characters(exclude_categories=()), max_size=8)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Generator[KVStore, None, None]:
    with SqliteStore(tmp_path_factory.mktemp("names") / "cache.db") as store:
        yield store


@given(st.lists(texts, max_size=8), texts, texts, texts)
def test_names_are_found_by_prefix(
    shared: KVStore, names: list[str], prefix: str, one: str, other: str
) -> None:
    shared.clear()
    left, right = (NamedStore("test", shared, group=group) for group in (one, other))
    left.set_many(dict.fromkeys(names, b"left"))
    assert sorted(left.names(prefix)) == sorted({n for n in names if n.startswith(prefix)})
    assert one == other or right.names() == []


async def test_namespaces_and_tenants_are_apart(cache: KVStore) -> None:
    stores = [
        CacheByteStore(cache),
        CacheByteStore(cache, namespace="other"),
        CacheByteStore(cache, tenant="a"),
        CacheByteStore(cache, tenant="a:"),
    ]
    for number, store in enumerate(stores):
        await store.amset([("key", b"%d" % number)])
    for number, store in enumerate(stores):
        assert store.mget(["key"]) == [b"%d" % number]
        assert [key async for key in store.ayield_keys()] == ["key"]
    await stores[3].amdelete(["key"])
    assert [store.mget(["key"]) == [None] for store in stores] == [False, False, False, True]
    with pytest.raises(InvalidInput, match="tenant"):
        CacheByteStore(cache, tenant="")


def test_values_are_kept_until_they_are_deleted_or_for_their_time(tmp_path: Path) -> None:
    clock = FakeClock()
    with TieredCache(SqliteStore(tmp_path / "a.db", clock=clock), clock=clock) as cache:
        CacheByteStore(cache).mset([("ever", b"1")])
        short = CacheByteStore(cache, ttl=60)
        short.mset([("short", b"2")])
        assert sorted(short.yield_keys()) == ["ever", "short"]
        clock.now += 10**9
        assert short.mget(["ever", "short"]) == [b"1", None]
        assert list(short.yield_keys()) == ["ever"]


@pytest.mark.parametrize("pair", [("good", "text"), ("good", bytearray(b"x")), (1, b"x")])
async def test_other_types_are_refused_and_nothing_is_stored(cache: KVStore, pair: Any) -> None:
    store = CacheByteStore(cache)
    for pairs in ([("first", b"1"), pair], [pair]):
        with pytest.raises(InvalidInput, match=r"Pass (bytes|strings)"):
            store.mset(pairs)
        with pytest.raises(RagoptError):
            await store.amset(pairs)
    assert list(store.yield_keys()) == []
    with pytest.raises(InvalidInput, match="of type int"):
        store.mget([1])  # type: ignore[list-item]


async def test_async_calls_never_use_the_sync_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = SqliteStore(tmp_path / "cache.db")

    def refuse(*_: object) -> None:
        raise AssertionError("the sync face was used")

    for name in ("get_many", "set_many", "delete_many", "keys"):
        monkeypatch.setattr(cache, name, refuse)
    store = CacheByteStore(cache)
    await store.amset([("a", b"1"), ("b", b"2")])
    await store.amdelete(["a"])
    assert await store.amget(["a", "b"]) == [None, b"2"]
    assert [key async for key in store.ayield_keys(prefix="b")] == ["b"]
    await cache.aclose()


def test_a_store_that_fails_says_so(tmp_path: Path) -> None:
    broken = SqliteStore(tmp_path)  # a folder is no file
    store = CacheByteStore(broken)
    for operation in (
        lambda: store.mset([("a", b"1")]),
        lambda: store.mget(["a"]),
        lambda: list(store.yield_keys()),
    ):
        with pytest.raises(StorageError):
            operation()
    # A cache goes on without a layer, unless it was asked not to.
    assert CacheByteStore(TieredCache(broken)).mget(["a"]) == [None]


def test_statistics(cache: KVStore) -> None:
    store = CacheByteStore(cache)
    store.mset([("a", b"1")])
    store.mget(["a", "a", "b"])
    assert store.cache.stats.hit_rate("bytes") == pytest.approx(2 / 3)


class Counting(DeterministicFakeEmbedding):
    texts: list[str] = Field(default_factory=list)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts.extend(texts)
        return super().embed_documents(texts)


async def test_behind_cache_backed_embeddings(cache: KVStore) -> None:
    classic: Any = pytest.importorskip("langchain_classic.embeddings")
    model = Counting(size=4)
    store = CacheByteStore(cache)
    embeddings = classic.CacheBackedEmbeddings.from_bytes_store(
        model, store, namespace="m", key_encoder="blake2b"
    )
    first = embeddings.embed_documents(["a", "b"])
    second = await embeddings.aembed_documents(["a", "b", "c"])
    assert second == [*first, *DeterministicFakeEmbedding(size=4).embed_documents(["c"])]
    assert model.texts == ["a", "b", "c"]
    assert len(list(store.yield_keys(prefix="m"))) == 3


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_behind_a_multi_vector_retriever(cache: KVStore, colour: str) -> None:
    module: Any = pytest.importorskip("langchain_classic.retrievers.multi_vector")
    vectors = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    retriever = module.MultiVectorRetriever(
        vectorstore=vectors, byte_store=CacheByteStore(cache), id_key="doc_id"
    )
    parents = {id_: Document(page_content=f"parent {id_}", metadata={"n": 1}) for id_ in "ab"}
    vectors.add_documents(
        [Document(page_content=f"child {id_}", metadata={"doc_id": id_}) for id_ in parents]
    )
    set_all: Callable[..., Any] = retriever.docstore.mset
    set_all(list(parents.items()))
    query = "child a"
    found = retriever.invoke(query) if colour == "sync" else await retriever.ainvoke(query)
    assert sorted(each.page_content for each in found) == ["parent a", "parent b"]
    assert sorted(retriever.docstore.yield_keys()) == ["a", "b"]
