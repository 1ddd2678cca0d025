"""The demo's chain in LangChain: as the framework makes it, and with ragopt's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from ragopt.demo.answerer import PROMPT
from ragopt.demo.arms import Arm, Caches, Kit
from ragopt.demo.passages import Passage
from ragopt.demo.settings import TOP_K
from ragopt.langchain import (
    CachedChain,
    CachedEmbeddings,
    CachedRetriever,
    EmbedderEmbeddings,
    IndexVectorStore,
    LLMCache,
)
from ragopt.protocols import VectorIndex


class AnswererModel(BaseChatModel):
    """The demo's answerer as a chat model."""

    answerer: Any

    @property
    def _llm_type(self) -> str:
        return "ragopt-demo"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"answerer": self.answerer.name}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(self.answerer.complete(messages[-1].text))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(await self.answerer.acomplete(messages[-1].text))


class PlainArm(Arm):
    """LangChain alone: its in-memory vector store and an LCEL chain.

    Args:
        kit: The embedding model and the answerer.
    """

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._store = InMemoryVectorStore(EmbedderEmbeddings(kit.model))
        kit.stopwatch.over("search", self._store, "similarity_search_with_score_by_vector")
        retriever = self._store.as_retriever(search_kwargs={"k": TOP_K})
        self._chain = chain(retriever, AnswererModel(answerer=kit.answerer))

    def add(self, passages: Sequence[Passage]) -> None:
        """Index passages."""
        self._store.add_documents(documents(passages))

    def ask(self, question: str) -> str:
        """Return the chain's answer."""
        return str(self._chain.invoke(question))

    async def aask(self, question: str) -> str:
        """Return the chain's answer."""
        return str(await self._chain.ainvoke(question))

    def anew(self) -> PlainArm:
        """Return the same chain over an empty index."""
        return PlainArm(self._kit)


class RagoptArm(Arm):
    """The same chain with ragopt's classes in the places of LangChain's.

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
        self._index = index
        own = caches.namespace
        embeddings = CachedEmbeddings(kit.model, caches.embeddings, namespace=own)
        kit.stopwatch.over("embed", embeddings.embedder, "embed")
        self._store = IndexVectorStore(index, embeddings)
        retriever = CachedRetriever(
            retriever=self._store.as_retriever(search_kwargs={"k": TOP_K}),
            cache=caches.retrieval,
            namespace=own,
        )
        model = AnswererModel(answerer=kit.answerer, cache=LLMCache(caches.model, namespace=own))
        self._chain = CachedChain(
            chain(retriever, model),
            caches.answers,
            name="ragopt-demo",
            version=index,
            namespace=own,
        )

    def add(self, passages: Sequence[Passage]) -> None:
        """Index passages."""
        self._store.add_documents(documents(passages))

    def ask(self, question: str) -> str:
        """Return the chain's answer."""
        return str(self._chain.invoke(question))

    async def aask(self, question: str) -> str:
        """Return the chain's answer."""
        return str(await self._chain.ainvoke(question))

    def fresh(self) -> RagoptArm:
        """Return the same chain over the same index, with empty caches."""
        return RagoptArm(self._kit, self.caches.another(), self._index)

    def anew(self) -> RagoptArm:
        """Return the same chain over an empty index, with the same caches."""
        return RagoptArm(self._kit, self.caches)


def chain(retriever: BaseRetriever, model: BaseChatModel) -> Runnable[str, str]:
    """Return the chain: retrieve, fill the prompt, answer."""
    context = retriever | _joined
    inputs = {"context": context, "question": RunnablePassthrough()}
    return inputs | PromptTemplate.from_template(PROMPT) | model | StrOutputParser()


def documents(passages: Sequence[Passage]) -> list[Document]:
    """Turn passages into LangChain's documents."""
    return [
        Document(id=each.id, page_content=each.text, metadata={"title": each.title})
        for each in passages
    ]


def _joined(found: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in found)


def _result(text: str) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])
