"""The terms of texts in PostgreSQL: counted through every change, and given to older tables."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.backends.test_pgvector_connections import statements

from ragopt import Embedding, EmbeddingBatch, MemoryIndex, RecordBatch
from ragopt.errors import InvalidInput
from ragopt.filters import F, Ids
from ragopt.indexes import _pgtext
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.text import term_vector

_NOTHING = Embedding()


@pytest.fixture
def make(postgres_dsn: str, sql: Any, table: str) -> Iterator[Callable[..., PgvectorIndex]]:
    """Make indexes on one table of a schema of its own."""
    schema, made = f"s_{secrets.token_hex(6)}", list[PgvectorIndex]()
    sql(f"CREATE SCHEMA {schema}")

    def make(name: str = table, **options: Any) -> PgvectorIndex:
        made.append(PgvectorIndex(postgres_dsn, name, schema=schema, index="none", **options))
        return made[-1]

    yield make
    for index in made:
        index.close()
    sql(f"DROP SCHEMA {schema} CASCADE")


def records(texts: dict[str, str], **metadata: Any) -> RecordBatch:
    vectors = EmbeddingBatch(np.ones((len(texts), 2), dtype=np.float32))
    return RecordBatch(list(texts), list(texts.values()), vectors, [metadata] * len(texts))


def found(index: PgvectorIndex, text: str, **options: Any) -> list[str]:
    return [hit.id for hit in index.search(_NOTHING, by="text", text=text, **options)]


def counts(sql: Any, index: PgvectorIndex) -> dict[int, int]:
    """Return what is kept as the numbers of records of each term; -1 stands for all."""
    meta = index._schema.meta.replace("ragopt_index", "ragopt_terms")
    rows = sql(f"SELECT term, records FROM {meta} WHERE name = '{index._schema.name}'")
    return {row["term"]: row["records"] for row in rows if row["records"]}


def counted(index: PgvectorIndex) -> dict[int, int]:
    """Count the same again from the texts."""
    each = Counter[int]()
    for record in index.find():
        each.update([-1, *term_vector(record.text).indices.tolist()])
    return dict(each)


def test_every_change_is_counted(make: Any, sql: Any) -> None:
    index = make(text_search=True)
    other = make("other", text_search=True)
    other.add(records({"x": "red"}))
    index.add(records({"a": "red red green", "b": "red", "c": ""}))
    assert counts(sql, index) == counted(index)
    index.add(records({"b": "blue", "d": "red and green"}, kept=True))
    assert counts(sql, index) == counted(index)
    assert found(index, "red") == ["a", "d"]
    assert index.delete(Ids(["a", "absent"])) == 1
    assert counts(sql, index) == counted(index)
    assert index.delete(F("kept").text_match("x", case=False)) == 0
    index.delete(F("kept") == True)  # noqa: E712 - a filter
    assert counts(sql, index) == counted(index) == {-1: 1}
    index.clear()
    assert counts(sql, index) == {}
    index.add(records({"e": "red"}))
    index.drop()
    assert counts(sql, index) == {}
    assert found(other, "red") == ["x"]


def test_a_batch_that_fails_is_not_counted(make: Any, sql: Any) -> None:
    index = make(text_search=True)
    index.add(records({"a": "red"}))
    long = "".join(secrets.token_hex(8) for _ in range(2_000))  # no id for an index
    with pytest.raises(Exception, match="refused a statement"):
        index.add(records({"a": "green", long: "green"}))
    assert counts(sql, index) == counted(index)


def test_opened_without_the_option_it_is_the_same(make: Any, sql: Any) -> None:
    make(text_search=True).add(records({"a": "red"}))
    for index in (make(), make(text_search=True)):
        index.add(records({"a": "blue", "b": "red"}))
        assert found(index, "red") == ["b"]
        index.delete(Ids(["b"]))
        assert counts(sql, index) == counted(index)


def test_a_table_without_terms_refuses(make: Any) -> None:
    make().add(records({"a": "red"}))
    for index in (make(), make(text_search=True)):
        index.add(records({"b": "red"}))
        with pytest.raises(InvalidInput, match=r"Call enable_text_search\(\) once"):
            found(index, "red")


class TestATableThatIsThere:
    @pytest.fixture(autouse=True)
    def _small_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_pgtext, "_BATCH", 7)

    @pytest.fixture
    def old(self, make: Any) -> PgvectorIndex:
        index: PgvectorIndex = make()
        index.add(records({f"r{row}": f"word{row % 5} red" for row in range(30)}))
        return index

    def test_gets_them_in_batches(self, make: Any, sql: Any, old: PgvectorIndex) -> None:
        told: list[tuple[int, int | None]] = []
        old.enable_text_search(progress=lambda done, total: told.append((done, total)))
        assert told == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]
        assert counts(sql, old) == counted(old)
        assert len(found(make(), "word3")) == 6
        old.enable_text_search(progress=lambda *_: pytest.fail("there is nothing to do"))

    def test_goes_on_after_an_interruption(self, make: Any, sql: Any, old: PgvectorIndex) -> None:
        def stop(done: int, _: int | None) -> None:
            if done > 7:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            old.enable_text_search(progress=stop)
        with pytest.raises(InvalidInput, match="does not keep the terms"):
            found(old, "red")
        other = make()
        other.add(
            records({"r1": "blue", "new": "red"})
        )  # stored with terms, and counted in the end
        told: list[int | None] = []
        other.enable_text_search(progress=lambda _, total: told.append(total))
        assert set(told) == {16}
        assert counts(sql, other) == counted(other)
        assert found(other, "blue") == ["r1"]

    def test_two_at_once(self, make: Any, sql: Any, old: PgvectorIndex) -> None:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(PgvectorIndex.enable_text_search, (old, make(), make())))
        assert counts(sql, old) == counted(old)

    def test_those_who_opened_it_before_write_what_is_right(
        self, make: Any, sql: Any, old: PgvectorIndex
    ) -> None:
        make().enable_text_search()
        old.add(records({"r1": "blue"}))
        assert old.delete(Ids(["r2"])) == 1
        assert counts(sql, old) == counted(old)
        assert found(old, "blue") == ["r1"]

    def test_from_before_there_were_terms(self, make: Any, sql: Any, old: PgvectorIndex) -> None:
        sql(f"ALTER TABLE {old._schema.meta} DROP COLUMN terms")
        index = make()
        index.add(records({"r1": "blue"}))
        index.delete(Ids(["r2"]))
        index.enable_text_search()
        assert found(index, "blue") == ["r1"]
        assert counts(sql, index) == counted(index)

    def test_that_is_not_made_yet_is_made_with_them(self, make: Any) -> None:
        index = make("later")
        index.enable_text_search()
        index.add(records({"a": "red"}))
        assert found(index, "red") == ["a"]


async def test_words_that_are_everywhere_are_looked_at_only_if_they_decide(make: Any) -> None:
    texts = {
        f"r{row}": f"the and {'half' * (row % 2)} {'tower' * (row % 40 == 0)}" for row in range(200)
    }
    texts |= dict.fromkeys(("long", "longer"), "needle " + "and " * 3_000)
    exact = MemoryIndex()
    exact.add(records(texts))
    async with make(text_search=True, max_connections=1) as index:
        await index.aadd(records(texts))
        for text, k, searches in (
            ("the tower", 5, 1),  # five records hold it, and no other one can score as much
            ("the tower", 6, 2),
            ("the and", 5, 1),  # no word of it is rare
            ("needle half", 2, 2),  # what holds the rare word holds it too thinly
        ):
            search = partial(index.asearch, _NOTHING, by="text", text=text, k=k)
            seen = await statements(index, search)
            assert sum("terms <#>" in each for each in seen) == searches, text
            hits, truth = await search(), exact.search(_NOTHING, by="text", text=text, k=k)
            assert [hit.id for hit in hits] == [hit.id for hit in truth]
            np.testing.assert_allclose(
                [hit.score for hit in hits], [hit.score for hit in truth], rtol=1e-5
            )


# -- the model ---------------------------------------------------------------------------------


def test_the_model_is_known_to_all(make: Any, sql: Any) -> None:
    one = make()
    one.check_model("first")  # of a table that is not there yet
    one.add(records({"a": "red"}))
    with pytest.raises(InvalidInput, match="made by the model 'first', not by 'second'"):
        make().check_model("second")
    make().check_model("second", replace=True)
    with pytest.raises(InvalidInput, match="made by the model 'second'"):
        one.check_model("first")
    one.clear()
    make().check_model("third")


def test_the_model_of_a_table_of_an_earlier_version(make: Any, sql: Any) -> None:
    old = make()
    old.add(records({"a": "red"}))
    sql(f"ALTER TABLE {old._schema.meta} DROP COLUMN model")
    old.clear()
    old.add(records({"a": "red"}))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(PgvectorIndex.check_model, (make() for _ in range(4)), ["first"] * 4))
    with pytest.raises(InvalidInput, match="made by the model 'first'"):
        make().check_model("second")
