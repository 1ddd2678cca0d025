"""Aliases of Redis indexes: what they name, what they refuse, and switching under load."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from tests.backends.records import batch, query
from tests.backends.redis_shards import only, shards_of

from ragopt import (
    Embedding,
    EmbeddingBatch,
    Fusion,
    HashingEmbedder,
    RecordBatch,
    SparseVector,
    langchain,
    llama_index,
)
from ragopt._redis.servers import RedisServers
from ragopt._run import run
from ragopt._runtime import SYNC
from ragopt.errors import DimensionMismatch, InvalidInput, StorageError
from ragopt.filters import Ids
from ragopt.indexes._redis_schema import RedisSchema
from ragopt.indexes.base import BaseVectorIndex
from ragopt.indexes.redis import RedisIndex
from ragopt.indexes.redis_alias import RedisAlias, _followed
from ragopt.types import Hit, IndexStats, Metric

ROWS = 12
SPARSE = SparseVector(np.array([7]), np.ones(1, np.float32))
ASKED = Embedding(np.ones(4, np.float32), SPARSE, np.ones((1, 4), np.float32))
EVERY = Fusion({"dense": 1.0, "sparse": 1.0, "text": 1.0, "multi": 1.0})


class Place:
    """Indexes on one server or cluster, and an alias of a name of its own.

    Args:
        url: Where they are.
        name: The alias, and what the names of the indexes begin with.
    """

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.name = name
        self.made: list[RedisIndex] = []
        self.opened: list[RedisIndex] = []

    def index(self, which: str, dimension: int | None = None, **options: Any) -> RedisIndex:
        """Return an index by its own name."""
        name, options = f"{self.name}-{which}", {"kind": "flat", **options}
        self.made.append(index := RedisIndex(self.url, name, dimension, **options))
        return index

    def filled(self, which: str) -> RedisIndex:
        """Return one with records whose ids and texts say which it is."""
        index = self.index(which, text_search=True)
        index.add(records(which))
        return index

    def live(self, made: type[RedisAlias] = RedisAlias, **options: Any) -> RedisAlias:
        """Return the alias."""
        self.opened.append(index := made(self.url, self.name, **options))
        return index


@pytest.fixture(params=["server", "cluster"])
def place(request: pytest.FixtureRequest, name: str) -> Iterator[Place]:
    fixture = "redis_url" if request.param == "server" else "redis_cluster_url"
    place = Place(request.getfixturevalue(fixture), name)
    yield place
    for index in place.made:
        index.unalias(name)
        index.drop()
        index.close()
    for index in place.opened:
        index.close()


def records(which: str) -> RecordBatch:
    """Return records that are equally good in all indexes."""
    dense = np.ones((ROWS, 4), np.float32)
    ids = [f"{which}-{row}" for row in range(ROWS)]
    texts = [f"pear of {which}"] * ROWS
    return RecordBatch(ids, texts, EmbeddingBatch(dense, [SPARSE] * ROWS, [dense[:2]] * ROWS))


def which(ids: list[str]) -> str:
    """Return which index an answer with all records is of; an error if it is of two."""
    assert len(ids) == ROWS, ids
    ((one, number),) = Counter(id_.rpartition("-")[0] for id_ in ids).items()
    assert number == ROWS
    return one


def of(hits: list[Hit]) -> str:
    """Return which index hits are of, by their ids and by their texts."""
    one = which([hit.id for hit in hits])
    assert {hit.text for hit in hits} == {f"pear of {one}"}
    return one


def ask(index: RedisIndex, by: Any = EVERY) -> list[Hit]:
    return index.search(ASKED, k=ROWS, by=by, text="pear")


WAYS: dict[str, Callable[[RedisIndex], str]] = {
    **{
        by: lambda live, by=by: of(ask(live, by))  # type: ignore[misc]
        for by in ("dense", "sparse", "text", "multi")
    },
    "fusion": lambda live: of(ask(live)),
    "range": lambda live: of(live.search(ASKED, k=None, min_score=0.5)),
    "batch": lambda live: of(live.search_batch(EmbeddingBatch.of([ASKED] * 2), k=ROWS)[1]),
    "find": lambda live: which([record.id for record in live.find()]),
    "get": lambda live: next(
        each.id[:3] for each in live.get([f"{w}-0" for w in ("one", "two")]) if each
    ),
    "count": lambda live: "one" if live.count(Ids(["one-0"])) else "two",
    "model": lambda live: str(live.stats().model),
}


def schemas(index: RedisIndex) -> list[RedisSchema]:
    """Return what an index is on its servers."""
    on_cluster = index._servers.is_cluster
    return [each.schema for each in (shards_of(index) if on_cluster else [only(index)])]


class TestFollowing:
    @pytest.mark.parametrize("way", WAYS)
    def test_every_reading_goes_to_the_index_that_is_named(self, place: Place, way: str) -> None:
        one, two, live = place.filled("one"), place.filled("two"), place.live()
        for index, model in ((one, "one"), (two, "two")):
            index.check_model(model)
            index.alias(place.name)
            assert WAYS[way](live) == model
        one.alias(place.name)
        assert WAYS[way](live) == "one"

    async def test_async(self, place: Place) -> None:
        one, two, live = place.filled("one"), place.filled("two"), place.live()
        for index in (one, two):
            await index.aalias(place.name)
            assert of(await live.asearch(ASKED, k=ROWS, by=EVERY, text="pear")) == index._name[-3:]
            assert which([record.id for record in await live.afind()]) == index._name[-3:]
        await live.adelete(Ids(["one-0", "two-0"]))
        assert (one.count(), two.count()) == (ROWS, ROWS - 1)
        await one.aunalias(place.name)  # which has it no more
        await live.aclear()
        assert (await live.acount(), one.count(), two.count()) == (0, ROWS, 0)
        await two.aunalias(place.name)
        with pytest.raises(InvalidInput, match="has the alias"):
            await live.acount()
        for index in (one, two, live):
            await index.aclose()

    def test_writing_goes_to_the_index_that_is_named(self, place: Place) -> None:
        one, two, live = place.filled("one"), place.filled("two"), place.live()
        two.alias(place.name)
        live.add(RecordBatch(["more"], ["pear"], EmbeddingBatch.of_dense(np.ones((1, 4)))))
        live.delete(Ids(["two-0", "two-1", "one-0"]))
        assert (one.count(), two.count()) == (ROWS, ROWS - 1)
        live.clear()
        assert (one.count(), two.count()) == (ROWS, 0)

    def test_an_index_of_other_options(self, place: Place) -> None:
        """Who gave none of them follows to an index of any."""
        one, two = place.index("one"), place.index("two", metric="l2", precision="float16")
        three = place.index("three", kind="hnsw", metric="ip")
        live = place.live()
        assert (live.dimension, live.metric) == (None, Metric.COSINE)
        one.add(batch(["a"]))
        one.alias(place.name)
        assert live.search(query(2, 0, 0, 0))[0].score == 1
        assert (live.dimension, live.metric, live.stats().kind) == (4, Metric.COSINE, "flat")
        two.add(batch(["a"], np.ones((1, 3))))
        two.alias(place.name)
        assert live.search(query(1, 1, 3))[0].score == -2
        assert (live.dimension, live.metric) == (3, Metric.L2)
        with pytest.raises(DimensionMismatch):
            live.search(query(1, 0, 0, 0))
        three.add(batch(["a"], np.ones((1, 5))))
        three.alias(place.name)
        assert live.search(query(3, 0, 0, 0, 0))[0].score == 3
        assert live.stats() == IndexStats(1, 5, Metric.IP, "hnsw", None, live.stats().bytes)

    def test_an_index_that_is_made_anew_is_another_one(self, place: Place) -> None:
        one, live = place.index("one"), place.live()
        one.add(batch(["a"]))
        one.alias(place.name)
        assert (live.count(), live.dimension) == (1, 4)
        one.drop()
        one.add(batch(["b"], np.ones((1, 3))))
        assert [hit.id for hit in live.search(query(1, 1, 1))] == ["b"]
        assert live.dimension == 3

    def test_two_indexes_never_have_the_same_version(self, place: Place) -> None:
        one, two, live = place.index("one"), place.index("two"), place.live()
        versions = []
        for index in (one, two):
            index.add(batch(["a"]))
            index.alias(place.name)
            versions.append(live.version())
            assert live.version() == versions[-1]
        for index in (one, two):  # as if nothing had ever been changed in them
            for schema in schemas(index):
                run(schema.ask(SYNC, ("HDEL", schema.meta, "version")))
            index.alias(place.name)
            versions.append(live.version())
        assert len({*versions}) == 4
        assert len({version.partition(".")[2] for version in versions}) == 3  # the last two alike

    def test_listeners_are_told_of_what_the_alias_changes(self, place: Place) -> None:
        class Listener:
            def __init__(self) -> None:
                self.told: list[tuple[str, ...]] = []

            def changed(self, *documents: str) -> None:
                self.told.append(documents)

            async def achanged(self, *documents: str) -> None: ...
            def changed_everything(self) -> None:
                self.told.append(("everything",))

            async def achanged_everything(self) -> None: ...

        listener, live = Listener(), place.live()
        for index in (place.filled("one"), place.filled("two")):
            index.alias(place.name)
            live.count()
            if not listener.told:
                live.tell(listener)
            live.add(batch(["x"]))
        live.clear()
        assert listener.told == [("x",), ("x",), ("everything",)]

    def test_an_operation_takes_one_more_round_trip(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        send = RedisServers._send

        async def spy(self: RedisServers, io: Any, address: Any, commands: Any, *a: Any) -> Any:
            asked.append(commands)
            return await send(self, io, address, commands, *a)

        def trips(index: RedisIndex) -> int:
            asked.clear()
            index.search(ASKED, by="dense")
            return len(asked)

        one, live = place.filled("one"), place.live()
        one.alias(place.name)
        assert one.count() == live.count()
        monkeypatch.setattr(RedisServers, "_send", spy)
        plain = trips(one)
        assert not any("GET" in words for commands in asked for words in commands)
        two_servers = 1 if "cluster" in place.url else 0  # and the index may be on another one
        assert plain + 1 <= trips(live) <= plain + 1 + two_servers


class TestNames:
    def test_an_alias_that_nothing_has(self, place: Place) -> None:
        live = place.live()
        for operation in (live.count, live.version, live.stats, live.find, live.clear):
            with pytest.raises(InvalidInput, match=r"No Redis index at .* has the alias"):
                operation()
        with pytest.raises(InvalidInput, match="has the alias"):
            live.add(batch(["a"]))

    def test_an_index_that_is_not_there_gets_no_alias(self, place: Place) -> None:
        one, two, live = place.filled("one"), place.index("two"), place.live()
        one.alias(place.name)
        with pytest.raises(InvalidInput, match=r"There is no Redis index .*two' yet"):
            two.alias(place.name)
        assert live.count() == ROWS

    @pytest.mark.parametrize("bad", ["", "a b", "a:b", "{a}", "x" * 129])
    def test_what_is_no_name(self, place: Place, bad: str) -> None:
        one = place.filled("one")
        for operation in (one.alias, one.unalias):
            with pytest.raises(InvalidInput, match="cannot be the name"):
                operation(bad)
        with pytest.raises(InvalidInput, match="cannot be the name"):
            RedisAlias(place.url, bad)

    def test_only_the_index_that_has_an_alias_loses_it(self, place: Place) -> None:
        one, two, live = place.filled("one"), place.filled("two"), place.live()
        two.alias(place.name)
        one.unalias(place.name)
        assert WAYS["find"](live) == "two"
        two.unalias(place.name)
        two.unalias(place.name)
        with pytest.raises(InvalidInput, match="has the alias"):
            live.count()

    def test_an_alias_may_be_called_like_an_index(self, place: Place) -> None:
        same = RedisIndex(place.url, place.name, kind="flat")
        place.made.append(same)
        same.add(batch(["mine"]))
        one, live = place.filled("one"), place.live()
        one.alias(place.name)
        assert (live.count(), same.count()) == (ROWS, 1)
        same.drop()
        assert live.count() == ROWS
        one.unalias(place.name)
        same.add(batch(["mine"]))
        same.alias(place.name)
        assert [record.id for record in live.find()] == ["mine"]

    def test_the_index_of_an_alias_gets_another_alias(self, place: Place) -> None:
        one, two, live = place.filled("one"), place.filled("two"), place.live()
        one.alias(place.name)
        other = f"{place.name}-other"
        live.alias(other)
        two.alias(place.name)
        with RedisAlias(place.url, other) as also:
            assert (WAYS["find"](also), WAYS["find"](live)) == ("one", "two")
            also.unalias(other)
            with pytest.raises(InvalidInput, match="has the alias"):
                also.count()

    def test_prefixes_have_aliases_of_their_own(self, place: Place) -> None:
        place.filled("one").alias(place.name)
        with pytest.raises(InvalidInput, match="has the alias"):
            place.live(prefix="other:").count()


class TestWhatIsGone:
    def test_an_index_is_not_dropped_by_its_alias(self, place: Place) -> None:
        one, live = place.filled("one"), place.live()
        one.alias(place.name)
        with pytest.raises(InvalidInput, match="to be dropped by its alias"):
            live.drop()
        assert live.count() == ROWS

    def test_a_dropped_index_is_an_error_and_is_not_made(self, place: Place) -> None:
        one, live = place.filled("one"), place.live()
        one.alias(place.name)
        assert live.count() == ROWS
        one.drop()
        for index in (live, place.live()):
            for operation in (index.count, index.version, index.find, index.clear, index.stats):
                with pytest.raises(StorageError, match=r"which the alias .* is not there"):
                    operation()
            with pytest.raises(StorageError, match="is not there any more"):
                index.add(batch(["a"]))
        with pytest.raises(InvalidInput, match="There is no Redis index"):
            one.alias(place.name)


class TestModels:
    def test_a_model_is_compared_with_every_index_that_comes(self, place: Place) -> None:
        one, two, live = place.filled("one"), place.filled("two"), place.live()
        one.alias(place.name)
        live.check_model("old")
        two.check_model("new")
        two.alias(place.name)
        for _ in range(2):
            with pytest.raises(InvalidInput, match="made by the model 'new', not by 'old'"):
                ask(live)
        with pytest.raises(InvalidInput, match="made by the model 'new', not by 'old'"):
            live.check_model("old")
        live.check_model("new")  # by whoever now embeds with it
        assert WAYS["fusion"](live) == "two"
        live.check_model("renamed", replace=True)
        assert two.stats().model == "renamed"
        one.alias(place.name)
        with pytest.raises(InvalidInput, match="made by the model 'old', not by 'renamed'"):
            live.count()

    def test_langchain(self, place: Place) -> None:
        options: dict[str, Any] = {"redis_url": place.url, "by": "text", "kind": "flat"}
        embedder = HashingEmbedder()
        stores = [
            langchain.RedisVectorStore(embedder, index_name=f"{place.name}-{which}", **options)
            for which in ("one", "two")
        ]
        live = langchain.RedisVectorStore(embedder, index=place.live())
        for number, store in enumerate(stores):
            place.made.append(store.index)
            store.add_texts([f"pear {number}"])
            store.index.alias(place.name)
            for way in ("dense", "text"):
                (found,) = live.similarity_search("pear", by=way)
                assert found.page_content == f"pear {number}"
        live.add_texts(["more"])
        assert [store.index.count() for store in stores] == [1, 2]
        stores[0].index.check_model("another", replace=True)
        stores[0].index.alias(place.name)
        with pytest.raises(InvalidInput, match="made by the model 'another'"):
            live.similarity_search("pear")

    def test_llama_index(self, place: Place) -> None:
        live = llama_index.RedisVectorStore(index=place.live())
        one = place.filled("one")
        one.alias(place.name)
        live.add([TextNode(id_="node", text="apple", embedding=[1.0] * 4)])
        assert one.count(Ids(["node"])) == 1


class PerStep(RedisAlias):
    """A control: it asks what the alias names at each step, and not once for an operation."""

    _begun = BaseVectorIndex._begun
    _get = _followed("_get")
    _search = _followed("_search")
    _search_sparse = _followed("_search_sparse")
    _search_terms = _followed("_search_terms")
    _frequencies = _followed("_frequencies")


class TestSwitching:
    @pytest.mark.parametrize(("kind", "mixed"), [(RedisAlias, False), (PerStep, True)])
    def test_an_answer_is_of_the_index_on_which_it_began(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, kind: type[RedisAlias], mixed: bool
    ) -> None:
        """After each part of a search, the alias goes over to the other index."""
        indexes = [place.filled("one"), place.filled("two")]
        indexes[0].alias(place.name)
        live = place.live(made=kind)
        assert of(ask(live, "dense")) == "one"
        turns = iter(range(1, 100))

        async def leg(self: RedisIndex, *asked: Any) -> Any:
            found = await search(self, *asked)
            await indexes[next(turns) % 2]._give(asked[0], place.name)
            return found

        search = RedisIndex._search
        monkeypatch.setattr(RedisIndex, "_search", leg)
        hits = ask(live, Fusion({"dense": 1.0, "text": 1.0}))
        assert len({hit.text for hit in hits}) == 1 + mixed
        if not mixed:
            assert of(hits) == "one"
            assert of(ask(live, "text")) == "two"

    def test_threads_that_read_meanwhile(self, place: Place) -> None:
        indexes, live = [place.filled("one"), place.filled("two")], place.live()
        indexes[0].alias(place.name)
        ended = threading.Event()

        def read(number: int) -> Counter[str]:
            seen: Counter[str] = Counter()
            while not ended.is_set():
                for way in ("fusion", "text", "find"):
                    seen[WAYS[way](live)] += 1
            return seen

        with ThreadPoolExecutor(4) as threads:
            readers = [threads.submit(read, number) for number in range(4)]
            try:
                for turn in range(200):
                    indexes[turn % 2].alias(place.name)
                    time.sleep(0.002)
            finally:
                ended.set()
            for reader in readers:
                assert min(reader.result()[which] for which in ("one", "two")) > 3

    async def test_tasks_that_read_meanwhile(self, place: Place) -> None:
        indexes, live = [place.filled("one"), place.filled("two")], place.live()
        await indexes[0].aalias(place.name)
        ended = asyncio.Event()

        async def read() -> Counter[str]:
            seen: Counter[str] = Counter()
            while not ended.is_set():
                seen[of(await live.asearch(ASKED, k=ROWS, by=EVERY, text="pear"))] += 1
                seen[which([record.id for record in await live.afind()])] += 1
            return seen

        readers = [asyncio.create_task(read()) for _ in range(4)]
        try:
            for turn in range(200):
                await indexes[turn % 2].aalias(place.name)
                await asyncio.sleep(0.002)
        finally:
            ended.set()
            seen = await asyncio.gather(*readers)
        for each in seen:
            assert min(each[which] for which in ("one", "two")) > 3
        for index in (*indexes, live):
            await index.aclose()
