"""Tables that other packages made in PostgreSQL: which they are, and how their rows are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ragopt.errors import DimensionMismatch, InvalidInput
from ragopt.indexes._pgvectors import DENSE_TYPES, DenseType
from ragopt.types import Metric

_VECTORS = {kind.name: kind for kind in DENSE_TYPES.values()}
_METRICS = {"cosine_ops": Metric.COSINE, "ip_ops": Metric.IP, "l2_ops": Metric.L2}
_COLLECTIONS = "langchain_pg_collection"

# Types whose values may stand in metadata as they are. Others arrive as their text.
_PLAIN = {"bool", "int2", "int4", "int8", "float4", "float8", "text", "varchar", "bpchar", "date",
          "timestamp", "timestamptz"}  # fmt: skip
_PLAIN |= {f"_{name}" for name in _PLAIN}
_JSON = {"json", "jsonb"}
_NO_METADATA = {*_VECTORS, "sparsevec", "bit", "tsvector"}

# What ragopt.llama_index keeps beside a node's text and metadata, and the classes of nodes.
_NODE_KEY = "_ragopt_node"
_NODES = {"TextNode", "ImageNode", "IndexNode", "Node", "Document"}
_WITH_RESOURCE = {"Node", "Document"}  # their text is a field with a type of its own
_SOURCE = "1"  # the relationship to the document that a node was cut from


class Columns(NamedTuple):
    """The columns of a LangChain ``PGVectorStore``, under the names that it has for them."""

    id: str | None
    content: str
    embedding: str
    metadata_json: str
    metadata: Sequence[str] | None


class Asked(NamedTuple):
    """Which table is meant, and how to read it."""

    table: str
    schema: str
    collection: str | None
    columns: Columns


class Row(NamedTuple):
    """A row of another package's table. ``key`` is its primary key, as text."""

    key: str
    id: str | None
    text: str | None
    metadata: str | None
    vector: bytes | None
    columns: dict[str, Any]


class _Layout(NamedTuple):
    """Which columns of a table hold what; ``id`` and ``metadata`` are SQL."""

    id: str
    text: str
    metadata: str
    vector: str
    columns: Sequence[str] = ()
    nodes: bool = False
    collections: bool = False


@dataclass(frozen=True)
class Source:
    """A table of another package, or one collection in it.

    Args:
        name: Name of the table.
        rows: How many there are.
        kind: Type of the vectors.
        dimension: Length of the vectors that are taken.
        repeated: Ids that more than one row has.
        nodes: Whether they are LlamaIndex's nodes.
        columns: Columns of metadata, and whether they hold JSON.
        select: The query for all rows.
        key: The primary key, as SQL.
        key_type: Its type.
        parameters: Of the query.
    """

    name: str
    rows: int
    kind: DenseType
    dimension: int
    repeated: frozenset[str]
    nodes: bool
    columns: Mapping[str, bool]
    select: str
    key: str
    key_type: str
    parameters: tuple[Any, ...]

    async def read(self, connection: Any, after: str | None, limit: int) -> list[Row]:
        """Return the next rows in the order of the primary key."""
        parameters, query = [*self.parameters], self.select
        if after is not None:
            parameters.append(after)
            query += f" AND {self.key} > ${len(parameters)}::text::{self.key_type}"
        rows = await connection.fetch(f"{query} ORDER BY {self.key} LIMIT {limit:d}", *parameters)
        fixed = len(Row._fields) - 1
        return [
            Row._make((*row[:fixed], dict(zip(self.columns, row[fixed:], strict=True))))
            for row in map(tuple, rows)
        ]

    def metadata_of(self, row: Row) -> tuple[dict[str, Any], str | None]:
        """Return a row's metadata, and the document that it was cut from.

        Raises:
            ValueError: The metadata cannot be read.
        """
        metadata = json.loads(row.metadata or "{}") or {}
        if not isinstance(metadata, dict):
            raise ValueError("it is no object")
        if self.nodes:
            return _node(metadata, row.text)
        for name, value in row.columns.items():
            as_it_is = value is None or not self.columns[name]
            metadata[name] = value if as_it_is else json.loads(value)
        return metadata, None


def _node(stored: dict[str, Any], text: str | None) -> tuple[dict[str, Any], str | None]:
    """Turn what LlamaIndex's stores keep of a node into what ours keep."""
    content = stored.get("_node_content")
    if content is None:  # from before there were nodes in it
        return stored, None
    fields: dict[str, Any] = json.loads(content)
    metadata: dict[str, Any] = fields.pop("metadata")
    if _NODE_KEY in metadata:
        raise ValueError("it has a reserved name")
    for elsewhere in ("embedding", "text"):
        fields.pop(elsewhere, None)
    kind = stored.get("_node_type")
    fields["class_name"] = kind if kind in _NODES else "TextNode"  # as LlamaIndex reads it
    if kind in _WITH_RESOURCE:
        fields["text_resource"] = {"text": text}
    cut_from = fields.get("relationships", {}).get(_SOURCE)
    return {**metadata, _NODE_KEY: fields}, cut_from and cut_from["node_id"]


async def open_source(
    connection: Any, asked: Asked, *, metric: Metric, dimension: int | None
) -> Source:
    """Find out what a table is, and whether an index can take its vectors.

    Args:
        connection: To the database of both.
        asked: What the caller says of it.
        metric: Of the index.
        dimension: Of the index; None if it has none yet.

    Raises:
        DimensionMismatch: Its vectors do not fit.
        InvalidInput: It is not there, or none that is known, or made for another metric.
    """
    table = asked.table
    oid, columns, primary = await _catalog(connection, asked)
    key = f"source.{_quoted(primary['attname'])}"  # alone, ORDER BY would take the text of it
    layout = _layout(table, columns, key, asked.columns)
    embedding = columns[layout.vector]
    kind = _VECTORS.get(embedding["typname"])
    if kind is None:
        raise InvalidInput(
            f"The column {layout.vector!r} of the table {table!r} is of the type "
            f"{embedding['typname']}.",
            fix="Name a column of the type vector or halfvec: embedding_column=...",
        )
    await _check_metric(connection, oid, table, layout.vector, metric)
    where, parameters = "TRUE", tuple[Any, ...]()
    if layout.collections:
        where = "collection_id = $1::text::uuid"
        parameters = (await _collection(connection, asked),)
    within = f"FROM {_quoted(asked.schema)}.{_quoted(table)} source WHERE {where}"

    async def values(select: str) -> list[Any]:
        return [row[0] for row in await connection.fetch(select, *parameters)]

    vector = _quoted(layout.vector)
    if embedding["atttypmod"] > 0:
        found = [embedding["atttypmod"]]
    elif dimension is not None:
        found = [dimension]  # the rows of any other one are left out
    else:
        found = await values(f"SELECT DISTINCT vector_dims({vector}) {within} AND {vector} NOTNULL")
    _check_dimension(table, found, dimension)
    again = f"AND {layout.id} NOTNULL GROUP BY 1 HAVING count(*) > 1"
    repeated = (
        await values(f"SELECT {layout.id}::text {within} {again}") if layout.id != key else ()
    )
    typed = [name for name in layout.columns if columns[name]["typname"] not in _NO_METADATA]
    fields = [
        f"{key}::text", f"{layout.id}::text", _quoted(layout.text), layout.metadata, vector,
        *(_value(name, columns[name]["typname"]) for name in typed),
    ]  # fmt: skip
    return Source(
        name=table,
        rows=(await values(f"SELECT count(*) {within}"))[0],
        kind=kind,
        dimension=found[0] if found else 0,
        repeated=frozenset(repeated),
        nodes=layout.nodes,
        columns={name: columns[name]["typname"] in _JSON for name in typed},
        select=f"SELECT {', '.join(fields)} {within}",
        key=key,
        key_type=primary["type"],
        parameters=parameters,
    )


async def _catalog(connection: Any, asked: Asked) -> tuple[int, dict[str, Any], Any]:
    """Return the id of a table, its columns by name, and the one which is its primary key."""
    oid = await connection.fetchval(
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE nspname = $1 AND relname = $2 AND relkind IN ('r', 'p')",
        asked.schema, asked.table,
    )  # fmt: skip
    if oid is None:
        raise InvalidInput(
            f"There is no table {asked.table!r} in the schema {asked.schema!r}.",
            fix="Check the name; LlamaIndex puts data_ before the one that it was given.",
        )
    rows = await connection.fetch(
        "SELECT attname, typname, atttypmod, format_type(atttypid, NULL) AS type, "
        "COALESCE(attnum = ANY(indkey), FALSE) AS key "
        "FROM pg_attribute JOIN pg_type t ON t.oid = atttypid "
        "LEFT JOIN pg_index ON indrelid = attrelid AND indisprimary "
        "WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        oid,
    )
    keys = [row for row in rows if row["key"]]
    if len(keys) != 1:
        raise InvalidInput(
            f"The table {asked.table!r} has no primary key of one column, so it cannot be read in "
            "parts.",
            fix="Give it one: ALTER TABLE ... ADD PRIMARY KEY (...).",
        )
    return oid, {row["attname"]: row for row in rows}, keys[0]


def _layout(table: str, columns: Mapping[str, Any], key: str, names: Columns) -> _Layout:
    if {"collection_id", "document", "cmetadata", "embedding"} <= columns.keys():
        older = "COALESCE(NULLIF(custom_id, ''), uuid::text)"
        id_ = older if "custom_id" in columns else key
        return _Layout(id_, "document", "cmetadata::text", "embedding", collections=True)
    if {"text", "metadata_", "node_id", "embedding"} <= columns.keys():
        return _Layout("node_id", "text", "metadata_::text", "embedding", nodes=True)
    named = [names.content, names.embedding, *(names.metadata or ())]
    if names.id is not None:
        named.append(names.id)
    missing = [repr(name) for name in named if name not in columns]
    if missing:
        raise InvalidInput(
            f"The table {table!r} has no column {', '.join(missing)}, so it is none that "
            "LangChain or LlamaIndex make.",
            fix="Check the name of the table, or name its columns: content_column=..., "
            "embedding_column=..., metadata_columns=[...].",
        )
    id_ = f"source.{_quoted(names.id)}" if names.id else key
    taken = {names.metadata_json, names.content, names.embedding}
    rest = [n for n in columns if n not in taken and f"source.{_quoted(n)}" not in (id_, key)]
    return _Layout(
        id_,
        names.content,
        f"{_quoted(names.metadata_json)}::text" if names.metadata_json in columns else "NULL",
        names.embedding,
        rest if names.metadata is None else names.metadata,
    )


async def _check_metric(connection: Any, oid: int, table: str, column: str, metric: Metric) -> None:
    """Refuse a table whose vectors have indexes, and none for this metric."""
    rows = await connection.fetch(
        "SELECT opcname FROM pg_index JOIN pg_opclass o ON o.oid = ANY(indclass) "
        "JOIN pg_attribute a ON attrelid = indrelid AND attnum = ANY(indkey) "
        "WHERE indrelid = $1 AND attname = $2",
        oid, column,
    )  # fmt: skip
    kinds = {row["opcname"].partition("_")[2] for row in rows}
    found = [str(_METRICS[kind]) for kind in sorted(kinds & _METRICS.keys())]
    if found and metric not in found:
        raise InvalidInput(
            f"The vectors of the table {table!r} are indexed for the metric {found[0]!r}, and this "
            f"index compares by {str(metric)!r}. Nothing was changed.",
            fix=f'Make the index with metric="{found[0]}", or drop that index of the table.',
        )


async def _collection(connection: Any, asked: Asked) -> str:
    """Return the id of a collection."""
    rows = await connection.fetch(
        f"SELECT uuid::text, name FROM {_quoted(asked.schema)}.{_quoted(_COLLECTIONS)} ORDER BY 2"
    )
    found = [row["uuid"] for row in rows if asked.collection in (None, row["name"])]
    if len(found) != 1:
        held = ", ".join(repr(row["name"]) for row in rows) or "none"
        raise InvalidInput(
            f"The table {asked.table!r} holds these collections: {held}.",
            fix="Name one of them: collection=...",
        )
    return str(found[0])


def _check_dimension(table: str, found: Sequence[int], wanted: int | None) -> None:
    if len(found) > 1:
        raise DimensionMismatch(
            f"The table {table!r} holds vectors of the dimensions "
            f"{', '.join(map(str, sorted(found)))}.",
            fix="Make the index with dimension=; vectors of any other one are left out.",
        )
    if wanted is not None and list(found) != [wanted]:
        raise DimensionMismatch(
            f"The table {table!r} holds vectors of dimension {found[0]}, the index of {wanted}. "
            "Nothing was changed.",
            fix="Adopt it into a new index, with the embedding model that made its vectors.",
        )


def _value(name: str, kind: str) -> str:
    """Return the SQL for a column of metadata, as a type that metadata may have."""
    if kind in _PLAIN:
        return _quoted(name)
    return f"{_quoted(name)}::{'float8' if kind == 'numeric' else 'text'}"


def _quoted(name: str) -> str:
    """Quote a name of the catalog, which may be any."""
    return '"{}"'.format(name.replace('"', '""'))
