"""BGE-M3 in both frameworks, over one model and one pass."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from tests.checkpoints import small

from ragopt import BGEM3Embedder, CachedEmbedder
from ragopt.langchain import BGEM3Embeddings
from ragopt.llama_index import BGEM3Embedding, BGEM3SparseEmbedding

TEXTS = ["The cat sat on the mat.", "猫が庭で寝ている。", "고양이가 잡니다.", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("bge") / "m3")


@pytest.fixture
def model(folder: Path) -> BGEM3Embedder:
    return BGEM3Embedder(folder, device="cpu", query_prefix="query: ")


class _Suites:
    @pytest.fixture(autouse=True)
    def _made(self, folder: Path) -> None:
        type(self).folder = folder

    folder: Path

    @property
    def embeddings_class(self) -> type[BGEM3Embeddings]:
        return BGEM3Embeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": str(self.folder), "device": "cpu"}


class TestUnit(_Suites, EmbeddingsUnitTests):
    pass


class TestIntegration(_Suites, EmbeddingsIntegrationTests):
    pass


def test_langchain_has_all_three_kinds(model: BGEM3Embedder) -> None:
    embeddings = BGEM3Embeddings(model)
    direct = model.embed(TEXTS, outputs=["dense", "sparse", "multi"])
    hybrid = embeddings.embed_hybrid(TEXTS)
    np.testing.assert_allclose(hybrid.dense, direct.dense, atol=1e-6)  # type: ignore[arg-type]
    assert [v.to_dict().keys() for v in hybrid.sparse or []] == [
        v.to_dict().keys() for v in direct.sparse or []
    ]
    assert hybrid.multi is None
    later = asyncio.run(embeddings.aembed_hybrid(TEXTS, outputs=["multi"]))
    assert later.dense is None
    assert [len(rows) for rows in later.multi or []] == [len(rows) for rows in direct.multi or []]
    query = embeddings.embed_hybrid_query(TEXTS[0])
    assert query.dense is not None
    np.testing.assert_allclose(query.dense, embeddings.embed_query(TEXTS[0]), atol=1e-6)
    again = asyncio.run(embeddings.aembed_hybrid_query(TEXTS[0]))
    assert again.sparse == query.sparse


def test_both_faces_of_llama_index_take_one_pass(folder: Path, model: BGEM3Embedder) -> None:
    shared = CachedEmbedder(model, together=("dense", "sparse"))
    dense, sparse = BGEM3Embedding(shared), BGEM3SparseEmbedding(shared)
    vectors = dense.get_text_embedding_batch(TEXTS)
    computed = model.stats.computed
    weights = sparse.get_text_embedding_batch(TEXTS)
    assert model.stats.computed == computed, "the pass of the dense face made them"
    direct = model.embed(TEXTS, outputs=["dense", "sparse"])
    np.testing.assert_allclose(vectors, direct.dense, atol=1e-6)  # type: ignore[arg-type]
    for found, vector in zip(weights, direct.sparse or [], strict=True):
        assert found == pytest.approx(vector.to_dict(), abs=1e-6)
        assert all(type(key) is int and type(value) is float for key, value in found.items())
    sparse.get_query_embedding("a question")
    computed = model.stats.computed
    dense.get_query_embedding("a question")
    assert model.stats.computed == computed


async def test_the_sparse_face_in_async(model: BGEM3Embedder) -> None:
    sparse = BGEM3SparseEmbedding(model)
    assert await sparse.aget_text_embedding(TEXTS[0]) == sparse.get_text_embedding(TEXTS[0])
    assert await sparse.aget_query_embedding("q") == sparse.get_query_embedding("q")
    found = await sparse.aget_text_embedding_batch(TEXTS)
    assert [each.keys() for each in found] == [
        each.keys() for each in sparse.get_text_embedding_batch(TEXTS)
    ]


def test_a_name_is_enough_and_nothing_is_read_yet(folder: Path) -> None:
    dense = BGEM3Embedding(str(folder), embed_batch_size=7)
    assert (dense.model_name, dense.embed_batch_size) == (str(folder), 7)
    sparse = BGEM3SparseEmbedding(dense)
    assert (sparse.model_name, sparse.embed_batch_size) == (str(folder), 7)
    assert sparse._embedder is dense._embedder
    assert BGEM3Embedding().model_name == "BAAI/bge-m3"
    assert len(dense.get_text_embedding("a")) == 64


def test_what_is_serialised_holds_no_model(folder: Path) -> None:
    for face in (BGEM3Embedding(str(folder)), BGEM3SparseEmbedding(BGEM3Embedding(str(folder)))):
        data = face.to_dict() if isinstance(face, BGEM3Embedding) else face.model_dump()
        assert data["class_name"] == type(face).__name__
        assert not {"_embedder", "embedder", "api_key"} & data.keys()


class Seen(BaseEventHandler):
    names: list[str] = []  # noqa: RUF012 - a field of pydantic

    def handle(self, event: Any, **_: Any) -> None:
        self.names.append(type(event).__name__)


def test_events_of_the_framework(model: BGEM3Embedder) -> None:
    handler, dispatcher = Seen(), get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        dense = BGEM3Embedding(model, embed_batch_size=2)
        dense.get_text_embedding_batch(TEXTS)
        BGEM3SparseEmbedding(dense).get_text_embedding_batch(TEXTS)
    finally:
        dispatcher.event_handlers.remove(handler)
    assert handler.names.count("EmbeddingStartEvent") == 2, "one for each batch of two"
    assert handler.names.count("SparseEmbeddingEndEvent") == 2
