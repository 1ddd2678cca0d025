"""What the contracts do not cover of sparse vectors and texts in Redis: what is stored, others."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis
from tests.backends.records import batch
from tests.backends.redis_indexes import Make, redis_indexes
from tests.backends.redis_shards import only
from tests.services import redis_server

from ragopt import Embedding, EmbeddingBatch, MemoryIndex, RecordBatch, SparseVector
from ragopt.errors import BackendUnavailable, InvalidInput, StorageError
from ragopt.filters import F, Ids
from ragopt.indexes import _redis_heaviest
from ragopt.indexes._redis_postings import BLOCK, READ, postings, scores, terms_of, unpack_sparse
from ragopt.indexes.redis import RedisIndex


@pytest.fixture
def make(redis_url: str, name: str) -> Iterator[Make]:
    with redis_indexes(redis_url, name, kind="flat") as make:
        yield make


def of(weights: dict[int, float]) -> SparseVector:
    return SparseVector.from_dict(weights)


def some(number: int, seed: int = 0, words: int = 40) -> list[SparseVector]:
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 12, number)
    return [
        SparseVector(
            np.sort(random.choice(words, size, replace=False)),
            random.uniform(-0.2, 2, size).astype(np.float32),
        )
        for size in sizes
    ]


def records(ids: list[str], sparse: list[SparseVector], **columns: Any) -> RecordBatch:
    texts = columns.pop("texts", [f"text of {id_}" for id_ in ids])
    dense = np.eye(4, dtype=np.float32)[np.arange(len(ids)) % 4]
    return RecordBatch(ids, texts, EmbeddingBatch(dense, sparse), **columns)


def found(index: RedisIndex, query: SparseVector, **how: Any) -> list[str]:
    return [hit.id for hit in index.search(Embedding(sparse=query), by="sparse", **how)]


def read_texts(index: RedisIndex, text: str) -> list[str]:
    return [hit.id for hit in index.search(Embedding(), text=text, by="text")]


def assert_whole(client: Any, name: str) -> int:
    """Assert that the postings are those of the records; return how many blocks there are."""
    expected: dict[bytes, set[bytes]] = {}
    start = f"ragopt:{{{name}}}:r:"
    for key in client.scan_iter(f"{start}*", count=10_000):
        fields = client.hgetall(key)
        place = int(fields[b"seq"])
        held = {}
        if b"sparse" in fields:
            held["s"] = unpack_sparse(fields[b"sparse"])
        if b"terms" in fields:
            held["t"] = terms_of(fields[b"text"].decode())
            assert fields[b"terms"] == held["t"].indices.astype("<u4").tobytes()
        if held:
            expected[b"n%d" % place] = {key.removeprefix(start.encode())}
        for family, vector in held.items():
            words = postings(family, [place], [vector])  # type: ignore[arg-type]
            for block, entry in zip(words[::2], words[1::2], strict=True):
                expected.setdefault(block, set()).add(entry)
    stored = client.hgetall(f"ragopt:{{{name}}}:postings")
    cut = {
        block: {value}
        if block.startswith(b"n")
        else {value[at : at + 6] for at in range(0, len(value), 6)}
        for block, value in stored.items()
    }
    assert cut == expected
    assert all(len(value) == 6 * len(cut[b]) for b, value in stored.items() if b[:1] != b"n")
    return len(cut)


class TestWhatIsStored:
    def test_an_index_without_sparse_vectors_has_no_postings(
        self, make: Make, client: Any, name: str
    ) -> None:
        index = make()
        index.add(batch(["a", "b"]))
        index.add(batch(["a"]))
        assert not client.exists(f"ragopt:{{{name}}}:postings")
        assert {b"sparse", b"terms"}.isdisjoint(client.hkeys(f"ragopt:{{{name}}}:r:a"))
        assert found(index, of({1: 1.0})) == []

    def test_postings_are_those_of_the_records_after_any_changes(
        self, make: Make, client: Any, name: str
    ) -> None:
        random = np.random.default_rng(8)
        index, oracle = make(text_search=True), MemoryIndex()
        vectors = some(600)
        index.add(batch(["first"]))
        # Places go on a little before the edge of a block.
        client.hset(f"ragopt:{{{name}}}:meta", "seq", BLOCK - 150)
        oracle.add(batch(["first"]))
        for step in range(4):
            rows = random.choice(300, 60, replace=False)
            ids = [f"r{row}" for row in rows]
            texts = [f"word{row % 7} word{step}" for row in rows]
            part = records(ids, [vectors[row + 60 * (step % 5)] for row in rows], texts=texts)
            gone = Ids([f"r{row}" for row in random.choice(300, 25, replace=False)])
            index.add(part)
            oracle.add(part)
            assert index.delete(gone) == oracle.delete(gone)
            assert assert_whole(client, name) > 50
            for query in some(4, seed=step):
                hits = oracle.search(Embedding(sparse=query), k=20, by="sparse")
                assert found(index, query, k=20) == [hit.id for hit in hits]
        assert max(int(b.split(b":")[1]) for b in client.hkeys(
            f"ragopt:{{{name}}}:postings") if b":" in b) == 1  # fmt: skip
        index.delete(F("none").exists() | ~F("none").exists())
        assert client.exists(f"ragopt:{{{name}}}:postings") == 0

    def test_all_goes_with_the_index(self, make: Make, client: Any, name: str) -> None:
        index = make(text_search=True)
        for remove in (index.clear, index.drop):
            index.add(records(["a"], [of({1: 1.0})]))
            assert client.exists(f"ragopt:{{{name}}}:postings")
            remove()
            assert not client.exists(f"ragopt:{{{name}}}:postings")
            assert found(index, of({1: 1.0})) == []

    def test_vectors_of_any_size_come_back(self, make: Make) -> None:
        index = make()
        kept = [
            of({}), of({0: 0.0}), of({7: -1.5, 2**32 - 1: 1e-38}), of({3: 0.1, 5: 3e38}),
            of(dict.fromkeys(range(5_000), 0.25)),
        ]  # fmt: skip
        ids = [f"r{row}" for row in range(len(kept))]
        index.add(records(ids, kept))
        assert [r.embedding.sparse for r in index.find(embeddings=True)] == kept
        assert [r and r.embedding.sparse for r in index.get(ids, embeddings=True)] == kept
        assert found(index, of({2**32 - 1: 1.0})) == ["r2"]
        assert found(index, of({7: -2.0})) == ["r2"]

    def test_stats_count_the_postings(self, make: Make) -> None:
        index = make()
        index.add(batch(["a"]))
        before = index.stats().bytes
        index.add(records(["b"], [of(dict.fromkeys(range(5_000), 0.25))]))
        assert index.stats().bytes > before + 5_000 * 6

    def test_an_index_that_is_too_large_is_refused(self, make: Make) -> None:
        index = make()
        with pytest.raises(InvalidInput, match=r"has the index 4,294,967,296. Nothing was stored"):
            index.add(records(["a", "b"], [of({1: 1.0}), of({2**32: 1.0})]))
        assert index.count() == 0

    def test_hostile_ids(self, make: Make) -> None:
        hostile = ["*", "\0", "a\0b", "\\0", "n1", "s1:0", ":", "日本", "\ud800", "x" * 10_000]
        index = make(text_search=True)
        index.add(records(hostile, [of({1: 1.0})] * len(hostile), texts=["word"] * len(hostile)))
        assert found(index, of({1: 1.0})) == hostile
        assert read_texts(index, "word") == hostile
        assert index.delete(Ids(hostile)) == len(hostile)
        assert found(index, of({1: 1.0})) == read_texts(index, "word") == []


class TestFilters:
    @pytest.mark.parametrize("few", [2_000, 3], ids=["few match", "many match"])
    def test_k_come_back_through_a_filter(
        self, make: Make, few: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_redis_heaviest, "_FEW", few)
        index = make()
        rows = 1_500
        metadatas = [{"tenant": row % 100, "name": "ab"[row % 2]} for row in range(rows)]
        weights = [of({1: 1 + row / rows}) for row in range(rows)]
        index.add(records([f"r{row}" for row in range(rows)], weights, metadatas=metadatas))
        query = of({1: 1.0})
        best = [f"r{row}" for row in reversed(range(rows)) if row % 100 == 7]
        assert found(index, query, k=10, where=F("tenant") == 7) == best[:10]
        assert found(index, query, k=99, where=F("tenant") == 7) == best
        assert found(index, query, k=3, where=F("name").text_match("A", case=False)) == [
            "r1498", "r1496", "r1494",
        ]  # fmt: skip
        assert found(index, query, where=F("tenant") == 100) == []
        least = 1 + 1_407 / rows - 1e-5
        inside = found(index, query, k=None, min_score=least, where=F("tenant") == 7)
        assert inside == ["r1407"]

    async def test_large_postings_are_added_up_in_a_thread(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index, query = make(), of({1: 1.0, 2: 1.0})
        await index.aadd(records(["a", "b"], [of({1: 1.0}), of({1: 1.0, 2: 1.0})]))
        threads = []

        def watched(*arguments: Any) -> Any:
            threads.append(threading.current_thread() is threading.main_thread())
            return scores(*arguments)

        monkeypatch.setattr(_redis_heaviest, "scores", watched)
        for large in (_redis_heaviest._LARGE, 1):
            monkeypatch.setattr(_redis_heaviest, "_LARGE", large)
            hits = await index.asearch(Embedding(sparse=query), by="sparse")
            assert [hit.id for hit in hits] == ["b", "a"]
        assert threads == [True, False]
        await index.aclose()


class TestTogether:
    def test_what_is_replaced_while_it_is_read_is_found(self, make: Make) -> None:
        one, other = make(), make()
        one.add(records(["a", "b", "c"], [of({1: 3.0}), of({1: 2.0}), of({1: 1.0})]))
        ask, times = only(one).schema.ask, 0

        async def meanwhile(io: Any, *commands: Any) -> Any:
            nonlocal times
            if READ in commands[0] and times < 2:
                times += 1
                other.add(records(["a"], [of({1: 2.5})]))
            return await ask(io, *commands)

        only(one).schema.ask = meanwhile  # type: ignore[method-assign]
        for where in (None, F("none").exists() | ~F("none").exists()):
            times = 0
            hits = one.search(Embedding(sparse=of({1: 1.0})), k=2, where=where, by="sparse")
            assert [(hit.id, hit.score) for hit in hits] == [("a", 2.5), ("b", 2.0)]
            assert times == 2

    def test_records_that_somebody_else_removed_are_not_found(
        self, make: Make, client: Any, name: str
    ) -> None:
        index = make()
        index.add(records(["a", "b", "c"], [of({1: 3.0}), of({1: 2.0}), of({1: 1.0})]))
        key = f"ragopt:{{{name}}}:r:"
        client.delete(f"{key}a")
        client.hset(f"{key}b", "seq", 1_000)  # as an older ragopt would leave it
        assert found(index, of({1: 1.0})) == ["c"]

    def test_an_index_dropped_by_another_one(self, make: Make) -> None:
        one, other = make(text_search=True), make(text_search=True)
        one.add(records(["a"], [of({1: 1.0})], texts=["word"]))
        other.drop()
        assert found(one, of({1: 1.0})) == found(one, of({1: 1.0}), where=F("x") == 1) == []
        assert read_texts(one, "word") == []
        other.add(records(["b"], [of({1: 1.0})], texts=["word"]))
        assert found(one, of({1: 1.0})) == read_texts(one, "word") == ["b"]

    def test_an_index_dropped_by_hand(self, make: Make, client: Any, name: str) -> None:
        index = make()
        metadatas = [{"n": 1}, {"n": 2}]
        index.add(records(["a", "b"], [of({1: 1.0})] * 2, metadatas=metadatas))
        client.execute_command("FT.DROPINDEX", f"ragopt:{{{name}}}")
        assert found(index, of({1: 1.0}), where=F("n") > 1) == ["b"]

    def test_a_broken_key_is_an_error(self, make: Make, client: Any, name: str) -> None:
        index = make()
        index.add(records(["a"], [of({1: 1.0})]))
        client.set(f"ragopt:{{{name}}}:postings", "of somebody else")
        for where in (None, F("n") > 1):
            with pytest.raises(StorageError, match="WRONGTYPE"):
                found(index, of({1: 1.0}), where=where)

    def test_a_full_server_searches(self) -> None:
        with (
            redis_server() as url,
            RedisIndex(url, "docs", text_search=True) as index,
            redis.Redis.from_url(url) as client,
        ):
            index.add(records(["a"], [of({1: 1.0})], texts=["word"]))
            client.config_set("maxmemory", "1mb")
            with pytest.raises(StorageError, match="is full"):
                index.add(records(["a"], [of({2: 1.0})]))
            assert found(index, of({1: 1.0})) == read_texts(index, "word") == ["a"]
            assert found(index, of({2: 1.0})) == []

    def test_an_index_of_an_older_ragopt(self, make: Make, client: Any, name: str) -> None:
        index = make()
        index.add(batch(["old"]))
        schema = json.loads(client.hget(f"ragopt:{{{name}}}:meta", "schema"))
        assert "text" not in schema  # as it was written then
        again = make()
        again.add(records(["new", "old"], [of({1: 1.0}), of({1: 2.0})]))
        assert found(again, of({1: 1.0})) == ["old", "new"]
        assert found(index, of({1: 1.0})) == ["old", "new"]


class TestText:
    def test_an_index_that_was_made_without_it(self, make: Make, name: str) -> None:
        index = make()
        sentence = f"'{name}' has no text search.*text_search=True"
        with pytest.raises(InvalidInput, match=sentence):
            read_texts(index, "word")
        index.add(batch(["a"]))
        for each in (index, make(text_search=True)):
            with pytest.raises(InvalidInput, match=sentence):
                read_texts(each, "word")

    def test_whoever_writes_keeps_it_right(self, make: Make, client: Any, name: str) -> None:
        make(text_search=True).add(records(["a"], [of({1: 1.0})], texts=["one two"]))
        plain = make()
        plain.add(batch(["b"]))
        plain.add(RecordBatch(["a"], ["three"], EmbeddingBatch(np.eye(4, dtype=np.float32)[:1])))
        assert read_texts(plain, "one") == []
        assert read_texts(plain, "three") == ["a"]
        assert read_texts(make(), "text of b") == ["b"]
        plain.clear()
        plain.add(batch(["c"]))
        assert read_texts(plain, "text") == ["c"]
        assert_whole(client, name)

    def test_an_index_that_becomes_one_for_texts_in_the_middle_of_an_add(self, make: Make) -> None:
        one, other = make(), make(text_search=True)
        one.add(batch(["old"]))
        ask, dropped = only(one).schema.ask, False

        async def meanwhile(io: Any, *commands: Any) -> Any:
            nonlocal dropped
            if commands[0][0] == "MULTI" and not dropped:
                dropped = True
                other.drop()
                other.add(batch(["other"]))
            return await ask(io, *commands)

        only(one).schema.ask = meanwhile  # type: ignore[method-assign]
        one.add(batch([f"r{row}" for row in range(150)]))
        assert dropped
        assert len(other.search(Embedding(), k=200, text="text", by="text")) == 151


class TestTurns:
    async def test_searches_begin_when_it_is_their_turn(self, make: Make) -> None:
        index = make()
        await index.aadd(records(["a"], [of({1: 1.0})]))
        search, running, most = index._weigh, 0, 0

        async def watched(*arguments: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                return await search(*arguments)
            finally:
                running -= 1

        index._weigh = watched  # type: ignore[method-assign, assignment]
        query = Embedding(sparse=of({1: 1.0}))
        hits = await asyncio.gather(*(index.asearch(query, by="sparse") for _ in range(100)))
        assert all(hit.id == "a" for each in hits for hit in each)
        assert most == 16
        await index.aclose()

    async def test_a_turn_that_comes_too_late_is_an_error(self, make: Make) -> None:
        index = make(timeout=0.2, max_connections=1)
        await index.aadd(batch(["a"]))
        search = index._search

        async def slow(*_: Any) -> Any:
            await asyncio.sleep(0.3)
            return [[]]

        index._search = slow  # type: ignore[method-assign, assignment]
        query = Embedding(np.eye(4, dtype=np.float32)[0])
        first = [asyncio.create_task(index.asearch(query)) for _ in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(BackendUnavailable, match=r"could not begin within 0.2 s"):
            await index.asearch(query)
        assert await asyncio.gather(*first) == [[]] * 16
        index._search = search  # type: ignore[method-assign]
        assert [hit.id for hit in await index.asearch(query)] == ["a"]
        await index.aclose()


async def test_a_connection_that_is_in_use_while_all_are_closed_is_closed_later(make: Make) -> None:
    index = make()
    await index.aadd(batch(["a"]))
    searching = asyncio.create_task(index.asearch(Embedding(np.eye(4, dtype=np.float32)[0])))
    await asyncio.sleep(0)
    (connections,) = index._servers._known_of_loop.get().values()
    await index.aclose()
    assert not searching.done()
    assert [hit.id for hit in await searching] == ["a"]
    assert not connections._idle
