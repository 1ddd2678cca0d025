"""What the stores of both frameworks make of input that is wrong, or right in an unusual way."""

from __future__ import annotations

import copy
import pickle
import secrets
from datetime import date
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.schema import NodeRelationship, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from tests.adapters.test_adding import Named

from ragopt import FaissIndex, Fusion, HashingEmbedder, MemoryIndex, PgvectorIndex, RedisIndex
from ragopt.errors import InvalidInput
from ragopt.langchain import FaissVectorStore, IndexVectorStore, PGVectorStore, RedisVectorStore
from ragopt.llama_index import FaissVectorStore as FaissNodes
from ragopt.llama_index import IndexVectorStore as Nodes
from ragopt.llama_index import PGVectorStore as PGNodes
from ragopt.testing.faces import BothColours, Face

EMBEDDER = HashingEmbedder(16)
DSN = "postgresql://nobody@localhost/nowhere"  # which nothing connects to
VECTOR = EMBEDDER.embed(["pears"]).to_lists()[0]


async def called(method: Any, *args: Any, **options: Any) -> None:
    """Call a method of either colour."""
    outcome = method(*args, **options)
    if outcome is not None:
        await outcome


class TestLangChain(BothColours):
    @pytest.fixture
    def store(self, face: Face) -> Any:
        made = IndexVectorStore(MemoryIndex(), EMBEDDER)
        made.add_texts(["pears", "cars"], [{"n": 1}, {"n": 2}], ids=["a", "b"])
        return face(made)

    @pytest.mark.parametrize(
        ("method", "args", "option"),
        [
            ("similarity_search", ["pears"], "filters"),
            ("similarity_search", ["pears"], "score_threshold"),
            ("similarity_search_with_score", ["pears"], "where"),
            ("similarity_search_by_vector", [VECTOR], "fliter"),
            ("similarity_search_with_relevance_scores", ["pears"], "filters"),
            ("max_marginal_relevance_search", ["pears"], "filters"),
            ("add_texts", [["plums"]], "metadata"),
            ("add_documents", [[Document("plums")]], "metadata"),
            ("delete", [["a"]], "where"),
        ],
    )
    def test_an_option_that_nothing_looks_at(
        self, store: Any, method: str, args: list[Any], option: str
    ) -> None:
        with pytest.raises(InvalidInput, match=f"option '{option}' is not known.*Known are"):
            getattr(store, method)(*args, **{option: {"n": 1}})
        assert store.index.count() == 2

    def test_all_from_a_score_on(self, store: Any) -> None:
        (found,) = store.similarity_search("pears", k=None, min_score=0.9)
        assert found.id == "a"
        assert store.similarity_search("pears", k=2, min_score=2.0) == []

    def test_documents_of_a_generator(self, store: Any) -> None:
        documents = (Document(text, id=text) for text in ("plums", "buses"))
        assert store.add_documents(documents) == ["plums", "buses"]
        assert store.add_texts(iter(["figs"]), iter([{"n": 3}]), ids=iter(["c"])) == ["c"]
        assert store.get_by_ids(iter(["c"]))[0].metadata == {"n": 3}
        assert store.index.count() == 5

    def test_texts_that_are_more_than_texts(self, store: Any) -> None:
        store.add_texts([AIMessage("plums").text], ids=["c"])
        assert type(store.get_by_ids(["c"])[0].page_content) is str

    @pytest.mark.parametrize(
        ("args", "options"),
        [
            (["plums"], {}),
            ([7], {}),
            ([["plums"], {"n": 1}], {}),
            ([["plums"], [None]], {}),
            ([["plums"], "n"], {}),
            ([["plums", "figs"]], {"ids": "cd"}),
            ([["plums"]], {"ids": [""]}),
            ([["plums"]], {"ids": [0]}),
            ([["plums"]], {"batch_size": 2.5}),
            ([["plums"]], {"batch_size": 0}),
        ],
    )
    def test_columns_that_are_none(
        self, store: Any, args: list[Any], options: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInput):
            store.add_texts(*args, **options)
        assert store.index.count() == 2

    @pytest.mark.parametrize(
        ("method", "args", "options"),
        [
            ("delete", [[7]], {}),
            ("delete", ["a"], {}),
            ("get_by_ids", ["a"], {}),
            ("get_by_ids", [[None]], {}),
            ("similarity_search_by_vector", [[]], {}),
            ("similarity_search_by_vector", [[VECTOR, VECTOR]], {}),
            ("max_marginal_relevance_search", ["pears"], {"k": 0}),
            ("max_marginal_relevance_search", ["pears"], {"lambda_mult": 2}),
            ("similarity_search", ["pears"], {"by": "nonsense"}),
            ("similarity_search", ["pears"], {"filter": {"n": (1, 2)}}),
        ],
    )
    def test_what_makes_no_sense(
        self, store: Any, method: str, args: list[Any], options: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInput):
            getattr(store, method)(*args, **options)
        assert store.index.count() == 2

    def test_the_model_of_a_cleared_index(self, face: Face) -> None:
        """Others may have filled it again since this store asked."""
        index = MemoryIndex()
        one, two = (face(IndexVectorStore(index, Named(name))) for name in ("one", "two"))
        one.add_texts(["pears"])
        index.clear()
        two.add_texts(["pears"])
        with pytest.raises(InvalidInput, match="by the model 'two', not by 'one'"):
            one.add_texts(["cars"])
        assert index.count() == 1


class TestConstruction:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: IndexVectorStore(MemoryIndex(), EMBEDDER, by="nonsense"),  # type: ignore[arg-type]
            lambda: IndexVectorStore(MemoryIndex(), EMBEDDER, by=["dense"]),  # type: ignore[arg-type]
            lambda: Fusion({"dense": np.inf, "text": 1}),
            lambda: FaissVectorStore(EMBEDDER, index="folder"),  # type: ignore[arg-type]
            lambda: FaissVectorStore(EMBEDDER, index=FaissIndex(), metric="l2"),
            lambda: FaissVectorStore(EMBEDDER, index=FaissIndex(), m=8),
            lambda: FaissNodes(MemoryIndex()),  # type: ignore[arg-type]
            lambda: FaissNodes(FaissIndex(), kind="hnsw"),
            lambda: PGVectorStore(EMBEDDER, index=PgvectorIndex(DSN, "t"), table_name="u"),
            lambda: PGVectorStore(EMBEDDER, index="none"),
            lambda: PGNodes("hnsw"),
            lambda: RedisVectorStore(
                EMBEDDER, index=RedisIndex("redis://localhost", "t"), redis_url="redis://other"
            ),
        ],
    )
    def test_what_would_not_be_heeded(self, make: Any) -> None:
        with pytest.raises(InvalidInput) as caught:
            make()
        assert caught.value.fix

    def test_what_a_new_table_is_indexed_with(self, postgres_dsn: str) -> None:
        name = f"t_{secrets.token_hex(8)}"
        store = PGVectorStore(EMBEDDER, connection=postgres_dsn, table_name=name, index="none")
        store.add_texts(["pears"])
        assert store.index.stats().kind == "none"
        nodes = PGNodes("none", connection_string=postgres_dsn, table_name=name)
        assert nodes.client.stats().records == 1
        nodes.client.close()
        store.index.drop()
        store.index.close()
        with pytest.raises(InvalidInput, match="'nonsense' is not an index"):
            PGVectorStore(EMBEDDER, connection=DSN, index="nonsense")

    @pytest.mark.parametrize("by", ["text", Fusion({"dense": 1, "text": 1})])
    @pytest.mark.parametrize("server", ["postgres", "redis"])
    def test_a_store_for_words_keeps_words(
        self, server: str, by: Any, redis_url: str, postgres_dsn: str
    ) -> None:
        name = f"t_{secrets.token_hex(8)}"
        store: PGVectorStore | RedisVectorStore
        if server == "redis":
            store = RedisVectorStore(EMBEDDER, redis_url=redis_url, index_name=name, by=by)
        else:
            store = PGVectorStore(EMBEDDER, connection=postgres_dsn, table_name=name, by=by)
        store.add_texts(["pears", "cars"])
        assert store.similarity_search("cars", k=1)[0].page_content == "cars"
        store.index.drop()
        store.index.close()

    @pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
    @pytest.mark.parametrize("index", [MemoryIndex(), FaissIndex()])
    def test_an_index_is_not_copied(self, how: Any, index: Any) -> None:
        with pytest.raises(InvalidInput, match="cannot be copied or pickled"):
            how(index)


class TestLlamaIndex:
    @staticmethod
    def node(**options: Any) -> TextNode:
        return TextNode(id_="a", text="pears", embedding=VECTOR, **options)

    async def test_an_option_that_nothing_looks_at(self) -> None:
        store = Nodes(MemoryIndex())
        store.add([self.node()])
        asked = VectorStoreQuery(query_embedding=VECTOR)
        with pytest.raises(InvalidInput, match=r"'wehre' is not known.*where, mmr_threshold"):
            store.query(asked, wehre={"n": 1})
        with pytest.raises(InvalidInput, match="'wehre' is not known"):
            await store.aquery(asked, wehre={"n": 1})
        for deletes in (store.delete_nodes, store.adelete_nodes, store.delete, store.adelete):
            with pytest.raises(InvalidInput, match="'where' is not known"):
                await called(deletes, ["a"], where={"n": 1})
        with pytest.raises(InvalidInput, match="'metadata' is not known"):
            store.add([self.node()], metadata={})
        assert store.client.count() == 1

    def test_how_different_the_nodes_of_mmr_are(self) -> None:
        store = Nodes(MemoryIndex())
        texts = ["pears", "pears pears", "cars and pears"]
        vectors = EMBEDDER.embed(texts).to_lists()
        store.add(
            [
                TextNode(id_=text, text=text, embedding=vector)
                for text, vector in zip(texts, vectors, strict=True)
            ]
        )
        asked = VectorStoreQuery(
            query_embedding=VECTOR, similarity_top_k=2, mode=VectorStoreQueryMode.MMR
        )
        assert store.query(asked, mmr_threshold=1.0).ids == ["pears", "pears pears"]
        assert store.query(asked, mmr_threshold=0.1).ids == ["pears", "cars and pears"]
        few = store.query(asked, mmr_threshold=0.1, mmr_prefetch_k=2).ids
        assert few == ["pears", "pears pears"]  # there was nothing else to choose from

    def test_dates_of_the_document_a_node_is_of(self) -> None:
        day = date(2026, 1, 2)
        document = LlamaDocument(text="pears", metadata={"day": day, "raw": b"\xff"})
        related = {NodeRelationship.SOURCE: document.as_related_node_info()}
        store = Nodes(MemoryIndex())
        store.add([self.node(relationships=related, metadata={"day": day})])
        (found,) = store.get_nodes(["a"])
        assert found.source_node is not None
        assert found.source_node.metadata == {"day": day, "raw": b"\xff"}
        assert found.metadata == {"day": day}

    @pytest.mark.parametrize("value", [object(), np.float32(1)])
    def test_metadata_that_cannot_be_stored(self, value: Any) -> None:
        store = Nodes(MemoryIndex())
        with pytest.raises(InvalidInput, match="cannot be stored"):
            store.add([self.node(metadata={"value": value})])
