"""An edited document kills exactly the answers that were built on it, in real chains."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document as LlamaDocument
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine

from ragopt import (
    FaissIndex,
    Freshness,
    HashingEmbedder,
    Ids,
    Lineage,
    MemoryStore,
    SqliteStore,
    TieredCache,
    cached,
)
from ragopt.langchain import CachedChain, CachedRetriever, EmbedderEmbeddings, FaissVectorStore
from ragopt.llama_index import CachedQueryEngine, EmbedderEmbedding
from ragopt.llama_index import CachedRetriever as CachedNodes
from ragopt.llama_index import FaissVectorStore as FaissNodes
from ragopt.sources import used

TEXTS = {
    "fruit": "apples and pears are fruit",
    "roads": "cars and buses use roads",
    "rails": "trains and trams use rails",
    "water": "ships and boats use water",
    "birds": "ducks and swans are birds",
}
QUESTIONS = ["apples and pears", "cars and buses", "trains and trams", "ships", "use", "are"]
EMBEDDINGS = EmbedderEmbeddings(HashingEmbedder(256))
EDITED = "roads"
SECONDS = 10.0


class Echo(BaseChatModel):
    """Repeats its prompt, word by word where it streams, and counts."""

    asked: list[str]

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        text = str(messages[-1].content)
        self.asked.append(text)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=text))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        text = str(messages[-1].content)
        self.asked.append(text)
        for word in text.split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))


PROMPT = ChatPromptTemplate.from_template("{passages} ? {question}")


def passages(inputs: dict[str, Any]) -> str:
    return " ; ".join(f"{each.id} = {each.page_content}" for each in inputs["documents"])


def make_chain(retriever: Runnable[Any, Any], model: Echo) -> Runnable[Any, Any]:
    """Return the usual chain, which also returns its documents."""
    found = RunnableParallel(documents=retriever, question=RunnablePassthrough())
    return (
        found.assign(passages=passages).assign(answer=PROMPT | model).pick(["documents", "answer"])
    )


class Way(NamedTuple):
    """How a chain is asked; each returns the text of the answer."""

    name: str
    ask: Callable[[Runnable[Any, Any], str], str]

    def __str__(self) -> str:
        return self.name


def _invoke(chain: Runnable[Any, Any], question: str) -> str:
    return str(chain.invoke(question)["answer"].content)


def _ainvoke(chain: Runnable[Any, Any], question: str) -> str:
    return str(asyncio.run(chain.ainvoke(question))["answer"].content)


def _joined(pieces: Iterable[dict[str, Any]]) -> str:
    return "".join(str(each["answer"].content) for each in pieces if "answer" in each)


def _stream(chain: Runnable[Any, Any], question: str) -> str:
    return _joined(chain.stream(question))


def _astream(chain: Runnable[Any, Any], question: str) -> str:
    async def pieces() -> list[Any]:
        return [piece async for piece in chain.astream(question)]

    return _joined(asyncio.run(pieces()))


WAYS = [
    Way("invoke", _invoke),
    Way("ainvoke", _ainvoke),
    Way("stream", _stream),
    Way("astream", _astream),
]


class Told:
    """A FAISS store of ragopt, which tells the lineage itself."""

    def __init__(self, lineage: Lineage) -> None:
        self.store = FaissVectorStore.from_texts(list(TEXTS.values()), EMBEDDINGS, ids=list(TEXTS))
        self.store.index.tell(lineage)

    def retriever(self) -> BaseRetriever:
        return self.store.as_retriever(search_kwargs={"k": 2})

    def replace(self, name: str, text: str) -> None:
        self.store.add_texts([text], ids=[name])

    def delete_and_add(self, name: str, text: str) -> None:
        self.store.delete([name])
        self.store.add_texts([text], ids=[name])

    def areplace(self, name: str, text: str) -> None:
        asyncio.run(self.store.aadd_texts([text], ids=[name]))

    def remove(self, name: str, text: str) -> None:
        self.store.index.delete(Ids([name]))


class Foreign:
    """LangChain's own store, for which somebody must tell."""

    def __init__(self, lineage: Lineage) -> None:
        self.lineage = lineage
        self.store = InMemoryVectorStore.from_texts(
            list(TEXTS.values()), EMBEDDINGS, ids=list(TEXTS)
        )

    def retriever(self) -> BaseRetriever:
        return self.store.as_retriever(search_kwargs={"k": 2})

    def replace(self, name: str, text: str) -> None:
        self.store.add_documents([Document(id=name, page_content=text)])
        self.lineage.changed(name)


def named(answer: Any) -> list[str]:
    return [each.id for each in answer["documents"]]


def noting(retriever: BaseRetriever) -> Runnable[Any, Any]:
    """Return a retriever of somebody's own, which says what it returns."""

    def found(question: str) -> list[Document]:
        documents = retriever.invoke(question)
        used(each.id for each in documents)
        return documents

    async def afound(question: str) -> list[Document]:
        documents = await retriever.ainvoke(question)
        used(each.id for each in documents)
        return documents

    return RunnableLambda(found, afound)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


@pytest.fixture
def cache(path: Path) -> Iterator[TieredCache]:
    with TieredCache(MemoryStore(), SqliteStore(path)) as made:
        yield made


@pytest.fixture
def lineage(cache: TieredCache) -> Lineage:
    return Lineage(cache)


def check(
    ask: Callable[[str], str], cache: TieredCache, edit: Callable[[], None], new: str
) -> None:
    """Ask all, edit one document, ask all again: exactly those built on it are made anew."""
    stats = cache.stats
    before = {question: ask(question) for question in QUESTIONS}
    built_on_it = {question for question in QUESTIONS if f"{EDITED} =" in before[question]}
    assert 0 < len(built_on_it) < len(QUESTIONS)
    assert {question: ask(question) for question in QUESTIONS} == before
    assert stats.total("answer", "miss") == stats.total("answer", "hit") == len(QUESTIONS)
    edit()
    after = {question: ask(question) for question in QUESTIONS}
    assert {question for question in QUESTIONS if after[question] != before[question]} == (
        built_on_it
    )
    assert stats.total("answer", "dead") == len(built_on_it)
    assert stats.total("answer", "miss") == len(QUESTIONS) + len(built_on_it)
    assert all(TEXTS[EDITED] not in answer for answer in after.values())
    if new:
        assert any(new in answer for answer in after.values())
    assert {question: ask(question) for question in QUESTIONS} == after
    assert stats.total("answer", "dead") == len(built_on_it)


NEW = "cars and buses use motorways"


@pytest.mark.parametrize(
    ("way", "edit"),
    [
        *((WAYS[0], edit) for edit in ("areplace", "delete_and_add", "remove")),
        *((way, "replace") for way in WAYS),
    ],
    ids=str,
)
@pytest.mark.parametrize("inner", ["plain", "cached", "cached with lineage"])
def test_an_edit_in_a_ragopt_store(
    way: Way, edit: str, inner: str, cache: TieredCache, lineage: Lineage
) -> None:
    told, model = Told(lineage), Echo(asked=[])
    retriever: Any = told.retriever()
    if inner == "cached":
        retriever = CachedRetriever(retriever, cache)
    elif inner == "cached with lineage":
        retriever = CachedRetriever(retriever, cache, lineage=lineage)
    chain = CachedChain(make_chain(retriever, model), cache, name="c", lineage=lineage)

    def change() -> None:
        getattr(told, edit)(EDITED, NEW)

    check(lambda question: way.ask(chain, question), cache, change, "" if edit == "remove" else NEW)
    assert len(model.asked) == cache.stats.total("answer", "miss")


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("inner", ["documents", "used", "cached", "cached with lineage"])
def test_an_edit_in_another_store(
    way: Way, inner: str, cache: TieredCache, lineage: Lineage
) -> None:
    foreign = Foreign(lineage)
    retriever: Any = foreign.retriever()
    versions = ["1"]
    documents = None
    if inner == "documents":
        documents = named
    elif inner == "used":
        retriever = noting(retriever)
    elif inner == "cached":
        retriever = CachedRetriever(retriever, cache, name="r", version=lambda: versions[-1])
    else:
        retriever = CachedRetriever(retriever, cache, name="r", lineage=lineage)
    chain = CachedChain(
        make_chain(retriever, Echo(asked=[])),
        cache,
        name="c",
        lineage=lineage,
        documents=documents,
    )

    def change() -> None:
        versions.append("2")
        foreign.replace(EDITED, NEW)

    check(lambda question: way.ask(chain, question), cache, change, NEW)


def test_control_without_a_name_of_its_documents_an_answer_lives_on(
    cache: TieredCache, lineage: Lineage
) -> None:
    foreign = Foreign(lineage)
    model = Echo(asked=[])
    chain = CachedChain(make_chain(foreign.retriever(), model), cache, name="c", lineage=lineage)
    before = _invoke(chain, "cars and buses")
    foreign.replace(EDITED, NEW)
    assert _invoke(chain, "cars and buses") == before


def test_a_retriever_alone_forgets_only_what_holds_the_document(
    cache: TieredCache, lineage: Lineage
) -> None:
    told = Told(lineage)
    retriever = CachedRetriever(told.retriever(), cache, lineage=lineage)
    before = {question: retriever.invoke(question) for question in QUESTIONS}
    told.replace(EDITED, NEW)
    for question, documents in before.items():
        misses = cache.stats.total("retrieval", "miss")
        again = retriever.invoke(question)
        held = EDITED in [each.id for each in documents]
        assert cache.stats.total("retrieval", "miss") - misses == held
        assert (again != documents) == held


def test_another_process_forgets_the_same(path: Path, cache: TieredCache, lineage: Lineage) -> None:
    """Two caches over one file, each with a memory of its own; the edit is told in one."""
    told = Told(lineage)
    with TieredCache(MemoryStore(), SqliteStore(path)) as there:
        chain = CachedChain(
            make_chain(told.retriever(), Echo(asked=[])), there, name="c", lineage=Lineage(there)
        )
        check(
            lambda question: _invoke(chain, question),
            there,
            lambda: told.replace(EDITED, NEW),
            NEW,
        )


def test_a_whole_index_that_is_cleared_kills_every_answer(
    cache: TieredCache, lineage: Lineage
) -> None:
    told = Told(lineage)
    chain = CachedChain(
        make_chain(told.retriever(), Echo(asked=[])), cache, name="c", lineage=lineage
    )
    for question in QUESTIONS:
        chain.invoke(question)
    told.store.index.clear()
    for question in QUESTIONS:
        assert " = " not in _invoke(chain, question)
    assert cache.stats.total("answer", "dead") == len(QUESTIONS)


def test_a_new_document_is_not_noticed(cache: TieredCache, lineage: Lineage) -> None:
    """The limit that the documentation tells, and the two ways around it."""
    told = Told(lineage)

    def make(name: str, **options: Any) -> CachedChain:
        inner = make_chain(told.retriever(), Echo(asked=[]))
        return CachedChain(inner, cache, name=name, lineage=lineage, **options)

    follows, versioned = make("one"), make("two", version=told.store)
    named_set = make("three", documents=lambda _: ["the handbook"])
    chains = (follows, versioned, named_set)
    for chain in chains:
        _invoke(chain, "cars and buses")
    told.store.add_texts(["cars and buses"], ids=["new"])
    assert ["new =" in _invoke(chain, "cars and buses") for chain in chains] == [False, True, False]
    lineage.changed("the handbook")
    assert ["new =" in _invoke(chain, "cars and buses") for chain in chains] == [False, True, True]


def test_an_old_answer_is_not_refreshed_into_a_dead_one(
    cache: TieredCache, lineage: Lineage
) -> None:
    """A stale answer may be served while it is made anew, but not one whose document changed."""
    told = Told(lineage)
    chain = CachedChain(
        make_chain(told.retriever(), Echo(asked=[])),
        cache,
        name="c",
        lineage=lineage,
        ttl=Freshness(ttl=0.01, stale=60),
    )
    _invoke(chain, "cars and buses")
    time.sleep(0.02)
    told.replace(EDITED, NEW)
    assert NEW in _invoke(chain, "cars and buses")


def test_who_shares_a_part_is_built_on_it_too(cache: TieredCache, lineage: Lineage) -> None:
    """Two answers are made at once from one part; only one of them computes it."""
    texts = {EDITED: "old"}
    begun, go_on = threading.Event(), threading.Event()

    @cached(cache, name="part", lineage=lineage)
    def part() -> str:
        used([EDITED])
        begun.set()
        assert go_on.wait(SECONDS)
        return texts[EDITED]

    chain = CachedChain(
        RunnableLambda(lambda question: f"{question}: {part()}"),
        cache,
        name="c",
        lineage=lineage,
    )
    first = threading.Thread(target=chain.invoke, args=("one",))
    second = threading.Thread(target=chain.invoke, args=("two",))
    first.start()
    assert begun.wait(SECONDS)
    second.start()
    time.sleep(0.1)  # it waits for the part now
    go_on.set()
    for each in (first, second):
        each.join(SECONDS)
    assert cache.stats.total("function", "shared") == 1
    texts[EDITED] = "new"
    lineage.changed(EDITED)
    assert chain.invoke("one") == "one: new"
    assert chain.invoke("two") == "two: new"


# -- LlamaIndex ----------------------------------------------------------------------------

EMBED = EmbedderEmbedding(HashingEmbedder(256))
_PARTS = ("apples pears", "cars buses", "trains trams", "ships boats")


def text_of(name: str, mark: str) -> str:
    """Return a text of four sentences, each of which becomes a node."""
    return " ".join(f"{mark} {name} about {part} {'filler ' * 12}{part}." for part in _PARTS)


class Nodes:
    """Documents of four nodes each in a ``VectorStoreIndex`` over FAISS, which tells."""

    def __init__(self, lineage: Lineage) -> None:
        vectors = FaissIndex()
        vectors.tell(lineage)
        self.index = VectorStoreIndex.from_documents(
            [self.document(name, "old") for name in ("north", "south", "west")],
            StorageContext.from_defaults(vector_store=FaissNodes(vectors)),
            embed_model=EMBED,
            transformations=[SentenceSplitter(chunk_size=32, chunk_overlap=0)],
        )
        assert vectors.count() >= 12

    @staticmethod
    def document(name: str, mark: str) -> LlamaDocument:
        return LlamaDocument(id_=name, text=text_of(name, mark))

    def delete_and_insert(self, name: str) -> None:
        self.index.delete_ref_doc(name)
        self.index.insert(self.document(name, "new"))

    def adelete_and_insert(self, name: str) -> None:
        async def edit() -> None:
            await self.index.adelete_ref_doc(name)
            await self.index.ainsert(self.document(name, "new"))

        asyncio.run(edit())

    def update(self, name: str) -> None:
        self.index.update_ref_doc(self.document(name, "new"))


def query(engine: Any, question: str) -> Any:
    return engine.query(question)


def aquery(engine: Any, question: str) -> Any:
    return asyncio.run(engine.aquery(question))


ABOUT = [f"{name} about {part}" for name in ("north", "south", "west") for part in _PARTS]


@pytest.mark.parametrize(
    ("ask", "edit"),
    [
        (query, "delete_and_insert"),
        (query, "update"),
        (aquery, "adelete_and_insert"),
    ],
)
@pytest.mark.parametrize("inner", ["plain", "cached", "cached with lineage"])
def test_an_edited_llama_document_kills_what_was_built_on_any_of_its_nodes(
    ask: Callable[[Any, str], Any], edit: str, inner: str, cache: TieredCache, lineage: Lineage
) -> None:
    nodes = Nodes(lineage)
    retriever: Any = nodes.index.as_retriever(similarity_top_k=1)
    if inner == "cached":
        retriever = CachedNodes(retriever, cache)
    elif inner == "cached with lineage":
        retriever = CachedNodes(retriever, cache, lineage=lineage)
    plain = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    engine = CachedQueryEngine(plain, cache, name="e", lineage=lineage)

    before = {question: ask(engine, question) for question in ABOUT}
    sources = {q: {each.node.ref_doc_id for each in a.source_nodes} for q, a in before.items()}
    held = {question for question in ABOUT if "south" in sources[question]}
    of_it = {a.source_nodes[0].node_id for q, a in before.items() if q in held}
    assert len(of_it) > 1, "several nodes of one document"
    assert 0 < len(held) < len(ABOUT)
    for question in ABOUT:
        assert ask(engine, question).response == before[question].response
    stats = cache.stats
    assert stats.total("answer", "hit") == stats.total("answer", "miss") == len(ABOUT)

    getattr(nodes, edit)("south")
    after = {question: ask(engine, question) for question in ABOUT}
    assert {q for q in ABOUT if after[q].response != before[q].response} == held
    assert stats.total("answer", "dead") == len(held)
    assert stats.total("answer", "miss") == len(ABOUT) + len(held)
    for question in held:
        for each in after[question].source_nodes:
            assert each.node.ref_doc_id != "south" or each.text.startswith("new")


def test_a_llama_retriever_alone_forgets_only_what_holds_the_document(
    cache: TieredCache, lineage: Lineage
) -> None:
    nodes = Nodes(lineage)
    retriever = CachedNodes(nodes.index.as_retriever(similarity_top_k=1), cache, lineage=lineage)
    before = {question: retriever.retrieve(question) for question in ABOUT}
    nodes.delete_and_insert("south")
    for question, found in before.items():
        misses = cache.stats.total("retrieval", "miss")
        retriever.retrieve(question)
        held = found[0].node.ref_doc_id == "south"
        assert cache.stats.total("retrieval", "miss") - misses == held


def test_a_llama_retriever_of_another_store_is_named_by_its_nodes(
    cache: TieredCache, lineage: Lineage
) -> None:
    """An answer of a query engine carries its nodes, so nothing need be noted."""
    index = VectorStoreIndex.from_documents(
        [Nodes.document("north", "old"), Nodes.document("south", "old")],
        embed_model=EMBED,
        transformations=[SentenceSplitter(chunk_size=32, chunk_overlap=0)],
    )
    engine = CachedQueryEngine(
        index.as_query_engine(llm=MockLLM(), similarity_top_k=1), cache, name="e", lineage=lineage
    )
    for question in ABOUT[:8]:
        engine.query(question)
    index.update_ref_doc(Nodes.document("south", "new"))
    lineage.changed("south")
    for question in ABOUT[:8]:
        assert "old south" not in str(engine.query(question)), "an answer was built on what is gone"
    assert 0 < cache.stats.total("answer", "dead") < 8
