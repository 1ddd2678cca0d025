"""What an index object does when its table is dropped, or made anew, beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.backends.conftest import Sql

from ragopt import Embedding, EmbeddingBatch, Ids, SparseVector
from ragopt.errors import DimensionMismatch, InvalidInput, PruningWarning, StorageError
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.testing.faces import BothColours, Face
from ragopt.testing.records import batch, vectors

Make = Callable[..., PgvectorIndex]
QUERY = Embedding(vectors(1)[0])


class TestRenewed(BothColours):
    @pytest.mark.parametrize("by_hand", [False, True])
    def test_a_table_that_was_dropped(
        self, make: Make, face: Face, by_hand: bool, sql: Sql, table: str
    ) -> None:
        index = face(make())
        for _ in range(2):  # what is added makes it anew, and that one goes as well
            index.add(batch(["a", "b"], vectors(2)))
            assert index.count() == 2
            if by_hand:
                sql(f"DROP TABLE {table}")
            else:
                make().drop()
            assert index.search(QUERY) == []
            assert index.get(["a"]) == [None]
            assert index.find() == []
            assert index.count() == 0
            assert index.delete(Ids(["a"])) == 0
        index.close()

    def test_a_table_of_another_dimension(self, make: Make, face: Face) -> None:
        index = face(make())
        index.add(batch(["a"], vectors(1)))
        make().drop()
        make().add(batch(["x", "y"], vectors(2, 8)))
        uses: list[Callable[[], object]] = [
            lambda: index.search(QUERY),
            lambda: index.add(batch(["b"], vectors(1))),
        ]
        for use in uses:
            with pytest.raises(DimensionMismatch, match=r"dimension 16, the index has 8\."):
                use()
        assert [hit.id for hit in index.search(Embedding(vectors(1, 8)[0]), k=1)] == ["x"]
        assert index.count() == 2
        index.close()

    def test_what_fits_the_new_dimension_is_not_refused(self, make: Make, face: Face) -> None:
        found, stored = face(make()), face(make())
        for index in (found, stored):
            index.add(batch(["a"], vectors(1)))
        make().drop()
        make().add(batch(["x"], vectors(1, 8)))
        assert [hit.id for hit in found.search(Embedding(vectors(1, 8)[0]))] == ["x"]
        stored.add(batch(["y"], vectors(1, 8)))
        assert found.count() == stored.count() == 2
        found.close()
        stored.close()

    def test_a_table_of_another_type(self, make: Make, face: Face) -> None:
        index = face(make(16, index="none", max_connections=1))
        records = batch(["a"], vectors(1))
        index.add(records)
        queries = EmbeddingBatch(vectors(2))
        for options in ({"precision": "float16"}, {"precision": "float32"}):
            for _ in range(3):  # so that the statement is kept, with the types of its columns
                (hit, *_), _ = index.search_batch(queries, embeddings=True)
            assert hit.embedding.dense == pytest.approx(vectors(1)[0], abs=1e-3)
            make().drop()
            make(16, index="none", **options).add(records)
        index.close()

    def test_what_else_is_asked_of_one_that_was_dropped(self, make: Make, face: Face) -> None:
        index = face(make(text_search=True))
        index.add(batch(["a"], vectors(1), texts=["word"]))
        uses: list[Callable[[], object]] = [
            index.version,
            index.stats,
            index.reindex,
            index.enable_text_search,
            index.clear,
            lambda: index.search(Embedding(), by="text", text="word"),
            lambda: index.search(Embedding(sparse=SparseVector.from_dict({1: 1.0})), by="sparse"),
        ]
        for use in uses:
            before = index.version()
            make().drop()
            use()
            assert index.version() != before
            assert index.count() == 0
            index.add(batch(["a"], vectors(1), texts=["word"]))
            (hit,) = index.search(Embedding(), by="text", text="word")
            assert hit.id == "a"
        index.close()

    def test_one_that_nobody_knows_any_more_is_left_alone(
        self, make: Make, face: Face, sql: Sql, table: str
    ) -> None:
        index = face(make())
        index.add(batch(["a"], vectors(1)))
        sql(f"DELETE FROM ragopt_index WHERE name = '{table}'")
        with pytest.raises(StorageError, match="was not made by ragopt"):
            index.add(batch(["b"], vectors(1)))
        index.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schema": "nope"}, r'schema "nope" does not exist\).*Create the schema, or name'),
        ({"dimension": 16_001, "index": "none"}, "16,000"),
    ],
)
def test_what_the_server_refuses(make: Make, options: dict[str, Any], says: str) -> None:
    index = make(**options)
    with pytest.raises((StorageError, InvalidInput), match=says) as caught:
        index.add(batch(["a"], vectors(1, options.get("dimension", 16))))
    assert "free space" not in str(caught.value)


def test_a_database_that_is_not_there(postgres_dsn: str) -> None:
    elsewhere = postgres_dsn.replace("@/postgres", "@/nowhere").replace("/postgres?", "/nowhere?")
    says = r'"nowhere" does not exist\).*Create the database'
    with PgvectorIndex(elsewhere, "t") as index, pytest.raises(StorageError, match=says):
        index.count()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_dsn_of_sqlalchemy(driver: str) -> None:
    with pytest.raises(InvalidInput, match=rf"postgresql\+{driver}:// does. Leave out the part"):
        PgvectorIndex(f"postgresql+{driver}://me:secret@localhost/db", "t")


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_the_length_of_a_query_is_no_part_of_its_cosine(make: Make, scale: float) -> None:
    index = make(index="none")
    index.add(batch([f"r{row}" for row in range(50)], vectors(50)))
    query = vectors(1, seed=1)[0]
    expected = index.search(Embedding(query))
    hits = index.search(Embedding(np.float32(scale) * query))
    assert [hit.id for hit in hits] == [hit.id for hit in expected]
    assert [h.score for h in hits] == pytest.approx([h.score for h in expected], abs=1e-6)


def test_a_text_of_too_many_words_is_named(make: Make) -> None:
    index = make(text_search=True)
    text = " ".join(f"w{number}" for number in range(16_001))
    with pytest.warns(PruningWarning, match="text of the record 'long' has more than 16,000"):
        index.add(batch(["long", "short"], vectors(2), texts=[text, "w1"]))
