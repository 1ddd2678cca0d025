"""What the contract of indexes does not cover: the schema, hostile values, loops and processes."""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta, timezone
from threading import Thread, main_thread
from traceback import format_exception
from typing import Any

import numpy as np
import pytest
from tests.backends.records import batch, query
from tests.services import free_port

from ragopt import _portal
from ragopt._portal import Portal, portal
from ragopt.errors import (
    BackendUnavailable,
    DimensionMismatch,
    InvalidInput,
    RagoptError,
    StorageError,
)
from ragopt.filters import (
    And,
    Documents,
    F,
    Ids,
    Not,
    Or,
    Where,
)
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.types import Embedding, EmbeddingBatch, RecordBatch

Make = Callable[..., PgvectorIndex]


def everything_said(error: BaseException) -> str:
    return "".join(format_exception(error))


class TestTheSchema:
    def test_eight_at_once_make_one_table(self, make: Make) -> None:
        indexes = [make(4) for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            versions = list(threads.map(PgvectorIndex.version, indexes))
        assert len(set(versions)) == 1

    def test_eight_first_adds_at_once_agree_on_the_dimension(self, make: Make) -> None:
        indexes = [make() for _ in range(8)]

        def add(number: int) -> str:
            try:
                indexes[number].add(batch([str(number)], np.ones((1, 4 + number % 2))))
                return "stored"
            except DimensionMismatch:
                return "refused"

        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(add, range(8)))
        assert sorted(results) == ["refused"] * 4 + ["stored"] * 4
        assert make().count() == 4

    def test_the_dimension_comes_from_the_table(self, make: Make) -> None:
        make(4).add(batch(["a"]))
        again = make()
        assert again.count() == 1
        assert again.dimension == 4

    def test_another_dimension_is_refused_at_the_first_use(self, make: Make, table: str) -> None:
        make(4).add(batch(["a"]))
        sentence = f"'{table}' holds vectors of dimension 4, not 5"
        for attempt in (
            make(5).count,
            make(5).version,
            lambda: make(5).search(query(1, 2, 3, 4, 5)),
            lambda: make(5).add(batch(["b"], np.ones((1, 5)))),
        ):
            with pytest.raises(DimensionMismatch, match=sentence):
                attempt()
        with pytest.raises(DimensionMismatch, match="record vectors have dimension 5"):
            make().add(batch(["b"], np.ones((1, 5))))
        with pytest.raises(DimensionMismatch, match="query vectors have dimension 5"):
            make().search(query(1, 2, 3, 4, 5))
        assert make().count() == 1

    def test_another_metric_is_refused_at_the_first_use(self, make: Make) -> None:
        make(4, metric="cosine").add(batch(["a"]))
        with pytest.raises(InvalidInput, match="made for the metric 'cosine', not for 'l2'"):
            make(4, metric="l2").count()

    def test_another_metric_is_refused_before_the_table_is_made(self, make: Make) -> None:
        make(metric="cosine").version()
        with pytest.raises(InvalidInput, match="made for the metric 'cosine', not for 'l2'"):
            make(4, metric="l2").count()
        index = make(metric="cosine")
        index.add(batch(["a"], np.ones((1, 5))))
        assert index.search(query(2, 2, 2, 2, 2))[0].score == pytest.approx(1)

    async def test_a_table_of_somebody_else_is_left_alone(
        self, make: Make, table: str, postgres_dsn: str
    ) -> None:
        import asyncpg

        connection = await asyncpg.connect(postgres_dsn)
        try:
            await connection.execute(f"CREATE TABLE {table} (id text, text text)")
            with pytest.raises(StorageError, match="was not made by ragopt"):
                make(4).count()
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0
        finally:
            await connection.close()

    def test_an_empty_index_without_a_dimension_answers(self, make: Make) -> None:
        index = make()
        assert index.count() == 0
        assert index.find() == []
        assert index.get(["a"]) == [None]
        assert index.search(query(1, 2)) == []
        assert index.delete(Ids(["a"])) == 0
        index.clear()
        assert index.version() == make().version()

    @pytest.mark.parametrize("name", ["", "1a", "a-b", 'a"b', "a b", "a" * 64, "ä", "a;b", "a\n"])
    def test_a_name_that_is_no_identifier_is_refused(self, postgres_dsn: str, name: str) -> None:
        with pytest.raises(InvalidInput, match="cannot be the name of a table"):
            PgvectorIndex(postgres_dsn, name)
        with pytest.raises(InvalidInput, match="cannot be the name of a table or a schema"):
            PgvectorIndex(postgres_dsn, "t", schema=name)

    def test_a_name_that_is_a_keyword_works(self, make: Make) -> None:
        index = make(4, table="Select")
        assert index.add(batch(["a"])) == ["a"]
        assert index.count() == 1
        index.clear()

    @pytest.mark.parametrize(
        "options",
        [
            {"m": 1},
            {"m": 101},
            {"ef_construction": 8},
            {"ef_search": 0},
            {"index": "ivf"},
            {"sparse_index": "ivf"},
        ],
    )
    def test_options_out_of_range_are_refused(
        self, postgres_dsn: str, options: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInput):
            PgvectorIndex(postgres_dsn, "t", **options)


class TestWhatIsStored:
    def test_a_failed_batch_leaves_nothing(self, make: Make) -> None:
        index = make()
        with pytest.raises(InvalidInput):
            index.add(batch(["a", "b\0"]))
        assert index.count() == 0
        assert index.dimension is None
        index.add(batch(["a"], metadatas=[{"v": 1}]))
        before = index.version()
        # The index over ids takes no entry of this size: the failure comes from the server,
        # after the first rows of the batch were merged.
        long = "".join(secrets.token_hex(8) for _ in range(2_000))
        with pytest.raises(StorageError, match="PostgreSQL refused a statement"):
            index.add(batch(["a", "new", long], metadatas=[{"v": 2}, {}, {}]))
        assert [record.id for record in index.find()] == ["a"]
        assert index.find()[0].metadata == {"v": 1}
        assert index.version() == before

    @pytest.mark.parametrize("bad", ["nul \0 inside", "half \ud800 pair"])
    def test_text_that_postgresql_cannot_hold_is_refused(self, make: Make, bad: str) -> None:
        index = make(4)
        one = EmbeddingBatch.of_dense(np.ones((1, 4)))
        records = [
            RecordBatch([bad], ["t"], one),
            RecordBatch(["a"], [bad], one),
            RecordBatch(["a"], ["t"], one, document_ids=[bad]),
            RecordBatch(["a"], ["t"], one, metadatas=[{"key": bad}]),
            RecordBatch(["a"], ["t"], one, metadatas=[{bad: 1}]),
            RecordBatch(["a"], ["t"], one, metadatas=[{"deep": [{"x": (bad,)}]}]),
            RecordBatch(["a"], ["t"], one, metadatas=[{"deep": {bad: 1}}]),
        ]
        for record in records:
            with pytest.raises(InvalidInput):
                index.add(record)
        with pytest.raises(InvalidInput, match="PostgreSQL cannot hold the text"):
            index.add(records[1])
        assert index.count() == 0
        assert index.get([bad]) == [None]
        assert index.count(Ids([bad])) == index.count(Documents([bad])) == 0
        assert index.count(F("key") == bad) == 0

    def test_metadata_comes_back_as_it_was(self, make: Make) -> None:
        metadata = {
            "text": "日本語 'quoted' \\u0000 \"x\" \n",
            "": "empty key",
            "$date": "not a tag",
            "int": 2**70,
            "whole": 1.0,
            "large": 1e23,
            "tiny": 5e-324,
            "zero": -0.0,
            "infinite": [math.inf, -math.inf],
            "bool": True,
            "none": None,
            "list": [1, "a", [2.5, None]],
            "tuple": (1, (2, [])),
            "bytes": b"\x00\xff",
            "date": date(2024, 2, 29),
            "naive": datetime(2024, 2, 29, 12, 30, 0, 5),
            "aware": datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=9))),
            "dict": {"a": {"b": 1}, "$date": "2024", "n": {1: "int key", "$x": date.min}},
        }
        index = make(4)
        index.add(batch(["a", "nan"], metadatas=[metadata, {"nan": math.nan}]))
        found, nan = index.get(["a", "nan"])
        assert found is not None
        assert found.metadata == metadata
        assert {key: type(value) for key, value in found.metadata.items()} == {
            key: type(value) for key, value in metadata.items()
        }
        assert math.copysign(1, found.metadata["zero"]) == -1
        assert found.metadata["aware"].utcoffset() == timedelta(hours=9)
        assert nan is not None
        assert math.isnan(nan.metadata["nan"])

    @pytest.mark.parametrize(
        "metadata",
        [
            {"source": "x", "page": 1},
            {"zz": 1, "é": 2, "b": 3, "aaa": 4, "": 5, "日": 6, "🙂": 7},
            {"b": [{"y": 1, "x": ({"q": 1, "p": {"n": 1, "m": date.min}},)}], "a": 2},
            {"$order": 1, "b": 2, "a": 3},
            {"$order": {"y": 1, "x": date.min}},
            {"b": {"$order": 1, "a": {"y": 1, "x": 2}}, "a": {"$date": 1, "z": 2, "c": 3}},
            {},
        ],
    )
    def test_keys_come_back_in_their_order(self, make: Make, metadata: dict[str, Any]) -> None:
        index = make(4)
        index.add(batch(["a"], metadatas=[metadata]))
        where = Ids(["a"]) & ~(F("b").text_match("ß", case=False))  # decided in Python
        for found in (*index.get(["a"]), *index.search(query(1, 1, 1, 1)), *index.find(where)):
            assert found is not None
            assert found.metadata == metadata
            assert repr(found.metadata) == repr(metadata)  # which tells the order

    async def test_their_order_is_kept_only_where_it_would_be_lost(
        self, make: Make, postgres_dsn: str, table: str
    ) -> None:
        import asyncpg

        async with make(4) as index:
            ordered = {"page": 1, "source": "x", "nested": {"a": 1, "b": 2}}
            ordered = {key: ordered[key] for key in ("page", "nested", "source")}
            await index.aadd(batch(["a", "b"], metadatas=[ordered, {"b": 1, "a": 2}]))
            connection = await asyncpg.connect(postgres_dsn)
            try:
                stored = await connection.fetch(f"SELECT metadata::text FROM {table} ORDER BY id")
                assert [json.loads(row[0]) for row in stored] == [
                    ordered,
                    {"b": 1, "a": 2, "$order": [[1, 0]]},
                ]
                # Somebody's own SQL leaves a record that can be read.
                await connection.execute(f"UPDATE {table} SET metadata = metadata || '{{\"c\":3}}'")
            finally:
                await connection.close()
            first, second = await index.aget(["a", "b"])
        assert first is not None
        assert second is not None
        assert first.metadata == {**ordered, "c": 3}
        assert second.metadata == {"a": 2, "b": 1, "c": 3}

    def test_hostile_ids_and_values_are_found_as_themselves(self, make: Make) -> None:
        hostile = [
            "'; DROP TABLE x; --", '"', "\\", "%", "_", "$1", "{}", "[]", "null", "NULL", "''",
            "a,b", "{a,b}", '{"a":1}', "\\N", "\t", "\n", " ", " a ", "\u202e", "🙂", "é",
            "e\u0301", "a\\", "${x}", "{0}", "%s", ":x", "E'\\x'", "$$", "/* */", "01234",
        ]  # fmt: skip
        index = make(4)
        index.add(
            batch(hostile, metadatas=[{"v": v, "l": [v]} for v in hostile], documents=[*hostile])
        )
        for value in hostile:
            for where in (
                Ids([value]), Documents([value]), F("v") == value, F("v").is_in([value]),
                F("l").contains(value), F("l").any([value]), F("l").all([value]),
            ):  # fmt: skip
                assert [record.id for record in index.find(where)] == [value]
            assert [hit.id for hit in index.search(query(1, 1, 1, 1), where=F("v") == value)] == [
                value
            ]
        assert index.count() == len(hostile)

    def test_hostile_filter_keys_are_no_sql(self, make: Make) -> None:
        key = "a.b/c:d -e"
        index = make(4)
        index.add(batch(["a", "b"], metadatas=[{key: 1}, {"a": {"b": 1}}]))
        assert [record.id for record in index.find(F(key) == 1)] == ["a"]
        with pytest.raises(InvalidInput):
            index.find(F("a' OR TRUE --") == 1)

    def test_a_python_function_is_refused_wherever_it_stands(self, make: Make) -> None:
        index = make(4)
        index.add(batch(["a"]))
        where = Where(lambda metadata: True)
        for nested in (where, Not(where), And((Ids(["a"]), where)), Or((where, Ids(["a"])))):
            for call in (index.find, index.count, index.delete):
                with pytest.raises(InvalidInput, match="works only in process"):
                    call(nested)
            with pytest.raises(InvalidInput, match="works only in process"):
                index.search(query(1, 1, 1, 1), where=nested)
        assert index.count() == 1

    def test_a_replaced_record_moves_to_the_end(self, make: Make) -> None:
        index = make(4)
        index.add(batch(["a", "b", "c"]))
        index.add(batch(["d", "a"]))
        assert [record.id for record in index.find()] == ["b", "c", "d", "a"]
        assert [record.id for record in index.find(limit=2)] == ["b", "c"]
        assert len(index.find(limit=2**63)) == 4  # more than the server can count to


class TestSearch:
    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    @pytest.mark.parametrize("index", ["hnsw", "none"])
    def test_scores_are_those_of_the_metric(self, make: Make, metric: str, index: str) -> None:
        vectors = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
        target = vectors[7] * 1.5
        one = make(8, metric=metric, index=index)
        one.add(batch([str(row) for row in range(50)], vectors))
        dots = vectors @ target
        expected = {
            "cosine": dots / np.linalg.norm(vectors, axis=1) / np.linalg.norm(target),
            "ip": dots,
            "l2": -np.linalg.norm(vectors - target, axis=1),
        }[metric]
        hits = one.search(Embedding(target), k=50, embeddings=True)
        assert [hit.id for hit in hits] == [str(row) for row in np.argsort(-expected)]
        np.testing.assert_allclose(
            [hit.score for hit in hits], np.sort(expected)[::-1], rtol=1e-5, atol=1e-5
        )
        assert all(0 <= hit.relevance <= 1 for hit in hits)
        first = hits[0].embedding
        assert first is not None
        assert first.dense is not None
        np.testing.assert_array_equal(first.dense, vectors[int(hits[0].id)])

    def test_k_come_back_through_a_narrow_filter(self, make: Make) -> None:
        rows = 3_000
        vectors = np.random.default_rng(5).normal(size=(rows, 8)).astype(np.float32)
        index = make(8, ef_search=10)
        names = {7: "Ä"}
        index.add(
            batch(
                [str(row) for row in range(rows)],
                vectors,
                [{"group": row % 300, "name": names.get(row % 300, "b")} for row in range(rows)],
            )
        )
        for where in (F("group") == 7, F("name").text_match("ä", case=False)):
            found = index.search(Embedding(-vectors[7]), k=10, where=where)
            assert sorted(int(hit.id) for hit in found) == list(range(7, rows, 300))
        assert len(index.search(Embedding(vectors[7]), k=2_000)) == 2_000

    def test_ties_are_in_the_order_of_insertion(self, make: Make) -> None:
        index = make(4)
        ids = [f"{(number * 7) % 20:02}" for number in range(20)]
        index.add(batch(ids, np.ones((20, 4))))
        assert [hit.id for hit in index.search(query(1, 1, 1, 1), k=20)] == ids
        assert [hit.id for hit in index.search(query(1, 1, 1, 1), k=5)] == ids[:5]

    def test_zero_vectors_have_cosine_zero(self, make: Make) -> None:
        index = make(4)
        index.add(batch(["with", "zero", "against"], [[1, 0, 0, 0], [0, 0, 0, 0], [-1, 0, 0, 0]]))
        for k in (3, 10):
            hits = index.search(query(1, 0, 0, 0), k=k)
            assert [hit.id for hit in hits] == ["with", "zero", "against"]
            assert [hit.score for hit in hits] == [1, 0, -1]
        hits = index.search(query(1, 0, 0, 0), k=2)  # which the other one would fill
        assert [hit.id for hit in hits] == ["with", "zero"]
        assert [hit.score for hit in index.search(query(0, 0, 0, 0))] == [0, 0, 0]

    def test_no_setting_of_a_search_stays_on_the_connection(self, make: Make) -> None:
        index = make(4, max_connections=1)
        index.add(batch(["a"]))
        index.search(query(1, 1, 1, 1))

        async def setting() -> str:
            async with index._postgres.connection() as connection:
                return str(await connection.fetchval("SHOW hnsw.iterative_scan"))

        assert portal().call(setting) == "off"

    def test_min_score_leaves_out_what_is_below(self, make: Make) -> None:
        index = make(4)
        index.add(batch(["a", "b"]))
        assert [hit.id for hit in index.search(query(1, 0.1, 0, 0), min_score=0.9)] == ["a"]


# -- loops, threads, processes -------------------------------------------------------------------


class TestLoopsThreadsAndProcesses:
    def test_event_loops_in_turn_and_at_once(self, make: Make) -> None:
        index = make(4)

        async def work(name: int) -> list[str | None]:
            try:
                await asyncio.gather(
                    *(index.aadd(batch([f"{name}:{number}"])) for number in range(5))
                )
                found = await index.aget([f"{name}:{number}" for number in range(5)])
                return [record.id if record else None for record in found]
            finally:
                await index.aclose()

        for name in range(3):
            assert asyncio.run(work(name)) == [f"{name}:{number}" for number in range(5)]
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda name: asyncio.run(work(name)), range(10, 14)))
        assert results == [[f"{name}:{number}" for number in range(5)] for name in range(10, 14)]
        assert index.count() == 35

    async def test_sync_and_async_calls_see_the_same_records(self, make: Make) -> None:
        index = make(4)
        index.add(batch(["sync"]))  # blocks the loop of this test, and still comes back
        await index.aadd(batch(["async"]))
        assert index.count() == await index.acount() == 2
        assert await asyncio.to_thread(index.version) == await index.aversion()
        hits = await index.asearch(query(1, 0, 0, 0))
        assert [hit.id for hit in hits] == [hit.id for hit in index.search(query(1, 0, 0, 0))]
        await index.aclose()
        await index.aclose()
        assert await index.acount() == 2  # it opens again
        await index.aclose()

    def test_writers_with_the_same_ids_in_another_order_do_not_deadlock(self, make: Make) -> None:
        index = make(4)
        ids = [str(number) for number in range(50)]
        index.add(batch(ids))

        def write(number: int) -> None:
            for _ in range(5):
                index.add(batch(ids if number % 2 else ids[::-1]))
                index.delete(Ids(ids[number : number + 3]))

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(write, range(4)))
        index.add(batch(ids))
        assert index.count() == 50

    def test_a_forked_child_has_a_portal_of_its_own(self, make: Make) -> None:
        index = make(4)
        index.add(batch(["parent"]))
        child = os.fork()
        if child == 0:
            try:
                for number in range(20):
                    index.add(batch([f"child {number}"]))
                os._exit(0 if index.count(Ids(["parent"])) == 1 else 2)
            except BaseException:
                os._exit(1)
        for _ in range(20):
            assert index.count(Ids(["parent"])) == 1
        assert os.waitpid(child, 0)[1] == 0
        assert index.count() == 21

    async def test_a_cancelled_search_leaves_the_pool_in_order(self, make: Make) -> None:
        index = make(4, max_connections=1)
        await index.aadd(batch(["a", "b"]))
        for pause in range(20):
            task = asyncio.create_task(index.asearch(query(1, 0, 0, 0), k=1))
            await asyncio.sleep(pause * 2e-4)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert [hit.id for hit in await index.asearch(query(0, 1, 0, 0), k=1)] == ["b"]
        await index.aclose()

    def test_a_cancelled_add_stores_nothing(self, make: Make) -> None:
        async def work() -> None:
            index = make(4)
            await index.aadd(batch(["there"]))
            rows = [str(number) for number in range(2_000)]
            for pause in (0.001, 0.005, 0.01, 0.02):
                task = asyncio.create_task(index.aadd(batch(rows)))
                await asyncio.sleep(pause)
                if task.cancel():
                    await asyncio.gather(task, return_exceptions=True)
                if task.cancelled():
                    assert await index.acount() == 1
                else:
                    await index.adelete(Ids(rows))
            await index.aclose()

        asyncio.run(work())


class TestThePortal:
    def test_a_sync_call_from_its_own_thread_is_refused(self, make: Make) -> None:
        index = make(4)

        async def reenter() -> int:
            return index.count()

        with pytest.raises(RagoptError, match="event-loop thread that carries it out"):
            portal().call(reenter)

    def test_results_and_errors_come_through(self) -> None:
        async def double(value: int, *, fail: bool = False) -> int:
            await asyncio.sleep(0)
            if fail:
                raise KeyError("told")
            return 2 * value

        assert portal().call(double, 21) == 42
        with pytest.raises(KeyError, match="told"):
            portal().call(double, 21, fail=True)

    def test_there_is_one_and_a_new_one_after_it_was_closed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_portal, "_process", _portal._Process())
        first = portal()
        assert portal() is first
        first.close()
        first.close()
        second = portal()
        assert second is not first
        second.close()

    def test_an_operation_that_ends_the_thread_ends_that_one_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_portal, "_process", _portal._Process())

        async def leave() -> None:
            raise SystemExit(3)

        async def stay() -> str:
            return "here"

        first = portal()
        with pytest.raises(SystemExit):
            first.call(leave)
        first._thread.join()
        assert portal().call(stay) == "here"
        portal().close()

        async def nothing() -> None: ...

        with pytest.raises(RagoptError, match="is closed"):
            first.call(nothing)

    def test_closing_cancels_what_runs(self) -> None:
        one, errors = Portal(), list[BaseException]()

        def wait() -> None:
            try:
                one.call(asyncio.sleep, 60)
            except RagoptError as error:
                errors.append(error)

        thread = Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        one.close()
        thread.join(5)
        assert "was closed" in str(errors[0])

    def test_an_interrupted_wait_cancels_the_operation(self) -> None:
        ended: list[str] = []

        async def wait() -> None:
            main = main_thread().ident or 0
            asyncio.get_running_loop().call_later(
                0.05, lambda: signal.pthread_kill(main, signal.SIGINT)
            )
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        one = Portal()
        # A shell starts what runs in the background with this signal ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                one.call(wait)
        finally:
            signal.signal(signal.SIGINT, before)
        one.close()
        assert ended == ["cancelled"]

    def test_an_inherited_one_refuses_in_the_child(self) -> None:
        inherited = portal()

        async def nothing() -> None: ...

        child = os.fork()
        if child == 0:
            try:
                inherited.call(nothing)
            except RagoptError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        inherited.call(nothing)


class TestAServerThatFails:
    async def test_a_refused_port(self) -> None:
        index = PgvectorIndex(f"postgresql://me:s3cret@127.0.0.1:{free_port()}/db", "docs")
        begin = time.perf_counter()
        with pytest.raises(BackendUnavailable, match="cannot be reached, for the table 'docs'"):
            index.count()
        with pytest.raises(BackendUnavailable) as caught:
            await index.acount()
        assert time.perf_counter() - begin < 2
        assert "s3cret" not in everything_said(caught.value) + repr(index)
        await index.aclose()

    async def test_a_hung_server_costs_one_timeout(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            index = PgvectorIndex(f"postgresql://me@127.0.0.1:{port}/db", "docs", timeout=0.3)
            for call in (asyncio.to_thread(index.count), index.acount()):
                begin = time.perf_counter()
                with pytest.raises(BackendUnavailable, match="did not answer in time"):
                    await call
                assert time.perf_counter() - begin < 1.5
            await index.aclose()

    def test_a_database_that_is_not_there(self, postgres_dsn: str) -> None:
        index = PgvectorIndex(postgres_dsn.replace("/postgres?", "/absent?"), "docs")
        with pytest.raises(StorageError, match='database "absent" does not exist'):
            index.count()
        index.close()

    async def test_a_database_without_the_extension(self, postgres_dsn: str) -> None:
        import asyncpg

        name = f"plain_{secrets.token_hex(4)}"
        connection = await asyncpg.connect(postgres_dsn)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
            index = PgvectorIndex(postgres_dsn.replace("/postgres?", f"/{name}?"), "docs")
            with pytest.raises(StorageError, match=r"lacks pgvector.*CREATE EXTENSION vector"):
                await index.acount()
            await index.aclose()
            await connection.execute(f"DROP DATABASE {name}")
        finally:
            await connection.close()

    @pytest.mark.parametrize(
        "dsn",
        [
            "mysql://me:s3cret@host/db",
            "postgresql://me:s3cret/x@host:1/db",
            "postgresql://me:s3cret@host:port/db",
            "postgresql+asyncpg://me:s3cret@host/db",
            "s3cret",
        ],
    )
    def test_a_dsn_that_cannot_be_read_is_not_quoted(self, dsn: str) -> None:
        with pytest.raises(InvalidInput, match="DSN of a PostgreSQL index cannot") as caught:
            PgvectorIndex(dsn, "docs")
        assert "s3cret" not in everything_said(caught.value)

    def test_a_dsn_with_a_wrong_option_is_not_quoted(self) -> None:
        index = PgvectorIndex("postgresql://me:s3cret@host/db?sslmode=s3cret", "docs")
        with pytest.raises(InvalidInput) as caught:
            index.count()
        assert "s3cret" not in everything_said(caught.value)
        index.close()

    async def test_a_connection_that_the_server_ended_is_replaced(
        self, make: Make, postgres_dsn: str
    ) -> None:
        import asyncpg

        index = make(4, max_connections=1)
        await index.aadd(batch(["a"]))
        admin = await asyncpg.connect(postgres_dsn)
        try:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        finally:
            await admin.close()
        await asyncio.sleep(0.1)
        assert await index.acount() == 1
        await index.aclose()


async def test_drop_leaves_nothing(postgres_dsn: str, table: str) -> None:
    index = PgvectorIndex(postgres_dsn, table, index="none")
    await index.adrop()  # a missing one is no error
    records = RecordBatch(["a"], ["a"], EmbeddingBatch.of_dense([[1.0, 0.0]]))
    await index.aadd(records)
    await index.adrop()
    other = PgvectorIndex(postgres_dsn, table, 3, metric="l2", index="none")
    assert await other.acount() == 0  # another shape fits: nothing is known of the old one
    await other.adrop()
    await index.aclose()
    await other.aclose()
