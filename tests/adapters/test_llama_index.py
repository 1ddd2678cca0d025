"""LlamaIndex ships no conformance suite: this is ours."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import Response
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index_instrumentation import get_dispatcher

from ragopt import F, HashingEmbedder, MemoryIndex, MemoryStore, RagoptError, TieredCache
from ragopt.errors import InvalidInput
from ragopt.llama_index import (
    CachedEmbedding,
    CachedQueryEngine,
    CachedRetriever,
    EmbedderEmbedding,
    FaissVectorStore,
    IndexVectorStore,
    PGVectorStore,
    RedisVectorStore,
)
from ragopt.testing.faces import BothColours, Face

EMBED = EmbedderEmbedding(HashingEmbedder(64))


def node(id_: str, text: str, ref: str | None = None, **metadata: Any) -> TextNode:
    made = TextNode(id_=id_, text=text, metadata=metadata, embedding=EMBED.get_text_embedding(text))
    if ref:
        made.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=ref)
    return made


NODES = [
    node("a", "apples and pears", "doc1", n=1, s="one", tags=["x", "y"], note=""),
    node("b", "cars and buses", "doc1", n=2, s="Two", tags=["y"]),
    node("c", "pears and plums", "doc2", n=3, s="three", tags=[], note=None),
    node("d", "trains and cars", "doc3", s="one two", tags=["z"], note="full"),
]


class Colour(BothColours):
    """The stores, in both colours."""

    @pytest.fixture(params=["flat", "hnsw", "memory", "pgvector", "redis"])
    def raw(self, request: pytest.FixtureRequest) -> Iterator[IndexVectorStore]:
        made: IndexVectorStore
        if request.param == "memory":
            made = IndexVectorStore(MemoryIndex())
        elif request.param == "pgvector":
            dsn, table = request.getfixturevalue("postgres_dsn"), f"t_{secrets.token_hex(8)}"
            made = PGVectorStore(connection_string=dsn, table_name=table)
        elif request.param == "redis":
            url, name = request.getfixturevalue("redis_url"), f"t_{secrets.token_hex(8)}"
            made = RedisVectorStore(redis_url=url, index_name=name)
        else:
            made = FaissVectorStore(kind=request.param)
        yield made
        made.client.clear()
        made.client.close()

    @pytest.fixture
    def store(self, raw: IndexVectorStore, face: Face) -> Iterator[Any]:
        raw.add(NODES)
        yield face(raw)
        face(raw.client).close()


def query(**options: Any) -> VectorStoreQuery:
    options.setdefault("query_embedding", EMBED.get_query_embedding("pears"))
    return VectorStoreQuery(similarity_top_k=options.pop("k", 10), **options)


def one(key: str, operator: FilterOperator, value: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])


OPERATORS = [
    (FilterOperator.EQ, "n", 1, "a"),
    (FilterOperator.NE, "n", 1, "bcd"),
    (FilterOperator.GT, "n", 1, "bc"),
    (FilterOperator.GTE, "n", 2, "bc"),
    (FilterOperator.LT, "n", 2, "a"),
    (FilterOperator.LTE, "n", 2, "ab"),
    (FilterOperator.IN, "n", [1, 3], "ac"),
    (FilterOperator.NIN, "n", [1, 3], "bd"),
    (FilterOperator.ANY, "tags", ["x", "z"], "ad"),
    (FilterOperator.ALL, "tags", ["x", "y"], "a"),
    (FilterOperator.CONTAINS, "tags", "y", "ab"),
    (FilterOperator.TEXT_MATCH, "s", "wo", "bd"),
    (FilterOperator.TEXT_MATCH_INSENSITIVE, "s", "TWO", "bd"),
    (FilterOperator.IS_EMPTY, "note", None, "abc"),
]


class TestFilters(Colour):
    def test_all_operators_are_here(self) -> None:
        assert {operator for operator, *_ in OPERATORS} == set(FilterOperator)

    @pytest.mark.parametrize(("operator", "key", "value", "expected"), OPERATORS)
    def test_operator(
        self, store: Any, operator: FilterOperator, key: str, value: Any, expected: str
    ) -> None:
        filters = one(key, operator, value)
        assert sorted(store.query(query(filters=filters)).ids) == list(expected)
        assert [found.node_id for found in store.get_nodes(filters=filters)] == list(expected)
        negated = MetadataFilters(filters=[filters], condition=FilterCondition.NOT)
        others = [id_ for id_ in "abcd" if id_ not in expected]
        assert sorted(store.query(query(filters=negated)).ids) == others

    def test_nesting(self, store: Any) -> None:
        def ids(filters: MetadataFilters) -> str:
            return "".join(sorted(store.query(query(filters=filters)).ids))

        first = MetadataFilter(key="n", value=1)
        second = MetadataFilter(key="s", value="three")
        tagged = MetadataFilter(key="tags", operator=FilterOperator.CONTAINS, value="y")
        either = MetadataFilters(filters=[first, second], condition=FilterCondition.OR)
        assert ids(either) == "ac"
        assert ids(MetadataFilters(filters=[either, tagged])) == "a"
        assert ids(MetadataFilters(filters=[first, second], condition=FilterCondition.NOT)) == "bd"
        neither = MetadataFilters(filters=[either], condition=FilterCondition.NOT)
        assert ids(MetadataFilters(filters=[neither, tagged])) == "b"
        assert ids(MetadataFilters(filters=[])) == "abcd"
        with pytest.raises(InvalidInput, match="group of filters is empty"):
            ids(MetadataFilters(filters=[first, MetadataFilters(filters=[])]))

    def test_documents_and_nodes(self, store: Any) -> None:
        assert sorted(store.query(query(doc_ids=["doc1"])).ids) == ["a", "b"]
        assert sorted(store.query(query(node_ids=["a", "d", "x"])).ids) == ["a", "d"]
        assert store.query(query(doc_ids=["doc1"], node_ids=["a", "d"])).ids == ["a"]
        assert store.query(query(doc_ids=[])).ids == []
        # The framework's own retriever passes an empty list of node ids for "all".
        assert len(store.query(query(node_ids=[])).ids) == 4


class TestQueries(Colour):
    def test_default(self, store: Any) -> None:
        result = store.query(query(k=2))
        assert set(result.ids) == {"a", "c"}
        assert [found.node_id for found in result.nodes] == result.ids
        assert result.similarities == sorted(result.similarities, reverse=True)

    def test_mmr(self, raw: IndexVectorStore, store: Any) -> None:
        similar = [node(f"p{i}", "pears pears pears", "p") for i in range(3)]
        raw.add(similar)
        varied = store.query(query(k=3, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.1))
        assert len({id_[0] for id_ in varied.ids}) > 1
        assert all(found.embedding is None for found in varied.nodes)

    @pytest.mark.parametrize(
        "mode",
        [
            VectorStoreQueryMode.SVM,
            VectorStoreQueryMode.LOGISTIC_REGRESSION,
            VectorStoreQueryMode.LINEAR_REGRESSION,
        ],
    )
    def test_other_modes_are_refused(self, store: Any, mode: VectorStoreQueryMode) -> None:
        with pytest.raises(InvalidInput, match=f"does not support the query mode '{mode.value}'"):
            store.query(query(mode=mode))

    def test_a_query_without_an_embedding(self, store: Any) -> None:
        with pytest.raises(InvalidInput, match="no embedding"):
            store.query(VectorStoreQuery(query_str="pears"))

    def test_a_ragopt_filter_for_what_llama_index_cannot_say(self, raw: IndexVectorStore) -> None:
        raw.add([node("x", "pears", draft=True), node("y", "pears", draft=False)])
        index = VectorStoreIndex.from_vector_store(raw, embed_model=EMBED)
        drafts = index.as_retriever(vector_store_kwargs={"where": F("draft") == True})  # noqa: E712
        assert [found.node_id for found in drafts.retrieve("pears")] == ["x"]
        both = query(filters=one("draft", FilterOperator.IS_EMPTY, None))
        assert raw.query(both, where={"draft": True}).ids == []
        assert CachedRetriever(drafts).retrieve("pears")[0].node_id == "x"


class TestWriting(Colour):
    def test_delete(self, store: Any) -> None:
        store.delete("doc1")
        store.delete("missing")
        assert [found.node_id for found in store.get_nodes()] == ["c", "d"]
        store.delete_nodes(["c", "missing"])
        store.delete_nodes([])
        assert [found.node_id for found in store.get_nodes()] == ["d"]
        with pytest.raises(InvalidInput, match="clear"):
            store.delete_nodes()
        store.delete_nodes(filters=one("s", FilterOperator.EQ, "one two"))
        assert store.get_nodes() == []

    def test_clear(self, store: Any) -> None:
        store.clear()
        assert store.get_nodes() == []

    def test_get_nodes_in_the_order_asked(self, store: Any) -> None:
        assert [found.node_id for found in store.get_nodes(["d", "x", "a", "d"])] == ["d", "a"]

    def test_a_node_again_replaces(self, raw: IndexVectorStore) -> None:
        raw.add(NODES)
        assert raw.add([node("a", "new", "doc9")]) == ["a"]
        assert raw.client.count() == 4
        raw.delete("doc9")
        assert raw.client.count() == 3

    async def test_async_add_returns_ids_in_order(self, raw: IndexVectorStore) -> None:
        assert await raw.async_add(NODES[::-1]) == ["d", "c", "b", "a"]
        await raw.client.aclose()


ROUND_TRIPS: list[BaseNode] = [
    TextNode(
        id_="text",
        text="the text",
        metadata={"doc_id": "the user's own", "document_id": 1, "id": "x", "text": "y"},
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"a": 1}),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="next"),
        },
        excluded_embed_metadata_keys=["id"],
        start_char_idx=3,
        end_char_idx=11,
    ),
    TextNode(id_="no document", text="", metadata={}),
    ImageNode(id_="image", text="a caption", image="aGVsbG8=", image_mimetype="image/png"),
    ImageNode(id_="image url", image_url="file.png"),
    IndexNode(id_="index", text="a summary", index_id="other"),
    IndexNode(id_="index of a node", index_id="inner", obj=TextNode(id_="inner", text="t")),
    Node(id_="media", text_resource=MediaResource(text="words"), extra_info={"n": 1}),
    Node(id_="empty media"),
    Document(id_="document", text="a document", metadata={"file": "x.txt"}),
]


@pytest.mark.parametrize("original", ROUND_TRIPS, ids=lambda n: n.node_id)
def test_round_trip(original: BaseNode) -> None:
    store = FaissVectorStore()
    original = original.model_copy(update={"embedding": [0.6, 0.8]})
    before = original.model_dump()
    store.add([original])
    assert original.model_dump() == before
    (found,) = store.get_nodes([original.node_id])
    assert type(found) is type(original)
    assert found.embedding == pytest.approx([0.6, 0.8])
    assert {**found.model_dump(), "embedding": None} == {**before, "embedding": None}
    assert found.hash == original.hash
    assert getattr(found, "obj", None) == getattr(original, "obj", None)


def test_nodes_that_cannot_be_stored() -> None:
    class Special(TextNode):
        @classmethod
        def class_name(cls) -> str:
            return "Special"

    store = FaissVectorStore()
    for bad, says in (
        (TextNode(id_="x", text="t"), "'x' has no embedding"),
        (Special(id_="x", text="t", embedding=[1.0]), "type Special"),
        (TextNode(id_="x", embedding=[1.0], metadata={"_ragopt_node": 1}), "Rename"),
        (TextNode(id_="x", embedding=[float("nan")]), "holds NaN"),
    ):
        with pytest.raises(RagoptError, match=says):
            store.add([NODES[0].model_copy(update={"embedding": [1.0]}), bad])
        assert store.client.count() == 0


class TestModels:
    async def test_another_model_is_refused(self) -> None:
        index = MemoryIndex()
        IndexVectorStore(index, embed_model=EMBED).add(NODES[:1])
        IndexVectorStore(index, embed_model=EMBED.model_name).add(NODES[1:2])
        other = IndexVectorStore(index, embed_model="other")
        with pytest.raises(InvalidInput, match="by the model 'ragopt/hashing', not by 'other'"):
            other.add(NODES[2:])
        with pytest.raises(InvalidInput, match="not by 'other'"):
            await other.async_add(NODES[2:])
        for asked in (query(), query(mode=VectorStoreQueryMode.SEMANTIC_HYBRID, query_str="cars")):
            with pytest.raises(InvalidInput, match="not by 'other'"):
                other.query(asked)
            with pytest.raises(InvalidInput, match="not by 'other'"):
                await other.aquery(asked)
        by_words = query(mode=VectorStoreQueryMode.TEXT_SEARCH, query_str="cars")
        assert other.query(by_words).ids == ["b"]
        assert index.count() == 2

    def test_a_model_without_a_name(self) -> None:
        with pytest.raises(InvalidInput, match="does not tell the name"):
            IndexVectorStore(MemoryIndex(), embed_model=MockEmbedding(embed_dim=64))


class TestIndex:
    @pytest.fixture
    def index(self) -> VectorStoreIndex:
        documents = [Document(text=n.text, id_=f"doc-{n.node_id}") for n in NODES]
        storage = StorageContext.from_defaults(vector_store=FaissVectorStore())
        return VectorStoreIndex.from_documents(
            documents, storage_context=storage, embed_model=CachedEmbedding(HashingEmbedder(64))
        )

    def test_from_documents_to_answers(self, index: VectorStoreIndex) -> None:
        engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=2)
        found = {n.node.ref_doc_id for n in engine.query("pears").source_nodes}
        assert found == {"doc-a", "doc-c"}
        index.delete_ref_doc("doc-a")
        assert engine.query("pears").source_nodes[0].node.ref_doc_id == "doc-c"

    def test_persist_and_load(self, index: VectorStoreIndex, tmp_path: Path) -> None:
        index.storage_context.persist(str(tmp_path))
        folder = tmp_path / "default__vector_store.json"
        storage = StorageContext.from_defaults(
            vector_store=FaissVectorStore.from_persist_path(folder), persist_dir=str(tmp_path)
        )
        again = load_index_from_storage(storage, embed_model=EMBED)
        found = again.as_retriever(similarity_top_k=1).retrieve("trains")
        assert found[0].node.ref_doc_id == "doc-d"

    def test_ingestion_pipeline(self) -> None:
        store = FaissVectorStore()
        embed = CachedEmbedding(HashingEmbedder(64))
        pipeline = IngestionPipeline(transformations=[embed], vector_store=store)
        pipeline.run(documents=[Document(text="one", id_="1"), Document(text="two", id_="2")])
        assert store.client.count() == 2

    def test_existing_index_without_documents(self) -> None:
        store = FaissVectorStore()
        store.add(NODES)
        index = VectorStoreIndex.from_vector_store(store, embed_model=EMBED)
        assert index.as_retriever(similarity_top_k=1).retrieve("trains")[0].node_id == "d"


class Counting(MockEmbedding):
    """An embedding that remembers what it was asked, in which colour."""

    asked: list[Any] = []  # noqa: RUF012 - pydantic copies defaults

    def _get_query_embedding(self, query: str) -> list[float]:
        self.asked.append(("sync", "query", query))
        return [1.0, 0.0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        self.asked.append(("async", "query", query))
        return [1.0, 0.0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(("sync", "document", texts))
        return [[0.0, 1.0] for _ in texts]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(("async", "document", texts))
        return [[0.0, 1.0] for _ in texts]


class TestCachedEmbedding:
    def counting(self, name: str = "counting-1") -> Counting:
        return Counting(embed_dim=2, model_name=name)

    def test_each_text_is_computed_once(self) -> None:
        inner = self.counting()
        cached = CachedEmbedding(inner)
        assert cached.get_text_embedding_batch(["a", "b", "a"]) == [[0.0, 1.0]] * 3
        assert cached.get_text_embedding("a") == [0.0, 1.0]
        assert cached.get_query_embedding("a") == [1.0, 0.0]
        assert inner.asked == [("sync", "document", ["a", "b"]), ("sync", "query", "a")]

    async def test_async_reaches_the_async_model(self) -> None:
        inner = self.counting()
        cached = CachedEmbedding(inner)
        await cached.aget_text_embedding_batch(["a", "b"])
        await cached.aget_query_embedding("a")
        assert [colour for colour, *_ in inner.asked] == ["async", "async"]
        assert cached.get_text_embedding("b") == [0.0, 1.0]
        assert len(inner.asked) == 2

    def test_two_models_share_a_store_and_no_entry(self) -> None:
        shared = MemoryStore()
        one, two = self.counting("1"), self.counting("2")
        for inner in (one, two):
            CachedEmbedding(inner, shared).get_query_embedding("a")
        assert len(one.asked) == len(two.asked) == 1

    def test_a_model_without_a_name_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="which model"):
            CachedEmbedding(MockEmbedding(embed_dim=2))
        CachedEmbedding(MockEmbedding(embed_dim=2), model="named")

    def test_it_is_serialised_without_its_cache(self) -> None:
        cached = CachedEmbedding(self.counting(), MemoryStore(), embed_batch_size=7)
        fields = cached.to_dict()
        assert fields["class_name"] == "CachedEmbedding"
        assert fields["model_name"] == "counting-1"
        assert fields["embed_batch_size"] == 7
        assert "asked" not in fields
        assert cached.to_json()

    def test_events_say_what_was_asked_and_what_was_computed(self) -> None:
        class Seen(BaseEventHandler):
            events: list[Any] = []  # noqa: RUF012

            def handle(self, event: BaseEvent, **kwargs: Any) -> None:
                self.events.append(event)

        seen = Seen()
        root = get_dispatcher()
        root.add_event_handler(seen)
        try:
            cached = CachedEmbedding(self.counting())
            cached.get_query_embedding("a")
            first = len([e for e in seen.events if e.class_name() == "EmbeddingEndEvent"])
            cached.get_query_embedding("a")
            second = len([e for e in seen.events if e.class_name() == "EmbeddingEndEvent"])
        finally:
            root.event_handlers.remove(seen)
        assert (first, second) == (2, 3)


class TestCachedRetriever:
    @pytest.fixture
    def index(self) -> VectorStoreIndex:
        store = FaissVectorStore()
        store.add(NODES)
        return VectorStoreIndex.from_vector_store(store, embed_model=EMBED)

    async def test_the_second_ask_searches_nothing(self, index: VectorStoreIndex) -> None:
        cache = TieredCache()
        retriever = CachedRetriever(index.as_retriever(similarity_top_k=2), cache)
        first = retriever.retrieve("pears")
        for found in (retriever.retrieve("pears"), await retriever.aretrieve("pears")):
            assert [(n.node.model_dump(), n.score) for n in found] == [
                (n.node.model_dump(), n.score) for n in first
            ]
        assert cache.stats.total("retrieval", "hit") == 2
        first[0].node.metadata["n"] = "changed by the caller"
        assert retriever.retrieve("pears")[0].node.metadata["n"] != "changed by the caller"

    def test_the_bundle_is_not_written_to(self, index: VectorStoreIndex) -> None:
        bundle = QueryBundle("pears")
        CachedRetriever(index.as_retriever()).retrieve(bundle)
        assert bundle.embedding is None

    def test_a_change_of_the_index_is_seen_at_once(self, index: VectorStoreIndex) -> None:
        retriever = CachedRetriever(index.as_retriever(similarity_top_k=1))
        assert retriever.retrieve("pears")[0].node_id in ("a", "c")
        index.vector_store.add([node("new", "pears", "doc9")])
        assert retriever.retrieve("pears")[0].node_id == "new"
        index.delete_ref_doc("doc9")
        assert retriever.retrieve("pears")[0].node_id in ("a", "c")

    def test_arguments_are_part_of_the_key(self, index: VectorStoreIndex) -> None:
        cache = TieredCache()
        filters = one("n", FilterOperator.GT, 1)
        options: list[dict[str, Any]] = [
            {"similarity_top_k": 1},
            {"similarity_top_k": 3},
            {"similarity_top_k": 3, "filters": filters},
            {"similarity_top_k": 3, "vector_store_query_mode": "mmr"},
            {"similarity_top_k": 3, "doc_ids": ["doc1"]},
        ]
        sizes = [
            len(CachedRetriever(index.as_retriever(**each), cache).retrieve("pears"))
            for each in options
        ]
        assert sizes == [1, 3, 2, 3, 2]
        assert cache.stats.total("retrieval", "hit") == 0

    def test_a_foreign_retriever_needs_a_name_and_a_version(self) -> None:
        calls: list[str] = []

        class Foreign(BaseRetriever):
            def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
                calls.append(query_bundle.query_str)
                return [NodeWithScore(node=NODES[0], score=None)]

        wrong: list[dict[str, Any]] = [{}, {"name": "x"}, {"version": "1"}]
        for missing in wrong:
            with pytest.raises(InvalidInput, match="version"):
                CachedRetriever(Foreign(), **missing)
        cached = CachedRetriever(Foreign(), name="foreign", version="1")
        assert cached.retrieve("a")[0].score is None
        assert cached.retrieve("a")[0].node == NODES[0]
        assert calls == ["a"]


class TestCachedQueryEngine:
    @pytest.fixture
    def parts(self) -> tuple[CachedQueryEngine, FaissVectorStore, TieredCache]:
        store = FaissVectorStore()
        store.add(NODES)
        index = VectorStoreIndex.from_vector_store(store, embed_model=EMBED)
        cache = TieredCache()
        engine = RetrieverQueryEngine.from_args(index.as_retriever(), llm=MockLLM())
        return CachedQueryEngine(engine, cache, name="e", version=store.client), store, cache

    async def test_a_hit_has_everything(
        self, parts: tuple[CachedQueryEngine, FaissVectorStore, TieredCache]
    ) -> None:
        engine, _, cache = parts
        first = engine.query("pears")
        for again in (engine.query("pears"), await engine.aquery("pears")):
            assert isinstance(again, Response)
            assert str(again) == str(first)
            assert again.metadata == first.metadata
            assert again.source_nodes == first.source_nodes
        assert cache.stats.total("answer", "hit") == 2
        engine.query("plums")
        assert cache.stats.total("answer", "miss") == 2
        assert engine.forget("pears") is True
        assert await engine.aforget(QueryBundle("pears")) is False
        engine.query("pears")
        assert cache.stats.total("answer", "miss") == 3

    def test_the_bundle_is_not_written_to(
        self, parts: tuple[CachedQueryEngine, FaissVectorStore, TieredCache]
    ) -> None:
        engine, _, cache = parts
        bundle = QueryBundle("pears")
        for _ in range(2):
            engine.query(bundle)
        assert bundle.embedding is None
        assert cache.stats.total("answer", "hit") == 1

    def test_an_index_tells_the_version(self) -> None:
        store = FaissVectorStore()
        store.add(NODES)
        index = VectorStoreIndex.from_vector_store(store, embed_model=EMBED)
        for version in (index, store, store.client):
            engine = CachedQueryEngine(
                index.as_query_engine(llm=MockLLM()), name="e", version=version
            )
            engine.query("pears")
            store.add([node("new", "pears", "doc9")])
            engine.query("pears")
            assert engine.cache.stats.total("answer", "miss") == 2

    def test_it_dies_with_the_documents(
        self, parts: tuple[CachedQueryEngine, FaissVectorStore, TieredCache]
    ) -> None:
        engine, store, cache = parts
        engine.query("pears")
        store.delete("doc1")
        assert all(n.node_id not in "ab" for n in engine.query("pears").source_nodes)
        assert cache.stats.total("answer", "miss") == 2

    def test_what_is_no_response_is_passed_on(self) -> None:
        class Plain(CustomQueryEngine):
            def custom_query(self, query_str: str) -> Any:
                return f"about {query_str}"

        cache = TieredCache()
        engine = CachedQueryEngine(Plain(), cache, name="p", version="1")
        assert str(engine.query("a")) == str(engine.query("a")) == "about a"
        for bad in ("", None):
            with pytest.raises(InvalidInput):
                CachedQueryEngine(Plain(), name=bad, version="1")  # type: ignore[arg-type]
            with pytest.raises(InvalidInput):
                CachedQueryEngine(Plain(), name="n", version=bad)


def test_stores_are_serialised_without_their_clients() -> None:
    assert FaissVectorStore().to_dict() == {
        "stores_text": True,
        "is_embedding_query": True,
        "class_name": "FaissVectorStore",
    }


def test_only_private_methods_are_overridden() -> None:
    """The public ones emit the events and count the tokens."""
    public = {name for name in vars(BaseEmbedding) if "embedding" in name and name[0] != "_"}
    assert public
    assert not public & (set(vars(CachedEmbedding)) | set(vars(EmbedderEmbedding)))
