"""Tables as LangChain and LlamaIndex make them, taken over by an index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from pydantic import AnyUrl
from tests.backends.conftest import Make, Sql

from ragopt.errors import DimensionMismatch, InvalidInput, StorageError
from ragopt.indexes._pgadopt import Adoption
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.llama_index import PGVectorStore
from ragopt.types import Embedding

# What the packages themselves execute: langchain-postgres 0.0.19 (and PGVector of before 0.0.10),
# llama-index-vector-stores-postgres 0.9.
PG_VECTOR_STORE = """CREATE TABLE "{0}"(
    "langchain_id" UUID PRIMARY KEY,
    "content" TEXT NOT NULL,
    "embedding" vector(4) NOT NULL,
    "langchain_metadata" JSON
)"""
COLLECTIONS = """CREATE TABLE langchain_pg_collection (
    uuid UUID NOT NULL, name VARCHAR NOT NULL, cmetadata JSON, PRIMARY KEY (uuid), UNIQUE (name)
)"""
PG_VECTOR = """CREATE TABLE langchain_pg_embedding (
    id VARCHAR NOT NULL, collection_id UUID, embedding VECTOR, document VARCHAR, cmetadata JSONB,
    PRIMARY KEY (id),
    FOREIGN KEY(collection_id) REFERENCES langchain_pg_collection (uuid) ON DELETE CASCADE
)"""
OLDER_PG_VECTOR = """CREATE TABLE langchain_pg_embedding (
    uuid UUID NOT NULL, collection_id UUID, embedding VECTOR, document VARCHAR, cmetadata JSON,
    custom_id VARCHAR, PRIMARY KEY (uuid),
    FOREIGN KEY(collection_id) REFERENCES langchain_pg_collection (uuid) ON DELETE CASCADE
)"""
LLAMA_INDEX = """CREATE TABLE "data_{0}" (
    id BIGSERIAL NOT NULL, text VARCHAR NOT NULL, metadata_ {1}, node_id VARCHAR,
    embedding {2}(4), {3} PRIMARY KEY (id)
)"""
TSV = "text_search_tsv TSVECTOR GENERATED ALWAYS AS (to_tsvector('english', text)) STORED,"


def uuid(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012x}"


def vector(number: float) -> str:
    return f"[1,{number},0.5,0]"


@pytest.fixture
def collections(sql: Sql) -> Iterator[dict[str, str]]:
    """Make the two collections of a ``PGVector``; names to ids."""
    sql(COLLECTIONS)
    made = {"one": uuid(1), "two": uuid(2)}
    sql("INSERT INTO langchain_pg_collection VALUES ($2::text::uuid, $1)", *made.items())
    yield made
    sql("DROP TABLE IF EXISTS langchain_pg_embedding")
    sql("DROP TABLE langchain_pg_collection")


def fill(sql: Sql, table: str, rows: int) -> None:
    sql(PG_VECTOR_STORE.format(table))
    sql(
        f'INSERT INTO "{table}" VALUES ($1::text::uuid, $2, $3::text::vector, $4)',
        *((uuid(n), f"text {n}", vector(n), json.dumps({"n": n})) for n in range(rows)),
    )


def found(index: PgvectorIndex) -> dict[str, tuple[str, dict[str, Any]]]:
    return {record.id: (record.text, dict(record.metadata)) for record in index.find()}


async def adopt_on_a_loop(index: PgvectorIndex, table: str) -> Adoption:
    try:
        return await index.aadopt(table)
    finally:
        await index.aclose()


def reasons(adoption: Adoption) -> dict[str, list[str]]:
    return {each.why: each.keys for each in adoption.left_out}


class TestPGVectorStore:
    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_its_records_come_with_their_vectors(
        self, make: Make, sql: Sql, table: str, colour: str
    ) -> None:
        fill(sql, f"{table}_old", 5)
        before = sql(f'SELECT xmin, * FROM "{table}_old"')
        index = make()
        for _ in range(2):  # again does no harm
            if colour == "sync":
                adoption = index.adopt(f"{table}_old")
            else:
                adoption = asyncio.run(adopt_on_a_loop(index, f"{table}_old"))
            assert (adoption.taken, adoption.left_out) == (5, [])
        assert found(index) == {uuid(n): (f"text {n}", {"n": n}) for n in range(5)}
        (record,) = index.get([uuid(3)], embeddings=True)
        assert record is not None
        assert record.embedding.dense is not None
        assert record.embedding.dense.tolist() == [1, 3, 0.5, 0]
        assert sql(f'SELECT xmin, * FROM "{table}_old"') == before

    def test_columns_of_metadata_come_as_values(self, make: Make, sql: Sql, table: str) -> None:
        sql(
            f'CREATE TABLE {table}_old ("doc" TEXT PRIMARY KEY, "content" TEXT NOT NULL, '
            '"embedding" vector(4) NOT NULL, "content_tsv" TSVECTOR NOT NULL, '
            '"likes" INTEGER, "price" NUMERIC, "day" DATE, "at" TIMESTAMPTZ, "tags" TEXT[], '
            '"more" JSONB, "owner" UUID, "empty" TEXT, "langchain_metadata" JSON)'
        )
        sql(
            f"INSERT INTO {table}_old VALUES ('a', 'text', '{vector(1)}', '', 3, 1.5, "
            "'2024-02-29', '2024-02-29 12:00Z', '{x,y}', '{\"k\": [1]}', "
            f"'{uuid(7)}', NULL, '{{\"likes\": 1, \"own\": 2}}')"
        )
        index = make()
        index.adopt(f"{table}_old")
        everything = {
            "own": 2, "likes": 3, "price": 1.5, "day": date(2024, 2, 29),
            "at": datetime(2024, 2, 29, 12, tzinfo=UTC), "tags": ["x", "y"], "more": {"k": [1]},
            "owner": uuid(7), "empty": None,
        }  # fmt: skip
        assert found(index) == {"a": ("text", everything)}
        index.adopt(f"{table}_old", metadata_columns=["day"])
        assert found(index)["a"][1] == {"own": 2, "likes": 1, "day": date(2024, 2, 29)}

    def test_columns_may_have_other_names(self, make: Make, sql: Sql, table: str) -> None:
        other = f'{table}" ; -- 日'
        sql(
            'CREATE TABLE "{}" ("No." BIGINT PRIMARY KEY, name TEXT, "the text" TEXT, v vector, '
            "extra JSON)".format(other.replace('"', '""'))
        )
        sql(
            "INSERT INTO \"{}\" VALUES (1, 'a', 'one', '[1,2]', NULL), "
            "(2, 'b', 'two', '[3,4]', 'null')".format(other.replace('"', '""'))
        )
        index = make(metric="l2")
        names: dict[str, Any] = {"content_column": "the text", "embedding_column": "v"}
        names["metadata_json_column"] = "extra"
        assert index.adopt(other, **names).taken == 2
        assert found(index) == {"1": ("one", {"name": "a"}), "2": ("two", {"name": "b"})}
        index.clear()
        index.adopt(other, id_column="name", **names)
        assert found(index) == {"a": ("one", {}), "b": ("two", {})}

    def test_the_order_is_that_of_the_key_and_not_of_its_text(
        self, make: Make, sql: Sql, table: str
    ) -> None:
        sql(f"CREATE TABLE {table}_old (n INT PRIMARY KEY, content TEXT, embedding vector(4))")
        sql(
            f"INSERT INTO {table}_old SELECT n, 'text', '{vector(1)}' FROM generate_series(1, 25) n"
        )
        index, told = make(), list[tuple[int, int | None]]()
        adoption = index.adopt(
            f"{table}_old", batch_size=4, progress=lambda done, total: told.append((done, total))
        )
        assert adoption.taken == 25
        assert list(found(index)) == [str(n) for n in range(1, 26)]
        assert told == [(n, 25) for n in (4, 8, 12, 16, 20, 24, 25)]

    def test_what_stopped_in_the_middle_goes_on(
        self, make: Make, sql: Sql, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(sql, f"{table}_old", 10)
        index, add = make(), PgvectorIndex._add
        sizes: list[int] = []

        async def breaks(self: Any, io: Any, records: Any, *rest: Any) -> None:
            sizes.append(len(records))
            if len(sizes) == 3:
                raise StorageError("The disk is full.", fix="Get another.")
            await add(self, io, records, *rest)

        monkeypatch.setattr(PgvectorIndex, "_add", breaks)
        with pytest.raises(StorageError, match="disk is full") as caught:
            index.adopt(f"{table}_old", batch_size=3)
        assert index.count() == 6
        assert caught.value.__notes__ == [f"To go on where it stopped, pass after={uuid(5)!r}."]
        adoption = index.adopt(f"{table}_old", batch_size=3, after=uuid(5))
        assert adoption.taken == 4
        assert sizes == [3, 3, 3, 3, 1]
        assert index.count() == 10

    def test_an_empty_table(self, make: Make, sql: Sql, table: str) -> None:
        sql(PG_VECTOR_STORE.format(f"{table}_old"))
        assert str(make().adopt(f"{table}_old")) == (
            f"0 records were taken from the table '{table}_old'."
        )

    def test_metadata_that_postgres_cannot_index_is_left_out(
        self, make: Make, sql: Sql, table: str
    ) -> None:
        fill(sql, f"{table}_old", 6)
        sql(
            f"UPDATE {table}_old SET langchain_metadata = $2 WHERE content = $1",
            ("text 1", r'{"a": "x\u0000y"}'),  # json keeps it, jsonb does not
            ("text 2", r'{"a": ["\ud800"]}'),
            ("text 3", "[1]"),
            ("text 4", '{"a": 1' + "0" * 5_000 + "}"),
        )
        index = make()
        adoption = index.adopt(f"{table}_old")
        assert sorted(found(index)) == [uuid(0), uuid(5)]
        assert adoption.taken == 2
        assert reasons(adoption) == {
            "their metadata cannot be read": [uuid(3), uuid(4)],
            "their metadata cannot be stored": [uuid(1), uuid(2)],
        }
        assert str(adoption) == (
            f"2 records were taken from the table '{table}_old'. "
            f"2 left out, their metadata cannot be read: {uuid(3)}, {uuid(4)}. "
            f"2 left out, their metadata cannot be stored: {uuid(1)}, {uuid(2)}."
        )


class TestPGVector:
    def test_one_collection_of_several(
        self, make: Make, sql: Sql, collections: dict[str, str]
    ) -> None:
        sql(PG_VECTOR)
        sql(
            "INSERT INTO langchain_pg_embedding "
            "VALUES ($1, $2::text::uuid, $3::text::vector, $4, $5)",
            ("a", uuid(1), vector(1), "text a", '{"tags": ["x"], "n": 1.5}'),
            ("b", uuid(2), vector(2), "text b", "{}"),
            ("c", uuid(1), vector(3), "text c", None),
        )
        index = make()
        for wrong in (None, "three"):
            with pytest.raises(InvalidInput, match="holds these collections: 'one', 'two'"):
                index.adopt("langchain_pg_embedding", collection=wrong)
        adoption = index.adopt("langchain_pg_embedding", collection="one", batch_size=1)
        assert adoption.taken == 2
        assert found(index) == {"a": ("text a", {"tags": ["x"], "n": 1.5}), "c": ("text c", {})}
        sql("DELETE FROM langchain_pg_collection WHERE name = 'one'")
        index.adopt("langchain_pg_embedding")  # the only one is meant
        assert sorted(found(index)) == ["a", "b", "c"]

    def test_ids_of_the_older_table(
        self, make: Make, sql: Sql, collections: dict[str, str]
    ) -> None:
        sql(OLDER_PG_VECTOR)
        sql(
            "INSERT INTO langchain_pg_embedding VALUES "
            "($1::text::uuid, $2::text::uuid, $3::text::vector, $4, $5, $6)",
            (uuid(11), uuid(1), vector(1), "without", "{}", None),
            (uuid(12), uuid(1), vector(1), "empty", "{}", ""),
            (uuid(13), uuid(1), vector(1), "first", "{}", "same"),
            (uuid(14), uuid(1), vector(1), "second", "{}", "same"),
            (uuid(15), uuid(1), vector(1), "third", "{}", "same"),
            (uuid(16), uuid(2), vector(1), "elsewhere", "{}", "same"),
        )
        for size in (1, 2, 3, 10):  # the same whether they come in one batch or in several
            index = make()
            adoption = index.adopt("langchain_pg_embedding", collection="one", batch_size=size)
            assert adoption.taken == 3
            assert reasons(adoption) == {"later rows have their ids": [uuid(13), uuid(14)]}
            texts = {id_: text for id_, (text, _) in found(index).items()}
            assert texts == {uuid(11): "without", uuid(12): "empty", "same": "third"}
            index.clear()

    def test_rows_that_are_no_records(
        self, make: Make, sql: Sql, collections: dict[str, str], table: str
    ) -> None:
        sql(PG_VECTOR)
        sql(
            "INSERT INTO langchain_pg_embedding "
            "VALUES ($1, $2::text::uuid, $3::text::vector, $4, '{}')",
            ("good", uuid(1), vector(1), "text"),
            ("", uuid(1), vector(1), "text"),
            ("no text", uuid(1), vector(1), None),
            *((f"{n:02} no vector", uuid(1), None, "text") for n in range(12)),
            ("short", uuid(1), "[1,2]", "text"),
        )
        with pytest.raises(DimensionMismatch, match=r"of the dimensions 2, 4\. Make the index"):
            make().adopt("langchain_pg_embedding", collection="one")
        index = make(4)
        adoption = index.adopt("langchain_pg_embedding", collection="one")
        assert list(found(index)) == ["good"]
        assert adoption.taken == 1
        assert {each.why: each.rows for each in adoption.left_out} == {
            "they have no id": 1,
            "they have no vector": 12,
            "they have no text": 1,
            "their vectors have dimension 2, not 4": 1,
        }
        assert len(reasons(adoption)["they have no vector"]) == 10
        assert "12 left out, they have no vector: 00 no vector, " in str(adoption)
        assert "09 no vector, ...." in str(adoption)
        assert make(table=f"{table}_two").adopt("langchain_pg_embedding", collection="two") == (
            Adoption("langchain_pg_embedding", 0, [])
        )


def nodes() -> list[BaseNode]:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="a document")}
    made: list[BaseNode] = [
        TextNode(
            id_="text",
            text="one",
            metadata={"year": 2020, "doc_id": "the user's own", "none": None, "tags": ["a"]},
            relationships={
                **source,
                NodeRelationship.NEXT: RelatedNodeInfo(node_id="2", metadata={"a": 1}),
            },
            excluded_llm_metadata_keys=["year"],
            start_char_idx=0,
            end_char_idx=3,
        ),
        ImageNode(id_="image", text="日本", image="aGVsbG8=", relationships=source),
        IndexNode(id_="index", text="see there", index_id="other"),
        Document(id_="document", text="all of it", metadata={"d": 1}),
        Node(
            id_="node",
            text_resource=MediaResource(text="several"),
            image_resource=MediaResource(url=AnyUrl("http://localhost/a.png")),
        ),
    ]
    for number, node in enumerate(made):
        node.embedding = [1.0, number, 0.5, 0.0]
    return made


def insert_nodes(sql: Sql, table: str, kept: list[BaseNode]) -> None:
    sql(
        f'INSERT INTO "data_{table}" (text, metadata_, node_id, embedding) '
        "VALUES ($1, $2, $3, $4::text::vector)",
        *(
            (
                node.get_content(MetadataMode.NONE),
                json.dumps(node_to_metadata_dict(node, remove_text=True)),
                node.node_id,
                str(node.embedding),
            )
            for node in kept
        ),
    )


class TestLlamaIndex:
    @pytest.mark.parametrize(
        "kinds", [("JSON", "VECTOR", ""), ("JSONB", "VECTOR", TSV), ("JSON", "HALFVEC", "")]
    )
    def test_nodes_are_what_they_were(
        self, make: Make, sql: Sql, table: str, kinds: tuple[str, str, str]
    ) -> None:
        sql(LLAMA_INDEX.format(table, *kinds))
        insert_nodes(sql, table, nodes())
        index = make()
        assert index.adopt(f"data_{table}").taken == 5
        store = PGVectorStore(index=index)
        assert store.get_nodes() == nodes()
        native = PGVectorStore(index=make(table=f"{table}_native"))
        native.add(nodes())
        assert store.get_nodes() == native.get_nodes()
        assert [node.ref_doc_id for node in store.get_nodes()][:3] == ["a document"] * 2 + [None]
        store.delete("a document")
        assert [node.node_id for node in store.get_nodes()] == ["index", "document", "node"]

    def test_nodes_that_were_added_twice(self, make: Make, sql: Sql, table: str) -> None:
        sql(LLAMA_INDEX.format(table, "JSON", "VECTOR", ""))
        kept = [
            TextNode(id_=f"{n % 10}", text=f"text {n}", embedding=[1, n, 0, 0]) for n in range(12)
        ]
        insert_nodes(sql, table, [*kept])
        index = make()
        adoption = index.adopt(f"data_{table}", batch_size=5)
        assert adoption.taken == 10
        assert reasons(adoption) == {"later rows have their ids": ["1", "2"]}
        texts = {id_: text for id_, (text, _) in found(index).items()}
        assert texts == {str(n): f"text {n if n > 1 else n + 10}" for n in range(10)}

    def test_what_is_no_node_of_today(self, make: Make, sql: Sql, table: str) -> None:
        sql(LLAMA_INDEX.format(table, "JSON", "VECTOR", ""))
        unknown = node_to_metadata_dict(TextNode(id_="b", metadata={"k": 1}))
        reserved = node_to_metadata_dict(TextNode(id_="c", metadata={"_ragopt_node": 1}))
        sql(
            f"INSERT INTO data_{table} (text, metadata_, node_id, embedding) "
            f"VALUES ($1, $2, $3, '{vector(1)}')",
            ("old", '{"k": "v"}', "a"),
            ("custom", json.dumps({**unknown, "_node_type": "MyNode"}), "b"),
            ("reserved", json.dumps(reserved), "c"),
            ("broken", '{"_node_content": "{"}', "d"),
            ("nobody", "{}", None),
        )
        index = make()
        adoption = index.adopt(f"data_{table}")
        assert PGVectorStore(index=index).get_nodes() == [
            TextNode(id_="a", text="old", metadata={"k": "v"}),
            TextNode(id_="b", text="custom", metadata={"k": 1}, embedding=[1, 1, 0.5, 0]),
        ]
        assert reasons(adoption) == {
            "their metadata cannot be read": ["3", "4"],
            "they have no id": ["5"],
        }


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("statement", "sentence"),
        [
            ("SELECT", "There is no table '{0}' in the schema 'public'. Check the name; Llama"),
            ("CREATE VIEW {0} AS SELECT 1 AS id", "There is no table '{0}'"),
            ("CREATE TABLE {0} (content text, embedding vector(4))", "no primary key of one"),
            (
                "CREATE TABLE {0} (a int, b int, content text, embedding vector, UNIQUE (a))",
                "no primary key of one column",
            ),
            ("CREATE TABLE {0} (id int PRIMARY KEY, content text)", "has no column 'embedding'"),
            (
                "CREATE TABLE {0} (id int PRIMARY KEY, content text, embedding text)",
                "The column 'embedding' of the table '{0}' is of the type text",
            ),
        ],
    )
    def test_tables_are_refused_by_a_sentence(
        self, make: Make, sql: Sql, table: str, statement: str, sentence: str
    ) -> None:
        sql(statement.format(f"{table}_old"))
        with pytest.raises(InvalidInput, match=sentence.format(f"{table}_old")):
            make().adopt(f"{table}_old")

    def test_names_that_are_not_there(self, make: Make, sql: Sql, table: str) -> None:
        fill(sql, f"{table}_old", 1)
        wrong: list[dict[str, Any]] = [{"id_column": "nope"}, {"metadata_columns": ["nope"]}]
        for names in wrong:
            with pytest.raises(InvalidInput, match="has no column 'nope'"):
                make().adopt(f"{table}_old", **names)
        with pytest.raises(InvalidInput, match="in the schema 'elsewhere'"):
            make().adopt(f"{table}_old", schema="elsewhere")

    def test_another_dimension(self, make: Make, sql: Sql, table: str) -> None:
        fill(sql, f"{table}_old", 2)
        with pytest.raises(DimensionMismatch, match=r"of dimension 4, the index of 5\. Nothing"):
            make(5).adopt(f"{table}_old")

    @pytest.mark.parametrize("column", ["embedding", "(embedding::halfvec(4))"])
    def test_another_metric(self, make: Make, sql: Sql, table: str, column: str) -> None:
        fill(sql, f"{table}_old", 2)
        kind = "vector" if column == "embedding" else "halfvec"
        sql(f"CREATE INDEX ON {table}_old USING hnsw ({column} {kind}_l2_ops)")
        if kind == "vector":
            with pytest.raises(InvalidInput, match="for the metric 'l2', and this index compares"):
                make().adopt(f"{table}_old")
            sql(f"CREATE INDEX ON {table}_old USING hnsw ({column} {kind}_cosine_ops)")
        assert make().adopt(f"{table}_old").taken == 2

    def test_numbers_that_the_index_cannot_hold(self, make: Make, sql: Sql, table: str) -> None:
        fill(sql, f"{table}_old", 2)
        sql(f"UPDATE {table}_old SET embedding = '[1e6,0,0,0]' WHERE content = 'text 1'")
        index = make(precision="float16")
        with pytest.raises(InvalidInput, match="beyond 65,504"):
            index.adopt(f"{table}_old")
        assert index.count() == 0
        sql(f"DELETE FROM {table}_old WHERE content = 'text 1'")
        assert index.adopt(f"{table}_old").taken == 1

    def test_a_batch_of_nothing(self, make: Make, table: str) -> None:
        with pytest.raises(InvalidInput, match="A batch of 0 rows"):
            make().adopt(table, batch_size=0)


def test_vectors_are_the_same_bits(make: Make, sql: Sql, table: str) -> None:
    values = np.random.default_rng(7).normal(size=(20, 4)).astype(np.float32)
    sql(PG_VECTOR_STORE.format(f"{table}_old"))
    sql(
        f"INSERT INTO {table}_old VALUES ($1::text::uuid, 'text', $2::text::vector)",
        *((uuid(n), str(values[n].tolist())) for n in range(20)),
    )
    index = make()
    index.adopt(f"{table}_old", batch_size=7)
    dense = [record.embedding.dense for record in index.find(embeddings=True)]
    assert np.array_equal(np.stack([each for each in dense if each is not None]), values)


def test_an_index_with_text_search_finds_the_words(make: Make, sql: Sql, table: str) -> None:
    fill(sql, f"{table}_old", 5)
    index = make(text_search=True)
    index.adopt(f"{table}_old")
    hits = index.search(Embedding(), k=3, by="text", text="3")
    assert [hit.id for hit in hits] == [uuid(3)]
