"""Transformations that compute each node once, in both colours and over real stores."""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import date
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.extractors import BaseExtractor, SummaryExtractor, TitleExtractor
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter, TokenTextSplitter
from llama_index.core.schema import (
    BaseNode,
    MediaResource,
    NodeRelationship,
    TextNode,
    TransformComponent,
)

from ragopt import HashingEmbedder, MemoryStore, RedisStore, SqliteStore, TieredCache
from ragopt.errors import InvalidInput, UnkeyableValue
from ragopt.keys import namespace_prefix
from ragopt.llama_index import CachedEmbedding, CachedTransformation, EmbedderEmbedding
from ragopt.protocols import KVStore
from ragopt.testing import FakeClock


@pytest.fixture(params=["memory", "sqlite", "redis", "tiers"])
async def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TieredCache]:
    layers: list[KVStore] = []
    if request.param in ("memory", "tiers"):
        layers.append(MemoryStore())
    if request.param in ("sqlite", "tiers"):
        layers.append(SqliteStore(tmp_path / "cache.db"))
    if request.param == "redis":
        layers.append(RedisStore(request.getfixturevalue("redis_url"), timeout=5))
        layers[0].clear(namespace_prefix("default"))
    made = TieredCache(*layers, strict=True)
    yield made
    await made.aclose()


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def apply(
    colour: str, transformation: TransformComponent, nodes: Sequence[BaseNode], **kwargs: Any
) -> list[BaseNode]:
    if colour == "sync":
        return list(transformation(nodes, **kwargs))
    return list(await transformation.acall(nodes, **kwargs))


class Splitter(SentenceSplitter):
    """Counts the documents that it splits."""

    def _parse_nodes(self, nodes: Sequence[BaseNode], *args: Any, **kwargs: Any) -> list[BaseNode]:
        SPLIT.extend(node.node_id for node in nodes)
        return super()._parse_nodes(nodes, *args, **kwargs)


class Embedding(MockEmbedding):
    """Counts the texts that it embeds, and the calls."""

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        EMBEDDED.append(texts)
        return [[float(len(text)), 1.0] for text in texts]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._get_text_embeddings(texts)


SPLIT: list[str] = []
EMBEDDED: list[list[str]] = []


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    SPLIT.clear()
    EMBEDDED.clear()


def documents(number: int = 50, **edited: str) -> list[BaseNode]:
    """Return documents of three sentences, which the splitter below makes three nodes of."""
    sentence = "This is sentence {} of document {}, about nothing in particular, as it says."
    return [
        Document(
            id_=f"d{i}",
            text=edited.get(f"d{i}") or " ".join(sentence.format(j, i) for j in range(3)),
            metadata={"n": i},
        )
        for i in range(number)
    ]


def pipeline(cache: KVStore) -> IngestionPipeline:
    return IngestionPipeline(
        transformations=[
            CachedTransformation(Splitter(chunk_size=30, chunk_overlap=0), cache),
            CachedTransformation(Embedding(embed_dim=2, embed_batch_size=2048), cache),
        ],
        disable_cache=True,
    )


async def test_an_edited_document_alone_is_computed_again(cache: TieredCache, colour: str) -> None:
    async def run(docs: list[BaseNode]) -> list[BaseNode]:
        SPLIT.clear()
        EMBEDDED.clear()
        if colour == "sync":
            return list(pipeline(cache).run(nodes=docs))
        return list(await pipeline(cache).arun(nodes=docs))

    first = await run(documents())
    assert len(SPLIT) == 50
    assert [len(texts) for texts in EMBEDDED] == [150]  # one call for all that are missing

    assert await run(documents()) == first
    assert not SPLIT
    assert not EMBEDDED

    edited = await run(documents(d7="Something else."))
    assert SPLIT == ["d7"]
    assert [len(texts) for texts in EMBEDDED] == [1]
    others = [node for node in first if node.ref_doc_id != "d7"]
    assert [node for node in edited if node.ref_doc_id != "d7"] == others
    order = [node.ref_doc_id for node in edited]
    assert order == sorted(order, key=lambda id_: int(str(id_)[1:]))
    assert cache.stats.total("chunk", "uncacheable") == 0


async def test_nodes_are_the_same_as_without_a_cache(cache: TieredCache, colour: str) -> None:
    def count(i: int, node: BaseNode) -> str:
        return f"{node.node_id}-{i}"

    splitter = SentenceSplitter(chunk_size=30, chunk_overlap=0, id_func=count)
    plain = await apply(colour, splitter, documents(5))
    assert len(plain) == 15
    for _ in range(2):
        assert await apply(colour, CachedTransformation(splitter, cache), documents(5)) == plain
    assert cache.stats.total("chunk", "hit") == 5
    embedding = Embedding(embed_dim=2)
    cached = CachedTransformation(embedding, cache)
    embedded = await apply(colour, embedding, [node.model_copy(deep=True) for node in plain])
    for _ in range(2):
        assert await apply(colour, cached, plain) == embedded
    assert all(node.embedding is None for node in plain)  # what was passed in is as it was


async def test_the_id_belongs_to_the_key(cache: TieredCache, colour: str) -> None:
    splitter = CachedTransformation(Splitter(), cache)
    one, other = Document(id_="one", text="Same."), Document(id_="other", text="Same.")
    found = await apply(colour, splitter, [one, other])
    assert await apply(colour, splitter, [other, one]) == found[::-1]
    assert [node.ref_doc_id for node in found] == ["one", "other"]
    assert len({node.node_id for node in found}) == 2
    assert SPLIT == ["one", "other"]


def changed(**fields: Any) -> Document:
    return Document(**{"id_": "d", "text": "Some text.", "metadata": {"n": 1}, **fields})


@pytest.mark.parametrize(
    "other",
    [
        changed(text="Some text"),
        changed(metadata={"n": 1.0}),
        changed(metadata={"n": True}),
        changed(metadata={"n": "1"}),
        changed(excluded_embed_metadata_keys=["n"]),
        changed(metadata_template="{value}"),
        changed(embedding=[1.0]),
        TextNode(id_="d", text="Some text.", metadata={"n": 1}),
    ],
)
def test_whatever_differs_is_another_node(other: BaseNode) -> None:
    cached = CachedTransformation(Splitter())
    cached([changed()])
    cached([other])
    assert SPLIT == ["d", "d"]
    cached([changed(), other])
    assert SPLIT == ["d", "d"]


def words(text: str) -> list[str]:
    return text.split()


def scaled(factor: int) -> Callable[[str], list[str]]:
    return lambda text: text.split() * factor


class Keyed(MockEmbedding):
    api_key: str = ""
    default_headers: dict[str, str] | None = None
    additional_kwargs: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it


APART: list[Callable[[], TransformComponent]] = [
    SentenceSplitter,
    lambda: SentenceSplitter(chunk_size=512),
    lambda: SentenceSplitter(chunk_overlap=100),
    lambda: SentenceSplitter(tokenizer=words),
    lambda: SentenceSplitter(tokenizer=list),
    lambda: SentenceSplitter(tokenizer=scaled(2)),
    lambda: SentenceSplitter(tokenizer=scaled(3)),
    lambda: SentenceSplitter(tokenizer=lambda text: text.split(",")),
    lambda: SentenceSplitter(tokenizer=lambda text: text.split(";")),
    lambda: SentenceSplitter(id_func=lambda i, node: f"{node.node_id}{i}"),
    TokenTextSplitter,
    lambda: MockEmbedding(embed_dim=2),
    lambda: MockEmbedding(embed_dim=3),
    lambda: MockEmbedding(embed_dim=2, model_name="other"),
    lambda: Keyed(embed_dim=2),
    lambda: Keyed(embed_dim=2, additional_kwargs={"dimensions": 2}),
    lambda: EmbedderEmbedding(HashingEmbedder(64)),
    lambda: EmbedderEmbedding(HashingEmbedder(128)),
    lambda: CachedEmbedding(HashingEmbedder(32)),
    lambda: TitleExtractor(llm=MockLLM()),
    lambda: TitleExtractor(llm=MockLLM(max_tokens=5)),
    lambda: TitleExtractor(llm=MockLLM(), nodes=2),
    lambda: SummaryExtractor(llm=MockLLM()),
]


def test_other_settings_never_share() -> None:
    prints = [CachedTransformation(make()).fingerprint for make in APART]
    assert len(set(prints)) == len(prints)
    assert [CachedTransformation(make()).fingerprint for make in APART] == prints


def test_what_changes_no_result_changes_no_key() -> None:
    def of(**fields: Any) -> str:
        return CachedTransformation(Keyed(embed_dim=2, **fields)).fingerprint

    assert len({of(), of(embed_batch_size=3), of(num_workers=2)}) == 1


def test_no_secret_is_in_a_key(tmp_path: Path) -> None:
    secret = "sk-0123456789"

    def of(value: str, **fields: Any) -> str:
        model = Keyed(
            embed_dim=2,
            api_key=value,
            default_headers={"Authorization": value},
            additional_kwargs={"api_key": value, "x": {"password": value}},
            **fields,
        )
        cached = CachedTransformation(model, SqliteStore(tmp_path / "cache.db"))
        cached([TextNode(id_="a", text="text")])
        assert secret not in cached.to_json()
        assert secret not in repr(cached)
        cached.cache.close()
        return cached.fingerprint

    assert of(secret) == of("another")  # so a new password finds the old entries
    assert not any(secret.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_settings_without_a_key_ask_for_a_name() -> None:
    class Odd(MockEmbedding):
        table: Any = None

    with pytest.raises(UnkeyableValue, match='Pass name="'):
        CachedTransformation(Odd(embed_dim=2, table=object()))
    made = [
        CachedTransformation(Odd(embed_dim=2, table=object()), name=name).fingerprint
        for name in ("one", "two", "one")
    ]
    assert made[0] == made[2] != made[1]


async def test_a_node_without_a_key_is_computed_every_time(cache: TieredCache, colour: str) -> None:
    class Own(TextNode):
        """A class that stored data cannot bring back."""

    image = Document(id_="i", image_resource=MediaResource(data=b"image", mimetype="image/png"))
    odd = [
        TextNode(id_="object", text="a", metadata={"n": object()}),
        Own(id_="own", text="c"),
        image,  # LlamaIndex leaves its bytes out of what it serialises
    ]
    good = TextNode(id_="good", text="good", metadata={"n": b"\xff"})
    cached = CachedTransformation(Embedding(embed_dim=2), cache)
    for turn in (1, 2):
        found = await apply(colour, cached, [odd[0], good, *odd[1:]])
        assert [node.node_id for node in found] == ["object", "good", "own", "i"]
        assert all(node.embedding is not None for node in found)
        assert cache.stats.total("chunk", "uncacheable") == 3 * turn
    assert found[0].metadata["n"] is not None
    assert found[1].metadata["n"] == b"\xff"
    assert [len(texts) for texts in EMBEDDED] == [4, 3]


async def test_dates_and_related_nodes_come_back(cache: TieredCache, colour: str) -> None:
    day = date(2026, 11, 1)
    cached = CachedTransformation(SentenceSplitter(chunk_size=30, chunk_overlap=0), cache)
    source = documents(1)[0]
    source.metadata["day"] = day
    first = await apply(colour, cached, [source])
    second = await apply(colour, cached, [source])
    assert first == second
    assert second[1].metadata["day"] == day
    assert second[1].source_node is not None
    assert second[1].source_node.metadata["day"] == day
    assert NodeRelationship.PREVIOUS in second[1].relationships
    assert cache.stats.total("chunk", "hit") == 1


async def test_hits_are_the_callers_own(colour: str) -> None:
    cached = CachedTransformation(Embedding(embed_dim=2))
    node = TextNode(id_="a", text="text", metadata={"tags": ["x"]})
    for _ in range(3):
        (found,) = await apply(colour, cached, [node])
        assert found.metadata == {"tags": ["x"]}
        found.metadata["tags"].append("y")
    assert node.metadata == {"tags": ["x"]}


class Neighbours(BaseExtractor):
    """Writes down how many nodes were looked at together."""

    async def aextract(self, nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
        ids = [node.node_id for node in nodes]
        SPLIT.extend(ids)
        return [{"seen": ids} for _ in nodes]


def sentences() -> list[BaseNode]:
    def name(i: int, node: BaseNode) -> str:
        return f"{node.node_id}-{i}"

    splitter = SentenceSplitter(chunk_size=30, chunk_overlap=0, id_func=name)
    return list(splitter(documents(2)))


async def test_an_extractor_sees_the_nodes_of_a_document(colour: str) -> None:
    nodes = sentences()
    cached = CachedTransformation(Neighbours(show_progress=False))
    for _ in range(2):
        found = await apply(colour, cached, nodes)
        assert [node.metadata["seen"] for node in found[2:4]] == [
            ["d0-0", "d0-1", "d0-2"],
            ["d1-0", "d1-1", "d1-2"],
        ]
    assert len(SPLIT) == 6
    assert all("seen" not in node.metadata for node in nodes)
    alone = CachedTransformation(Neighbours(show_progress=False), unit="node")
    assert [node.metadata["seen"] for node in await apply(colour, alone, nodes)][:1] == [["d0-0"]]
    together = CachedTransformation(Neighbours(show_progress=False), unit="batch")
    found = await apply(colour, together, nodes)
    assert len(found[0].metadata["seen"]) == 6


async def test_more_or_fewer_nodes_than_asked_for_are_refused_in_a_batch(colour: str) -> None:
    cached = CachedTransformation(Splitter(chunk_size=30, chunk_overlap=0), unit="batch")
    with pytest.raises(InvalidInput, match="made 6 nodes of 2"):
        await apply(colour, cached, documents(2))
    assert cached.cache.count() == 0
    with pytest.raises(InvalidInput, match="unit 'nodes'"):
        CachedTransformation(Splitter(), unit="nodes")  # type: ignore[arg-type]


async def test_a_time_to_live_and_clear(colour: str) -> None:
    clock = FakeClock()
    cache = TieredCache(MemoryStore(clock=clock), clock=clock)
    cached = CachedTransformation(Splitter(), cache)
    await apply(colour, cached, documents(1))
    clock.now += 86_399
    await apply(colour, cached, documents(1))
    assert len(SPLIT) == 1
    clock.now += 2
    await apply(colour, cached, documents(1))
    assert len(SPLIT) == 2
    await cached.aclear()
    await apply(colour, cached, documents(1))
    assert len(SPLIT) == 3


async def test_work_that_breaks_off_goes_on_where_it_stopped(colour: str) -> None:
    class Breaking(Splitter):
        def _parse_nodes(self, nodes: Any, *args: Any, **kwargs: Any) -> list[BaseNode]:
            if nodes[0].node_id == "d7" and len(SPLIT) < 10:
                SPLIT.append("broken")
                raise RuntimeError("the machine stopped")
            return super()._parse_nodes(nodes, *args, **kwargs)

    cached = CachedTransformation(Breaking(), batch_size=2)
    with pytest.raises(RuntimeError):
        await apply(colour, cached, documents(10))
    assert ",".join(SPLIT) == "d0,d1,d2,d3,d4,d5,d6,broken"
    SPLIT[:] = ["x"] * 10
    assert len(await apply(colour, cached, documents(10))) == 10
    assert SPLIT[10:] == ["d6", "d7", "d8", "d9"]


async def test_arguments_belong_to_the_key_except_the_progress_bar(colour: str) -> None:
    class Upper(TransformComponent):
        def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
            SPLIT.append(str(kwargs.get("suffix")))
            return [TextNode(id_="x", text=f"{nodes[0].get_content()}{kwargs.get('suffix')}")]

    cached = CachedTransformation(Upper())
    for suffix in ("a", "b", "a"):
        (made,) = await apply(colour, cached, documents(1), suffix=suffix)
        assert made.get_content().endswith(suffix)
    await apply(colour, cached, documents(1), suffix="a", show_progress=True)
    assert SPLIT == ["a", "b"]


def test_the_component_names_itself_and_stays_in_its_process() -> None:
    import pickle

    cached = CachedTransformation(Splitter())
    assert cached.to_dict() == {
        "fingerprint": cached.fingerprint,
        "class_name": "CachedTransformation",
    }
    with pytest.raises(InvalidInput, match="without num_workers"):
        pickle.dumps(cached)


async def test_a_splitter_leaves_the_event_loop_alone(colour: str) -> None:
    threads = []

    class Watched(Splitter):
        def _parse_nodes(self, nodes: Any, *args: Any, **kwargs: Any) -> list[BaseNode]:
            threads.append(current_thread())
            return super()._parse_nodes(nodes, *args, **kwargs)

    await apply(colour, CachedTransformation(Watched()), documents(1))
    assert [thread is main_thread() for thread in threads] == [colour == "sync"]


async def test_nothing_is_nothing(colour: str) -> None:
    assert await apply(colour, CachedTransformation(Splitter()), []) == []
    assert await apply(colour, CachedTransformation(Embedding(embed_dim=2)), []) == []
    assert not SPLIT
    assert not EMBEDDED
