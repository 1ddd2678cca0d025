"""A text splitter that splits each document once."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_text_splitters import (
    CharacterTextSplitter,
    MarkdownTextSplitter,
    RecursiveCharacterTextSplitter,
)

from ragopt import MemoryStore, SqliteStore, TieredCache
from ragopt.errors import UnkeyableValue
from ragopt.langchain import CachedSplitter


class Splitter(BaseDocumentTransformer):
    """Splits at spaces, and counts."""

    def __init__(self, separator: str = " ") -> None:
        self.separator = separator

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        SPLIT.extend(document.page_content for document in documents)
        chunks = []
        for document in documents:
            document.metadata["seen"] = True  # some write into what they are given
            for part in document.page_content.split(self.separator):
                chunks.append(Document(part, metadata={**document.metadata, **kwargs}))
        return chunks

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Any:
        return self.transform_documents(documents, **kwargs)


SPLIT: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    SPLIT.clear()


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def split(
    colour: str, splitter: CachedSplitter, documents: list[Document], **kwargs: Any
) -> list[Document]:
    if colour == "sync":
        return splitter.transform_documents(documents, **kwargs)
    return await splitter.atransform_documents(documents, **kwargs)


def documents(**edited: str) -> list[Document]:
    return [
        Document(edited.get(f"d{i}", f"one {i} two"), id=f"d{i}", metadata={"n": i, "tags": ["x"]})
        for i in range(50)
    ]


async def test_an_edited_document_alone_is_split_again(colour: str) -> None:
    given = documents()
    splitter = CachedSplitter(Splitter())
    first = await split(colour, splitter, given)
    assert len(SPLIT) == 50
    assert [chunk.page_content for chunk in first[3:6]] == ["one", "1", "two"]
    assert given == documents()  # what was passed in is as it was
    assert await split(colour, splitter, documents()) == first
    assert len(SPLIT) == 50
    edited = await split(colour, splitter, documents(d7="else"))
    assert SPLIT[50:] == ["else"]
    assert edited == [*first[:21], Document("else", metadata=edited[21].metadata), *first[24:]]
    assert splitter.cache.stats.total("chunk", "hit") == 99


async def test_hits_are_the_callers_own(colour: str) -> None:
    splitter = CachedSplitter(Splitter())
    for _ in range(3):
        chunks = await split(colour, splitter, documents()[:1])
        assert chunks[0].metadata["tags"] == ["x"]
        chunks[0].metadata["tags"].append("y")
    assert len(SPLIT) == 1


@pytest.mark.parametrize(
    "other",
    [
        Document("a b"),
        Document("a b", id="2", metadata={"n": 1}),
        Document("a b", id="1", metadata={"n": 1.0}),
        Document("a b ", id="1", metadata={"n": 1}),
    ],
)
def test_whatever_differs_is_another_document(other: Document) -> None:
    splitter = CachedSplitter(Splitter())
    one = Document("a b", id="1", metadata={"n": 1})
    for _ in range(2):
        splitter.transform_documents([one])
        splitter.transform_documents([other])
    assert len(SPLIT) == 2


async def test_arguments_belong_to_the_key(colour: str) -> None:
    splitter = CachedSplitter(Splitter())
    for lang in ("en", "ja", "en"):
        chunks = await split(colour, splitter, documents()[:1], lang=lang)
        assert chunks[0].metadata["lang"] == lang
    assert len(SPLIT) == 2


async def test_what_cannot_be_stored_is_split_every_time(colour: str) -> None:
    class Own(Document):
        """A class that stored data cannot bring back."""

    odd = [Document("a b", metadata={"n": object()}), Own(page_content="c d"), Document("e f")]
    splitter = CachedSplitter(Splitter())
    for turn in (1, 2):
        assert len(await split(colour, splitter, odd)) == 6
        assert splitter.cache.stats.total("chunk", "uncacheable") == 2 * turn
    assert SPLIT == ["a b", "c d", "e f", "a b", "c d"]


def test_other_settings_never_share() -> None:
    cache = TieredCache(MemoryStore())
    document = Document("one. two, three.\n\n# four five", id="x")
    splitters: list[BaseDocumentTransformer] = [
        Splitter(),
        Splitter(","),
        CharacterTextSplitter(chunk_size=9, chunk_overlap=0, separator=" "),
        CharacterTextSplitter(chunk_size=9, chunk_overlap=0, separator=","),
        CharacterTextSplitter(chunk_size=9, chunk_overlap=0, separator=",", keep_separator=True),
        RecursiveCharacterTextSplitter(chunk_size=9, chunk_overlap=0),
        RecursiveCharacterTextSplitter(chunk_size=9, chunk_overlap=3),
        RecursiveCharacterTextSplitter(chunk_size=9, chunk_overlap=0, add_start_index=True),
        RecursiveCharacterTextSplitter(
            chunk_size=9, chunk_overlap=0, length_function=lambda text: 2 * len(text)
        ),
        RecursiveCharacterTextSplitter(
            chunk_size=9, chunk_overlap=0, length_function=lambda text: 3 * len(text)
        ),
        MarkdownTextSplitter(chunk_size=9, chunk_overlap=0),
    ]
    for splitter in splitters:
        cached = CachedSplitter(splitter, cache)
        expected = splitter.transform_documents([document.model_copy(deep=True)])
        for _ in range(2):
            assert cached.split_documents(iter([document])) == list(expected)
    assert cache.count() == len(splitters)


def test_settings_without_a_key_ask_for_a_name() -> None:
    odd = Splitter()
    odd.separator = object()  # type: ignore[assignment]
    with pytest.raises(UnkeyableValue, match='Pass name="'):
        CachedSplitter(odd)
    CachedSplitter(odd, name="by space")


async def test_a_store_on_disk_serves_another_process(tmp_path: Any, colour: str) -> None:
    for _ in range(2):
        cache = SqliteStore(tmp_path / "cache.db")
        assert len(await split(colour, CachedSplitter(Splitter(), cache), documents())) == 150
        cache.close()
    assert len(SPLIT) == 50


def test_an_entry_of_another_shape_is_split_again() -> None:
    store = MemoryStore()
    splitter = CachedSplitter(Splitter(), store)
    splitter.transform_documents(documents()[:1])
    (key,) = store.keys()
    store.set_many({key: b"other"})
    assert len(splitter.transform_documents(documents()[:1])) == 3
    assert splitter.cache.stats.total("chunk", "corrupt") == 1
    assert len(SPLIT) == 2
    splitter.clear()
    assert re.match(rb"ragopt:default:-:chunk:", key)
    assert store.count() == 0
