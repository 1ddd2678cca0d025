"""What LangChain's own suites do not ask for."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel, SecretStr

from ragopt import (
    F,
    HashingEmbedder,
    MemoryIndex,
    MemoryStore,
    RagoptError,
    SqliteStore,
    TieredCache,
)
from ragopt.cache.values import ValueCache
from ragopt.codecs import encode_value
from ragopt.errors import InvalidInput, UnkeyableValue
from ragopt.langchain import (
    CachedChain,
    CachedEmbeddings,
    CachedRetriever,
    EmbedderEmbeddings,
    FaissVectorStore,
    IndexVectorStore,
    LLMCache,
)

TEXTS = ["apples and pears", "cars and buses", "pears and plums", "trains and cars"]
METADATA = [{"n": i, "kind": "fruit" if i % 2 == 0 else "traffic"} for i in range(4)]


class Counting(Embeddings):
    """Embeddings that remember what they were asked, in which colour."""

    def __init__(self, model: str | None = "counting-1") -> None:
        if model:
            self.model = model
        self.inner = EmbedderEmbeddings(HashingEmbedder(32))
        self.asked: list[tuple[str, str, list[str]]] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(("sync", "document", list(texts)))
        return self.inner.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        self.asked.append(("sync", "query", [text]))
        return self.inner.embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(("async", "document", list(texts)))
        return self.inner.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        self.asked.append(("async", "query", [text]))
        return self.inner.embed_query(text)


@pytest.fixture
def store() -> FaissVectorStore:
    embeddings = EmbedderEmbeddings(HashingEmbedder())
    return FaissVectorStore.from_texts(TEXTS, embeddings, METADATA, ids=list("abcd"))


class TestCachedEmbeddings:
    def test_each_text_is_computed_once(self) -> None:
        inner = Counting()
        cached = CachedEmbeddings(inner)
        first = cached.embed_documents(["a", "b", "a"])
        assert inner.asked == [("sync", "document", ["a", "b"])]
        assert first[0] == first[2]
        assert cached.embed_documents(["b", "c"])[0] == first[1]
        assert inner.asked[1:] == [("sync", "document", ["c"])]

    def test_a_query_is_not_a_document(self) -> None:
        inner = Counting()
        cached = CachedEmbeddings(inner)
        assert cached.embed_query("a") != cached.embed_documents(["a"])[0]
        assert [role for _, role, _ in inner.asked] == ["query", "document"]

    async def test_async_reaches_the_async_model(self) -> None:
        inner = Counting()
        cached = CachedEmbeddings(inner)
        vectors = await cached.aembed_documents(["a", "b"])
        await cached.aembed_query("q")
        assert [(colour, role) for colour, role, _ in inner.asked] == [
            ("async", "document"),
            ("async", "query"),
        ]
        assert cached.embed_documents(["a", "b"]) == vectors
        assert len(inner.asked) == 2

    def test_two_models_share_a_store_and_no_entry(self) -> None:
        shared = MemoryStore()
        one, two = Counting("model-1"), Counting("model-2")
        CachedEmbeddings(one, shared).embed_query("a")
        CachedEmbeddings(two, shared).embed_query("a")
        assert len(one.asked) == len(two.asked) == 1

    def test_a_model_without_a_name_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match=r'model="provider/model-name"'):
            CachedEmbeddings(Counting(model=None))
        CachedEmbeddings(Counting(model=None), model="named")

    def test_settings_are_part_of_the_key_and_secrets_are_not(self) -> None:
        class Configured(BaseModel, Counting):
            model: str = "m"
            dimensions: int = 8
            api_key: SecretStr = SecretStr("hush")

            def __init__(self, **fields: Any) -> None:
                BaseModel.__init__(self, **fields)

            def embed_query(self, text: str) -> list[float]:
                return [1.0] * self.dimensions

        shared = MemoryStore()
        assert len(CachedEmbeddings(Configured(dimensions=8), shared).embed_query("a")) == 8
        assert len(CachedEmbeddings(Configured(dimensions=4), shared).embed_query("a")) == 4
        spec = CachedEmbeddings(Configured()).embedder.spec
        assert "hush" not in repr(spec)

    def test_what_is_computed_survives_a_later_failure(self) -> None:
        class Fragile(Counting):
            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                if "poison" in texts:
                    raise ConnectionError("the model is gone")
                return super().embed_documents(texts)

        inner = Fragile()
        cached = CachedEmbeddings(inner, batch_size=2)
        with pytest.raises(ConnectionError, match="the model is gone"):
            cached.embed_documents(["a", "b", "poison", "c"])
        cached.embed_documents(["a", "b"])
        assert len(inner.asked) == 1

    def test_a_model_that_returns_too_few_is_not_cached(self) -> None:
        class Short(Counting):
            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                return super().embed_documents(texts)[:-1]

        cached = CachedEmbeddings(Short())
        with pytest.raises(InvalidInput, match="returned 1 dense vectors for 2 texts"):
            cached.embed_documents(["a", "b"])

    def test_nan_is_not_cached(self) -> None:
        class Broken(Counting):
            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                return [[float("nan")] * 4 for _ in texts]

        with pytest.raises(InvalidInput, match=r"NaN.*'the text'"):
            CachedEmbeddings(Broken()).embed_documents(["the text"])

    def test_float32_is_exact(self) -> None:
        inner = EmbedderEmbeddings(HashingEmbedder(64))
        cached = CachedEmbeddings(HashingEmbedder(64))
        cached.embed_documents(TEXTS)
        assert cached.embed_documents(TEXTS) == inner.embed_documents(TEXTS)

    @pytest.mark.parametrize("bad", [object(), None, "text"])
    def test_what_is_no_embedding(self, bad: Any) -> None:
        with pytest.raises(InvalidInput, match="Embeddings of type"):
            CachedEmbeddings(bad)


class TestVectorStore:
    def test_documents_come_back_whole(self, store: FaissVectorStore) -> None:
        (found,) = store.similarity_search("apples pears", k=1)
        assert found == Document(id="a", page_content=TEXTS[0], metadata=METADATA[0])

    def test_generators_are_texts_too(self) -> None:
        store = FaissVectorStore(HashingEmbedder())
        assert len(store.add_texts(text for text in TEXTS)) == 4
        assert store.index.count() == 4

    def test_documents_with_and_without_ids(self) -> None:
        store = FaissVectorStore(HashingEmbedder())
        documents = [Document("one", id="x"), Document("two")]
        ids = store.add_documents(documents)
        assert ids[0] == "x"
        assert documents[1].id is None
        assert store.get_by_ids([ids[1]])[0].page_content == "two"

    @pytest.mark.parametrize(
        "where",
        [{"kind": "traffic"}, F("kind") == "traffic", lambda metadata: metadata["n"] % 2 == 1],
        ids=["dict", "filter", "function"],
    )
    async def test_filters_in_every_form(self, store: FaissVectorStore, where: Any) -> None:
        for found in (
            store.similarity_search("pears", k=4, filter=where),
            await store.asimilarity_search("pears", k=4, filter=where),
            store.max_marginal_relevance_search("pears", k=4, filter=where),
            await store.amax_marginal_relevance_search("pears", k=4, filter=where),
            [d for d, _ in store.similarity_search_with_relevance_scores("x", k=4, filter=where)],
        ):
            assert {document.id for document in found} == {"b", "d"}

    def test_filter_dicts(self, store: FaissVectorStore) -> None:
        def ids(where: Any) -> str:
            return "".join(sorted(d.id or "" for d in store.similarity_search("x", 9, where)))

        assert ids({"n": {"$gte": 1, "$lt": 3}}) == "bc"
        assert ids({"$or": [{"n": 0}, {"n": {"$in": [3]}}]}) == "ad"
        assert ids({"$not": {"kind": "fruit"}}) == "bd"
        assert ids({}) == "abcd"
        wrong: list[Any] = [{"n": {"$near": 1}}, {"$or": []}, 7]
        for bad in wrong:
            with pytest.raises(InvalidInput):
                ids(bad)

    def test_scores_and_relevance(self, store: FaissVectorStore) -> None:
        scored = store.similarity_search_with_score("pears", k=4)
        assert [s for _, s in scored] == sorted((s for _, s in scored), reverse=True)
        relevant = store.similarity_search_with_relevance_scores("pears", k=4)
        assert all(0 <= score <= 1 for _, score in relevant)
        threshold = relevant[1][1]
        retriever = store.as_retriever(
            search_type="similarity_score_threshold",
            search_kwargs={"k": 4, "score_threshold": threshold},
        )
        assert len(retriever.invoke("pears")) == 2

    def test_mmr_varies_and_respects_fetch_k(self) -> None:
        store = FaissVectorStore(HashingEmbedder())
        store.add_texts(["red apple", "red apple!", "red apple?", "green pear red"])
        near = [d.page_content for d in store.similarity_search("red apple", k=2)]
        varied = store.max_marginal_relevance_search("red apple", k=2, fetch_k=4, lambda_mult=0.2)
        assert varied[1].page_content == "green pear red"
        assert "green pear red" not in near
        few = store.max_marginal_relevance_search("red apple", k=2, fetch_k=2, lambda_mult=0.2)
        assert "green pear red" not in [d.page_content for d in few]

    def test_delete_needs_ids_or_a_filter(self, store: FaissVectorStore) -> None:
        with pytest.raises(InvalidInput, match="clear"):
            store.delete()
        assert store.delete([])
        assert store.index.count() == 4
        assert store.delete(["a", "missing"])
        assert store.delete(filter={"kind": "traffic"})
        assert [record.id for record in store.index.find()] == ["c"]

    def test_save_and_load(self, store: FaissVectorStore, tmp_path: Path) -> None:
        store.save_local(tmp_path / "index")
        loaded = FaissVectorStore.load_local(tmp_path / "index", store.embeddings)
        assert loaded.similarity_search("pears", k=4) == store.similarity_search("pears", k=4)
        assert not list((tmp_path / "index").glob("*.pkl"))

    def test_indexing_api_with_cleanup(self) -> None:
        store = FaissVectorStore(HashingEmbedder())
        manager = InMemoryRecordManager("test")
        manager.create_schema()
        documents = [Document(text, metadata={"source": str(i)}) for i, text in enumerate(TEXTS)]
        first = index(documents, manager, store, cleanup="full", source_id_key="source")
        assert first["num_added"] == 4
        again = index(documents[:3], manager, store, cleanup="full", source_id_key="source")
        assert (again["num_skipped"], again["num_deleted"]) == (3, 1)
        assert store.index.count() == 3

    def test_an_id_twice_names_it(self, store: FaissVectorStore) -> None:
        with pytest.raises(InvalidInput, match="'z' is given twice"):
            store.add_texts(["x", "y"], ids=["z", "z"])
        assert store.index.count() == 4

    def test_another_model_does_not_fit(self, store: FaissVectorStore) -> None:
        other = FaissVectorStore(HashingEmbedder(8), index=store.index)
        with pytest.raises(RagoptError, match="dimension 8, the index has 256"):
            other.similarity_search("pears")
        with pytest.raises(RagoptError, match="dimension 8, the index has 256"):
            other.add_texts(["x"])

    async def test_searches_do_not_block_the_loop(self) -> None:
        store = FaissVectorStore(DeterministicFakeEmbedding(size=64))
        store.add_texts([str(i) for i in range(2000)])
        main = threading.get_ident()
        seen: list[int] = []

        class Spy(MemoryIndex):
            def _search_now(self, *args: Any) -> Any:
                seen.append(threading.get_ident())
                return super()._search_now(*args)

        spy = IndexVectorStore(Spy(), HashingEmbedder())
        await spy.aadd_texts(TEXTS)
        await asyncio.gather(*(spy.asimilarity_search(text) for text in TEXTS))
        assert main not in seen

    async def test_every_async_method_is_our_own(self) -> None:
        for name in dir(IndexVectorStore):
            if name.startswith("a") and hasattr(IndexVectorStore, name[1:]):
                owner = getattr(IndexVectorStore, name).__qualname__.split(".")[0]
                generic = {"aadd_documents", "asearch", "afrom_documents"}
                generic |= {"asimilarity_search_with_relevance_scores"}  # over our private one
                assert owner == "IndexVectorStore" or name in generic, name


class TestCachedRetriever:
    def test_the_second_ask_searches_nothing(self, store: FaissVectorStore) -> None:
        cache = TieredCache()
        retriever = CachedRetriever(retriever=store.as_retriever(), cache=cache)
        first = retriever.invoke("pears")
        assert retriever.invoke("pears") == first
        assert cache.stats.total("retrieval", "hit") == 1
        first[0].metadata["n"] = "changed by the caller"
        assert retriever.invoke("pears")[0].metadata["n"] != "changed by the caller"

    async def test_both_colours_share(self, store: FaissVectorStore) -> None:
        cache = TieredCache()
        retriever = CachedRetriever(retriever=store.as_retriever(), cache=cache)
        assert await retriever.ainvoke("pears") == retriever.invoke("pears")
        assert cache.stats.total("retrieval", "hit") == 1

    def test_a_change_of_the_index_is_seen_at_once(self, store: FaissVectorStore) -> None:
        retriever = CachedRetriever(retriever=store.as_retriever(search_kwargs={"k": 1}))
        assert retriever.invoke("pears")[0].id in ("a", "c")
        store.add_texts(["pears"], ids=["new"])
        assert retriever.invoke("pears")[0].id == "new"
        store.delete(["new"])
        assert retriever.invoke("pears")[0].id in ("a", "c")

    def test_arguments_are_part_of_the_key(self, store: FaissVectorStore) -> None:
        cache = TieredCache()
        one = CachedRetriever(retriever=store.as_retriever(search_kwargs={"k": 1}), cache=cache)
        two = CachedRetriever(retriever=store.as_retriever(search_kwargs={"k": 2}), cache=cache)
        traffic = store.as_retriever(search_kwargs={"filter": F("kind") == "traffic"})
        three = CachedRetriever(retriever=traffic, cache=cache)
        assert [len(r.invoke("pears")) for r in (one, two, three)] == [1, 2, 2]
        assert len(one.invoke("pears", k=3)) == 3

    def test_two_tenants_share_a_store_and_no_result(self, store: FaissVectorStore) -> None:
        cache = TieredCache()
        for tenant in ("a", "b"):
            CachedRetriever(retriever=store.as_retriever(), cache=cache, tenant=tenant).invoke(
                "pears"
            )
        assert cache.stats.total("retrieval", "miss") == 2
        with pytest.raises(InvalidInput, match="tenant of a cache is empty"):
            CachedRetriever(retriever=store.as_retriever(), cache=cache, tenant="")

    def test_a_function_as_filter_is_refused(self, store: FaissVectorStore) -> None:
        odd = store.as_retriever(search_kwargs={"filter": lambda metadata: True})
        with pytest.raises(UnkeyableValue, match="function"):
            CachedRetriever(retriever=odd)

    def test_a_foreign_retriever_needs_a_name_and_a_version(self) -> None:
        class Foreign(BaseRetriever):
            calls: int = 0

            def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
                self.calls += 1
                return [Document(query)]

        foreign = Foreign()
        wrong: list[Any] = [{}, {"name": "x"}, {"version": "1"}, {"name": "x", "version": ""}]
        for missing in wrong:
            with pytest.raises(InvalidInput, match="version"):
                CachedRetriever(retriever=foreign, **missing)
        state = ["1"]
        cached = CachedRetriever(retriever=foreign, name="foreign", version=lambda: state[0])
        cached.invoke("a")
        cached.invoke("a")
        assert foreign.calls == 1
        state[0] = "2"
        cached.invoke("a")
        assert foreign.calls == 2

    def test_callbacks_see_the_inner_search_only_on_a_miss(self, store: FaissVectorStore) -> None:
        class Watching(BaseCallbackHandler):
            def __init__(self) -> None:
                self.starts = 0

            def on_retriever_start(self, *args: Any, **kwargs: Any) -> None:
                self.starts += 1

        watching = Watching()
        retriever = CachedRetriever(retriever=store.as_retriever())
        retriever.invoke("pears", {"callbacks": [watching]})
        assert watching.starts == 2
        retriever.invoke("pears", {"callbacks": [watching]})
        assert watching.starts == 3

    def test_documents_of_another_class_are_not_kept(self) -> None:
        class Special(Document):
            extra: str = ""

        class Foreign(BaseRetriever):
            def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
                return [Special(page_content=query, extra="kept")]

        cache = TieredCache()
        cached = CachedRetriever(retriever=Foreign(), cache=cache, name="f", version="1")
        for _ in range(2):
            (found,) = cached.invoke("a")
            assert isinstance(found, Special)
        assert cache.stats.total("retrieval", "uncacheable") == 2

    def test_a_cache_of_another_kind(self, store: FaissVectorStore) -> None:
        wrong: Any = {}
        with pytest.raises(InvalidInput, match="A cache of type dict"):
            CachedRetriever(store.as_retriever(), wrong)


class TestLLMCache:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Iterator[LLMCache]:
        tiers = TieredCache(MemoryStore(), SqliteStore(tmp_path / "cache.db"))
        yield LLMCache(tiers)
        tiers.close()

    def test_a_chat_model_answers_once(self, cache: LLMCache) -> None:
        model = FakeListChatModel(responses=["one", "two"], cache=cache)
        assert model.invoke("question").content == "one"
        assert model.invoke("question").content == "one"
        assert model.invoke("another").content == "two"

    async def test_async(self, cache: LLMCache) -> None:
        model = FakeListChatModel(responses=["one", "two"], cache=cache)
        assert (await model.ainvoke("question")).content == "one"
        assert model.invoke("question").content == "one"

    def test_a_hit_is_a_list_with_the_whole_message(self, cache: LLMCache) -> None:
        message = AIMessage(
            "text",
            additional_kwargs={"a": 1},
            response_metadata={"model": "m"},
            tool_calls=[{"name": "f", "args": {"x": [1]}, "id": "1", "type": "tool_call"}],
            usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
            id="run-1",
        )
        generation = ChatGeneration(message=message, generation_info={"finish_reason": "stop"})
        cache.update("p", "m", [generation])
        found = cache.lookup("p", "m")
        assert isinstance(found, list)
        assert found == [generation]
        assert found[0] is not generation
        assert cache.lookup("p", "another model") is None
        assert cache.lookup("p" + "m", "") is None

    def test_what_cannot_be_kept_exactly_is_not_kept(self, cache: LLMCache) -> None:
        class Provider(AIMessage):
            pass

        for generation in (
            ChatGeneration(message=Provider(content="x")),
            Generation(text="x", generation_info={"raw": object()}),
        ):
            cache.update("p", "m", [generation])
            assert cache.lookup("p", "m") is None
        assert cache.cache.stats.total("llm", "uncacheable") == 2

    def test_stored_data_names_no_class(self, cache: LLMCache) -> None:
        for stored in (
            [{"class": "os.system", "text": "true", "info": None}],
            [{"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}}],
            "text",
            None,
            [],
            [None],
        ):
            key = cache.answers._space.key(("p", "m"))
            cache.cache.set_many({key: encode_value(stored)})
            assert cache.lookup("p", "m") is None
        assert cache.cache.stats.total("llm", "corrupt") == 6
        assert cache.cache.stats.total("llm", "hit") == 0

    def test_clear_leaves_the_neighbours(self) -> None:
        shared = MemoryStore()
        one, two = LLMCache(shared, namespace="one"), LLMCache(shared, namespace="two")
        tenant = LLMCache(shared, namespace="one", tenant="t")
        embeddings = CachedEmbeddings(HashingEmbedder(), shared, namespace="one")
        embeddings.embed_query("a")
        for cache in (one, two, tenant):
            cache.update("p", "m", [Generation(text="x")])
        one.clear()
        assert one.lookup("p", "m") is None
        assert two.lookup("p", "m") is not None
        assert tenant.lookup("p", "m") is not None
        assert shared.count() == 3


class TestCachedChain:
    @pytest.fixture
    def calls(self) -> list[Any]:
        return []

    def chain(self, calls: list[Any], **options: Any) -> CachedChain:
        def answer(question: Any) -> Any:
            calls.append(question)
            return {"answer": f"about {question}", "n": len(calls)}

        options = {"name": "test", "version": "1", **options}
        return CachedChain(RunnableLambda(answer), **options)

    async def test_a_hit_runs_nothing(self, calls: list[Any]) -> None:
        chain = self.chain(calls)
        first = chain.invoke({"q": "a", "k": 1})
        assert chain.invoke({"k": 1, "q": "a"}) == first
        assert await chain.ainvoke({"q": "a", "k": 1}) == first
        assert list(chain.stream({"q": "a", "k": 1})) == [first]
        assert chain.batch([{"q": "a", "k": 1}]) == [first]
        assert len(calls) == 1
        chain.invoke({"q": "a", "k": 2})
        assert len(calls) == 2

    async def test_one_answer_is_forgotten(self, calls: list[Any]) -> None:
        chain = self.chain(calls)
        chain.invoke("a"), chain.invoke("b")
        assert chain.forget("a") is True
        assert chain.forget("a") is False
        assert await chain.aforget("b") is True
        chain.invoke("a"), chain.invoke("b")
        assert calls == ["a", "b", "a", "b"]

    def test_it_dies_with_the_documents(self, calls: list[Any], store: FaissVectorStore) -> None:
        chain = self.chain(calls, version=store.index)
        chain.invoke("a")
        chain.invoke("a")
        store.add_texts(["new"])
        chain.invoke("a")
        assert len(calls) == 2

    def test_names_keep_chains_apart(self, calls: list[Any]) -> None:
        shared = MemoryStore()
        self.chain(calls, cache=shared, name="one").invoke("a")
        self.chain(calls, cache=shared, name="two").invoke("a")
        assert len(calls) == 2
        for bad in ({"name": ""}, {"version": ""}, {"version": None}, {"version": 7}):
            with pytest.raises(InvalidInput):
                self.chain(calls, **bad)

    def test_composed_with_other_runnables(self, calls: list[Any]) -> None:
        composed = self.chain(calls) | RunnableLambda(lambda answer: answer["answer"])
        assert composed.invoke("a") == composed.invoke("a") == "about a"
        assert len(calls) == 1

    @pytest.mark.parametrize(
        "answer",
        [
            AIMessage(
                "x", usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
            ),
            {"context": [Document("d", id="1", metadata={"n": (1, 2)})], "answer": AIMessage("x")},
            [HumanMessage("q"), ("a", 1)],
            {"document": ("1", "text", {}), 1: {"dict": []}},
            ("dict", []),
        ],
        ids=str,
    )
    def test_messages_and_documents_are_answers(self, answer: Any) -> None:
        seen: list[int] = []

        def reply(_: Any) -> Any:
            seen.append(1)
            return answer

        chain = CachedChain(RunnableLambda(reply), name="m", version="1")
        assert chain.invoke("a") == chain.invoke("a") == answer
        assert type(chain.invoke("a")) is type(answer)
        assert len(seen) == 1

    def test_an_answer_of_another_type_is_passed_on(self) -> None:
        class Special(AIMessage):
            pass

        answers: list[Any] = [object(), Special(content="x"), {"deep": [object()]}]
        for answer in answers:

            def reply(_: Any, answer: Any = answer) -> Any:
                return answer

            chain = CachedChain(RunnableLambda(reply), name="m", version="1")
            for _ in range(2):
                assert chain.invoke("a") is answer
            assert chain.cache.stats.total("answer", "uncacheable") == 2

    def test_a_conversation_is_part_of_the_key(self, calls: list[Any]) -> None:
        chain = self.chain(calls)
        turns: list[Any] = [
            {"q": "a", "history": []},
            {"q": "a", "history": [HumanMessage("hello")]},
            {"q": "a", "history": [AIMessage("hello")]},
            {"q": "a", "history": ["hello"]},
        ]
        for turn in turns * 2:
            chain.invoke(turn)
        chain.invoke({"q": "a", "history": [AIMessage("hello", id="another run")]})
        assert len(calls) == len(turns)

    def test_an_input_without_a_key_is_answered_by_the_chain(self, calls: list[Any]) -> None:
        chain = self.chain(calls)
        for _ in range(2):
            chain.invoke({"q": object()})
        assert len(calls) == 2
        assert chain.cache.stats.total("answer", "uncacheable") == 2

    def test_a_version_function_is_checked(self, calls: list[Any]) -> None:
        async def later() -> str:
            return "1"

        wrong: list[Any] = [lambda: "", lambda: None, later]
        for version in wrong:
            with pytest.raises(InvalidInput, match="version function"):
                self.chain(calls, version=version).invoke("a")

    def test_a_store_tells_the_version(self, calls: list[Any], store: FaissVectorStore) -> None:
        chain = self.chain(calls, version=store)
        chain.invoke("a")
        store.delete(["a"])
        chain.invoke("a")
        assert len(calls) == 2

    def test_none_and_falsy_answers_are_answers(self) -> None:
        values: list[Any] = [None, 0, "", [], False]
        for value in values:
            seen: list[int] = []

            def answer(_: Any, value: Any = value, seen: list[int] = seen) -> Any:
                seen.append(1)
                return value

            chain = CachedChain(RunnableLambda(answer), name="v", version="1")
            assert chain.invoke("a") == chain.invoke("a") == value
            assert len(seen) == 1

    def test_an_error_is_not_cached(self) -> None:
        answers: Iterator[Any] = iter([ValueError("once"), "fine"])

        def answer(_: Any) -> Any:
            value = next(answers)
            if isinstance(value, Exception):
                raise value
            return value

        chain = CachedChain(RunnableLambda(answer), name="e", version="1")
        with pytest.raises(ValueError, match="once"):
            chain.invoke("a")
        assert chain.invoke("a") == "fine"

    def test_time_to_live(self, calls: list[Any]) -> None:
        chain = self.chain(calls, ttl=0.05)
        chain.invoke("a")
        time.sleep(0.1)
        chain.invoke("a")
        assert len(calls) == 2


def test_a_broken_layer_never_breaks_the_chain(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"this is no database" * 100)
    cache = TieredCache(MemoryStore(), SqliteStore(tmp_path / "cache.db"))
    embeddings = CachedEmbeddings(Counting(), cache)
    store = FaissVectorStore.from_texts(TEXTS, embeddings)
    retriever = CachedRetriever(retriever=store.as_retriever(), cache=cache)
    assert retriever.invoke("pears") == retriever.invoke("pears")
    assert cache.stats.total("sqlite", "error") > 0
    assert cache.stats.total("retrieval", "hit") == 1


def test_values_never_come_back_as_another_kind() -> None:
    shared = MemoryStore()
    ValueCache("one", shared, ttl=None).set("p", 1)
    assert not ValueCache("two", shared, ttl=None).get("p")
