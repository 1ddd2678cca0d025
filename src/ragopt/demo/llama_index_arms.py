"""The demo's query engine in LlamaIndex: as the framework makes it, and with ragopt's classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from llama_index.core import PromptTemplate, StorageContext, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import (
    CompletionResponse,
    CompletionResponseGen,
    CustomLLM,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from ragopt.demo.answerer import PROMPT, Answerer
from ragopt.demo.arms import Arm, Caches, Kit
from ragopt.demo.passages import Passage
from ragopt.demo.settings import TOP_K
from ragopt.llama_index import (
    CachedEmbedding,
    CachedQueryEngine,
    CachedRetriever,
    EmbedderEmbedding,
    IndexVectorStore,
)
from ragopt.llama_index.embeddings import as_embedder
from ragopt.protocols import VectorIndex

_PROMPT = PromptTemplate(PROMPT.format(context="{context_str}", question="{query_str}"))
_WINDOW = 32_768  # tokens: the passages of a question are one prompt


class AnswererLLM(CustomLLM):
    """The demo's answerer as a LlamaIndex LLM.

    Args:
        answerer: Who answers.
    """

    _answerer: Answerer = PrivateAttr()

    def __init__(self, answerer: Answerer) -> None:
        super().__init__()
        self._answerer = answerer

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "AnswererLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """Name and context window."""
        return LLMMetadata(context_window=_WINDOW, model_name=self._answerer.name)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt."""
        return CompletionResponse(text=self._answerer.complete(prompt))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answer a prompt."""
        return CompletionResponse(text=await self._answerer.acomplete(prompt))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Answer a prompt, all at once."""
        text = self._answerer.complete(prompt)
        yield CompletionResponse(text=text, delta=text)


class PlainArm(Arm):
    """LlamaIndex alone: its default vector store and query engine.

    Args:
        kit: The embedding model and the answerer.
    """

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        store = SimpleVectorStore()
        kit.stopwatch.over("search", store, "query")
        self._index = vector_index(store, EmbedderEmbedding(kit.model))

    @cached_property
    def _engine(self) -> BaseQueryEngine:
        # Made at the first question: a retriever finds only what was indexed before it was made.
        return engine(self._index.as_retriever(similarity_top_k=TOP_K), self._kit.answerer)

    def add(self, passages: Sequence[Passage]) -> None:
        """Index passages."""
        self._index.insert_nodes(nodes(passages))

    def ask(self, question: str) -> str:
        """Return the engine's answer."""
        return str(self._engine.query(question))

    async def aask(self, question: str) -> str:
        """Return the engine's answer."""
        return str(await self._engine.aquery(question))

    def anew(self) -> PlainArm:
        """Return the same engine over an empty index."""
        return PlainArm(self._kit)


class RagoptArm(Arm):
    """The same query engine with ragopt's classes in the places of LlamaIndex's.

    Args:
        kit: The embedding model, the answerer and the stores of the caches.
        caches: The caches, over the kit's stores.
        index: An index that is filled already; an empty one if None.
    """

    def __init__(self, kit: Kit, caches: Caches, index: VectorIndex | None = None) -> None:
        self._kit = kit
        self.caches = caches
        if index is None:
            index = kit.index()
            kit.stopwatch.over("search", index, "search")
        self._records = index
        embedding = CachedEmbedding(kit.model, caches.embeddings, namespace=caches.namespace)
        kit.stopwatch.over("embed", as_embedder(embedding), "embed")
        self._index = vector_index(IndexVectorStore(index), embedding)
        retriever = CachedRetriever(
            self._index.as_retriever(similarity_top_k=TOP_K),
            caches.retrieval,
            namespace=caches.namespace,
        )
        self._engine = CachedQueryEngine(
            engine(retriever, kit.answerer),
            caches.answers,
            name="ragopt-demo",
            version=index,
            namespace=caches.namespace,
        )

    def add(self, passages: Sequence[Passage]) -> None:
        """Index passages."""
        self._index.insert_nodes(nodes(passages))

    def ask(self, question: str) -> str:
        """Return the engine's answer."""
        return str(self._engine.query(question))

    async def aask(self, question: str) -> str:
        """Return the engine's answer."""
        return str(await self._engine.aquery(question))

    def fresh(self) -> RagoptArm:
        """Return the same engine over the same index, with empty caches."""
        return RagoptArm(self._kit, self.caches.another(), self._records)

    def anew(self) -> RagoptArm:
        """Return the same engine over an empty index, with the same caches."""
        return RagoptArm(self._kit, self.caches)


def vector_index(store: BasePydanticVectorStore, embedding: BaseEmbedding) -> VectorStoreIndex:
    """Return an index without nodes over a vector store."""
    storage = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex([], embed_model=embedding, storage_context=storage)


def engine(retriever: BaseRetriever, answerer: Answerer) -> BaseQueryEngine:
    """Return the query engine: retrieve, fill the prompt, answer."""
    return RetrieverQueryEngine.from_args(
        retriever, llm=AnswererLLM(answerer), text_qa_template=_PROMPT
    )


def nodes(passages: Sequence[Passage]) -> list[TextNode]:
    """Turn passages into LlamaIndex's nodes; the title is not part of what is embedded."""
    return [
        TextNode(
            id_=each.id,
            text=each.text,
            metadata={"title": each.title},
            excluded_embed_metadata_keys=["title"],
            excluded_llm_metadata_keys=["title"],
        )
        for each in passages
    ]
