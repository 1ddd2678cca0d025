"""Both halves of docs/migration.md: what is to be replaced is Python, and what replaces it runs.

The page's own data is here: what the other packages keep, written as they write it. The blocks
called "Before" need those packages, which are not among the dependencies of the tests.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import faiss
import numpy as np
import pytest
import redis
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.index_store import SimpleIndexStore
from llama_index.core.vector_stores.utils import node_to_metadata_dict

from ragopt import HashingEmbedder, PgvectorIndex, RedisIndex
from ragopt.errors import RagoptError
from ragopt.llama_index import PGVectorStore, RedisVectorStore
from tests.docs.pages import ROOT, Block, blocks

PAGE = ROOT / "docs/migration.md"
REDIS, POSTGRES = "redis://localhost:6379", "postgresql://me:secret@localhost/db"
EMBEDDER = HashingEmbedder(64)
TEXTS = ["one", "two", "three"]

# index.pkl of a FAISS of langchain-community 0.4.2 with the texts "two", "three" and "one again",
# the last of which came into the place of another one with its id.
PICKLE = base64.b85decode(
    "fCQDu0RR910001tCTwADXJcq#X>MO*Z*6ULZfSIRE@W?Gb98TVWiDxMUu|V=Z*qB*j1Wm~O=WFwa(P5=V{>$Ga%Gg0"
    "lqrFfeUyv^Uu0=xbd-IRD2xGOl#Cs0VQyz*Xklq?Ut@1_WiDiIV|8t1Zgg`lVqtS-l#B>OZ)0_BWo~qolawielzo&"
    "aj0j&}WNBk`Utg4clqie>X=IdW2aE`9WprU=VRT`XeUyw0aA9X<Ut@1>bY*UIl#By(cW;!81ax_DWt3<Mb&L{UUvPP"
    "3VQzG3V_#)>baG)|UzARa7hhj+d1PU3bZKK>W@%+?WOHA0WprO(l#i4sXb)%-Xb_N$6klI(d1PU3bZKK>aB^vOVRU6"
    "*UzARDVvGS}lxPYmfs}oeC}<6RlqhHqXc=e_eUyv@aA9X<luHA1XcCMCbZByAWt3<XXbE*_6;5atkCZ5A4`>o-5Rhm"
    "XPIY380b!JA3Mqk<eUvC@4Skd-Xb)&1Xb^prC}<u_0gME6VP|ucU6g1cVRdK{j0taUWguZ^VQFrZXcTA(b!Zh%Xcm"
    "u@C}<C85@-;RXc$g)Vs&$3eUvCm0B8qG0caUZ0%#$1hLkP"
)


def python_blocks() -> list[Block]:
    return [b for b in blocks(PAGE.read_text(encoding="utf-8")) if b.language == "python"]


def vector(text: str) -> list[float]:
    dense = EMBEDDER.embed([text]).dense
    assert dense is not None
    vectors: list[list[float]] = dense.tolist()
    return vectors[0]


def nodes() -> list[BaseNode]:
    cut_from = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="a document")}
    return [
        TextNode(
            id_=f"node {n}",
            text=text,
            metadata={"n": n},
            embedding=vector(text),
            relationships=cut_from,
        )
        for n, text in enumerate(TEXTS)
    ]


async def execute(dsn: str, *statements: tuple[Any, ...]) -> None:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        for statement, *arguments in statements:
            await connection.execute(statement, *arguments)
    finally:
        await connection.close()


@pytest.fixture
def postgres(postgres_dsn: str) -> Iterator[str]:
    """A database of its own with the tables of the page."""
    name = f"migration_{secrets.token_hex(4)}"
    asyncio.run(execute(postgres_dsn, (f"CREATE DATABASE {name}",)))
    dsn = urlsplit(postgres_dsn)._replace(path=f"/{name}").geturl()
    collection = "00000000-0000-0000-0000-000000000001"
    asyncio.run(
        execute(
            dsn,
            ("CREATE EXTENSION vector",),
            (
                "CREATE TABLE docs (langchain_id UUID PRIMARY KEY, content TEXT NOT NULL, "
                "embedding vector(64) NOT NULL, langchain_metadata JSON)",
            ),
            *(
                (
                    "INSERT INTO docs VALUES (gen_random_uuid(), $1, $2::text::vector, '{}')",
                    text,
                    str(vector(text)),
                )
                for text in TEXTS
            ),
            (
                "CREATE TABLE langchain_pg_collection (uuid UUID PRIMARY KEY, "
                "name VARCHAR NOT NULL UNIQUE, cmetadata JSON)",
            ),
            (
                "CREATE TABLE langchain_pg_embedding (id VARCHAR PRIMARY KEY, collection_id UUID "
                "REFERENCES langchain_pg_collection (uuid) ON DELETE CASCADE, embedding VECTOR, "
                "document VARCHAR, cmetadata JSONB)",
            ),
            (f"INSERT INTO langchain_pg_collection VALUES ('{collection}', 'letters')",),
            (
                f"INSERT INTO langchain_pg_embedding VALUES ('a', '{collection}', "
                "$1::text::vector, 'a letter', '{\"n\": 1}')",
                str(vector("a letter")),
            ),
            (
                "CREATE TABLE data_notes (id BIGSERIAL PRIMARY KEY, text VARCHAR NOT NULL, "
                "metadata_ JSON, node_id VARCHAR, embedding VECTOR(64))",
            ),
            *(
                (
                    "INSERT INTO data_notes (text, metadata_, node_id, embedding) "
                    "VALUES ($1, $2, $3, $4::text::vector)",
                    node.get_content(),
                    json.dumps(node_to_metadata_dict(node, remove_text=True)),
                    node.node_id,
                    str(node.embedding),
                )
                for node in nodes()
            ),
        )
    )
    yield dsn
    asyncio.run(execute(postgres_dsn, (f"DROP DATABASE {name} WITH (FORCE)",)))


@pytest.fixture
def redis_with_records(redis_url: str) -> Iterator[str]:
    """A Redis server with the hashes of the page."""
    with redis.Redis.from_url(redis_url) as client:
        for number, text in enumerate(TEXTS):
            fields = {
                "text": text,
                "embedding": np.array(vector(text), np.float32).tobytes(),
                "_index_name": "docs",
                "_metadata_json": json.dumps({"n": number, "tags": ["a", "b"], "none": None}),
                "n": number,
                "tags": "a|b",
            }
            client.hset(f"docs:{number}", mapping=fields)
        for node in nodes():
            kept = {
                "id": node.node_id,
                "doc_id": node.ref_doc_id,
                "text": node.get_content(),
                "vector": np.array(node.embedding, np.float32).tobytes(),
                **node_to_metadata_dict(node, remove_text=True),
            }
            client.hset(f"llama_index/vector_{node.node_id}", mapping=kept)
        yield redis_url
        for pattern in ("docs:*", "llama_index/vector_*"):
            client.delete(*client.keys(pattern))
    for name in ("passages", "nodes"):
        with RedisIndex(redis_url, name) as index:
            index.drop()


def write_folders(folder: Path) -> None:
    """Write what the FAISS stores of langchain-community and of LlamaIndex leave on disk."""
    old = faiss.IndexFlatL2(64)
    old.add(np.array([vector(text) for text in ("two", "three", "one again")], np.float32))
    (folder / "faiss_index").mkdir()
    (folder / "faiss_index/index.pkl").write_bytes(PICKLE)
    faiss.write_index(old, str(folder / "faiss_index/index.faiss"))

    kept = nodes()
    documents, structures = SimpleDocumentStore(), SimpleIndexStore()
    documents.add_documents(kept)
    structures.add_index_struct(
        IndexDict(nodes_dict={str(place): node.node_id for place, node in enumerate(kept)})
    )
    old = faiss.IndexFlatL2(64)
    old.add(np.array([node.embedding for node in kept], np.float32))
    documents.persist(str(folder / "storage/docstore.json"))
    structures.persist(str(folder / "storage/index_store.json"))
    faiss.write_index(old, str(folder / "storage/default__vector_store.json"))


def test_what_is_to_be_replaced_is_python() -> None:
    before = [block for block in python_blocks() if block.title == "Before"]
    after = [block for block in python_blocks() if (block.title or "").startswith("After")]
    assert len(before) == 8
    assert len(after) == 12
    for block in before:
        compile(block.text, "before", "exec")


def test_what_replaces_it_brings_everything_along(
    redis_with_records: str,
    postgres: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path)
    names: dict[str, Any] = {"nodes": nodes()}
    for block in python_blocks():
        if block.title == "Before":
            continue
        text = block.text.replace(REDIS, redis_with_records).replace(POSTGRES, postgres)
        exec(compile(text, f"{PAGE.name}: {block.title}", "exec"), names)
        if block.title == "After: the records of a FAISS folder":
            hits = names["store"].similarity_search_with_score("one again", k=3)
            assert {hit.id: hit.page_content for hit, _ in hits} == {
                "a": "one again",
                "b": "two",
                "c": "three",
            }
            assert hits[0][0].metadata == {"page": 1, "tags": ["a"]}
            assert hits[0][1] == pytest.approx(0, abs=0.05)  # a question is not quite its text
    printed = capsys.readouterr().out
    assert "3 records were taken from the table 'docs'.\n1 1\n" in printed
    assert "3 records were taken from the table 'data_notes'.\n" in printed

    with RedisIndex(redis_with_records, "passages") as index:
        found = {r.id: (r.text, dict(r.metadata)) for r in index.find()}
        metadata = {"tags": ["a", "b"], "none": None}
        assert found == {str(n): (text, {"n": n, **metadata}) for n, text in enumerate(TEXTS)}
        query = EMBEDDER.embed(["two"], role="query")[0]
        assert index.search(query, k=1)[0].id == "1"
    with RedisIndex(redis_with_records, "nodes") as index:
        moved = RedisVectorStore(index=index).get_nodes([f"node {n}" for n in range(3)])
        for node, old in zip(moved, nodes(), strict=True):
            assert node.embedding == pytest.approx(old.embedding)  # made length 1 once more
            assert node == old.model_copy(update={"embedding": node.embedding})
    with PgvectorIndex(postgres, "passages") as table:
        assert sorted(record.text for record in table.find()) == sorted(TEXTS)
    with PgvectorIndex(postgres, "letter_passages") as table:
        assert [(r.id, r.text, dict(r.metadata)) for r in table.find()] == [
            ("a", "a letter", {"n": 1})
        ]
    with PgvectorIndex(postgres, "note_nodes") as table:
        assert PGVectorStore(index=table).get_nodes() == nodes()
    assert names["vectors"].get_nodes() == nodes()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch broken-in",)


@pytest.mark.parametrize("thing", [Evil(), Path("x"), RagoptError("a", fix="b")])
def test_the_reader_of_old_files_makes_nothing_else(
    thing: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (b for b in python_blocks() if b.title == "After: the records of a FAISS folder")
    names: dict[str, Any] = {}
    definitions = block.text.partition("\nindex = ")[0]
    exec(definitions, names)
    (tmp_path / "index.pkl").write_bytes(pickle.dumps((thing, {})))
    with pytest.raises(pickle.UnpicklingError, match="is nothing that such a file holds"):
        names["records_of_folder"](tmp_path)
    assert not (tmp_path / "broken-in").exists()
