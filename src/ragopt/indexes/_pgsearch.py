"""Searching the table of an index in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import numpy as np

from ragopt._runtime import ASYNC, Runtime
from ragopt.filters import Filter, Ids, Predicate
from ragopt.fusion import Way
from ragopt.indexes._pgindexes import EF_SEARCH, bits_of
from ragopt.indexes._pgjson import Condition, load_metadata
from ragopt.indexes._pgschema import Schema
from ragopt.indexes._pgtable import PgTable, fields, predicate
from ragopt.indexes._pgvectors import SPARSE_ENTRIES, pack_dense, pack_sparse
from ragopt.indexes._postgres import Postgres
from ragopt.indexes._searching import How
from ragopt.indexes.scores import relevance, sparse_relevance
from ragopt.types import Dense, EmbeddingBatch, Hit, Metric, SparseVector

_PROBES = 32  # lists to look into where their number is not known: the root of 1,000
_MOST_PROBES = 20  # about as many records as pgvector goes on to in an HNSW index
# The square root of the number of lists, as pgvector's manual has it.
_PROBED = (
    "COALESCE((SELECT ceil(sqrt(max(option_value::integer)))::text FROM pg_index "
    "JOIN pg_class ON pg_class.oid = indexrelid, pg_options_to_table(reloptions) "
    "WHERE indrelid = '{}'::regclass AND option_name = 'lists'), {})"
)
# Operator, and what a distance is subtracted from to make a score.
_METRICS = {Metric.COSINE: ("<=>", 1.0), Metric.IP: ("<#>", 0.0), Metric.L2: ("<->", 0.0)}


class PgSearch(PgTable):
    """What ``PgvectorIndex`` does, without its options.

    Args:
        postgres: Connections to the database.
        schema: The table.
        dimension: Length of the vectors; None to take it from the table or the first record.
    """

    def __init__(self, postgres: Postgres, schema: Schema, dimension: int | None) -> None:
        super().__init__(postgres, schema, dimension)
        self._options = schema.options
        self._operator, self._nearest_score = _METRICS[self._metric]

    async def _search(
        self,
        io: Runtime,
        queries: Dense,
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        farthest = None if min_score is None else self._nearest_score - min_score
        if self._metric is Metric.COSINE:
            queries = _of_one_size(queries)
        found = await self._run(io, self._nearest, queries, k, where, farthest, embeddings)
        passes, metric = predicate(where), self._metric
        return [
            self._hits(rows, self._nearest_score, relevance(metric, query), min_score, passes)
            for rows, query in zip(found, queries, strict=True)
        ]

    async def _search_sparse(
        self,
        io: Runtime,
        queries: Sequence[SparseVector],
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        found = await self._run(io, self._heaviest, queries, k, where, embeddings)
        return self._sparse_hits(found, queries, where, min_score)

    def _sparse_hits(
        self,
        found: list[list[Any]],
        queries: Sequence[SparseVector],
        where: Filter | None,
        min_score: float | None,
    ) -> list[list[Hit]]:
        passes = predicate(where)
        return [
            self._hits(rows, 0.0, sparse_relevance(query), min_score, passes)
            for rows, query in zip(found, queries, strict=True)
        ]

    async def _counts(self, io: Runtime, key: str, where: Filter | None) -> list[tuple[Any, int]]:
        return await self._run(io, self._count_values, key, where)

    async def _legs(
        self,
        io: Runtime,
        ways: Sequence[Way],
        queries: EmbeddingBatch,
        texts: Sequence[str] | None,
        how: How,
    ) -> list[list[list[Hit]]]:
        # The statements of a sync call run on an event loop too: there they go out together.
        return await self._postgres.run(io, super()._legs, ASYNC, ways, queries, texts, how)

    # -- what runs on an event loop ----------------------------------------------------------

    @asynccontextmanager
    async def _searching(
        self, connection: Any, queries: int, where: Filter | None, first: int = 2
    ) -> AsyncIterator[Condition]:
        """Give the condition on records; ``first`` is the number of its first parameter.

        All queries of a batch see the same records, as the one statement of a single query does.
        """
        condition = Condition(where, first=first)
        snapshot = connection.transaction(isolation="repeatable_read", readonly=True)
        async with snapshot if queries > 1 or not condition.exact else nullcontext():
            if not condition.exact and self._ready:
                condition = Condition(Ids(await self._matching(connection, where)), first=first)
            yield condition

    async def _count_values(self, key: str, where: Filter | None) -> list[tuple[Any, int]]:
        async with (
            self._connection() as connection,
            self._searching(connection, 1, where) as condition,
        ):
            if not self._ready:
                return []
            rows = await connection.fetch(
                "SELECT jsonb_build_object('value', value), count(*) "
                f"FROM (SELECT metadata -> $1::text AS value FROM {self._table} "
                f"WHERE {condition.sql}) AS records WHERE value IS NOT NULL GROUP BY value",
                key,
                *condition.parameters,
            )
        return [(load_metadata(text)["value"], number) for text, number in rows]

    async def _nearest(
        self,
        queries: Dense,
        k: int | None,
        where: Filter | None,
        farthest: float | None,
        embeddings: bool,
    ) -> list[list[Any]]:
        async with (
            self._connection() as connection,
            self._searching(connection, len(queries), where) as condition,
        ):
            self._check_known(queries.shape[1], "query")
            if not self._ready:
                return [[] for _ in queries]
            narrow = where is not None
            return [
                await self._fetch_nearest(
                    connection, query, k, condition, farthest, embeddings, narrow
                )
                for query in queries
            ]

    async def _fetch_nearest(
        self,
        connection: Any,
        query: Dense,
        k: int | None,
        condition: Condition,
        farthest: float | None,
        embeddings: bool,
        narrow: bool,
    ) -> list[Any]:
        kind, asked = self._schema.dense, f"$1::{self._schema.dense.name}"
        near = f"embedding {self._operator} {asked}"
        # A cosine with a zero vector is NaN; here it counts as 0. And an expression round the
        # operator keeps the planner from using an index.
        exact = f"COALESCE(NULLIF({near}, 'NaN'), 1)"

        async def fetch(distance: str, within: str = "TRUE", named: str = "") -> list[Any]:
            records = f"{self._table} WHERE {condition.sql} AND {within}"
            rows: list[Any] = await connection.fetch(
                # The same expression twice, so that the server computes it once.
                f"SELECT {fields(embeddings)}, {distance} AS distance "
                f"FROM {named.format(records) or records} ORDER BY {distance}, seq {_limit(k)}",
                *pack_dense(query[None, :], kind),
                *condition.parameters,
            )
            return rows

        if k is None and farthest is not None:
            # A little more, for what is lost between a distance and a score; scores decide.
            return await fetch(exact, f"{exact} <= {farthest + 1e-6 * (1 + abs(farthest))!r}")
        if k is not None and self._options.index != "none" and query.any():
            if self._schema.kind == "hnsw, bit":
                most = k * self._options.rescore
                bits, signs = (bits_of(each, len(query)) for each in ("embedding", asked))
                named = f"(SELECT * FROM {{}} ORDER BY {bits} <~> {signs} LIMIT {most:d}) AS named"
                rows = await fetch(exact, self._tuned(most, narrow, "relaxed_order"), named)
            else:
                rows = await fetch(near, self._tuned(k, narrow))
            # Zero vectors are not in an index, and without it they come last, as NaN.
            if len(rows) == k and (
                self._metric != Metric.COSINE or all(row["distance"] <= 1 for row in rows)
            ):
                # What comes from further lists of an IVFFlat index may be nearer.
                return sorted(rows, key=lambda row: float(row["distance"]))
        return await fetch(exact)

    async def _heaviest(
        self,
        queries: Sequence[SparseVector],
        k: int | None,
        where: Filter | None,
        embeddings: bool,
    ) -> list[list[Any]]:
        async with (
            self._connection() as connection,
            self._searching(connection, len(queries), where) as condition,
        ):
            if not self._ready:
                return [[] for _ in queries]
            tuned = self._tuned(k, True) if self._schema.sparse_kind == "hnsw" else "TRUE"
            how = self._by_product("sparse", condition, k, embeddings, tuned)
            return [
                await connection.fetch(how, query, *condition.parameters)
                for query in pack_sparse(queries, SPARSE_ENTRIES["none"])
            ]

    def _by_product(
        self, column: str, condition: Condition, k: int | None, embeddings: bool, within: str
    ) -> str:
        """Return a statement for the records of the highest products with ``$1``, above 0."""
        distance = f"{column} <#> $1::sparsevec"
        return (
            f"SELECT {fields(embeddings)}, {distance} AS distance FROM {self._table} "
            f"WHERE {condition.sql} AND {distance} < 0 AND {within} "
            f"ORDER BY {distance}, seq {_limit(k)}"
        )

    def _tuned(self, k: int | None, narrow: bool, order: str = "strict_order") -> str:
        """Return a condition that is true, and sets how the statement it stands in searches.

        PostgreSQL evaluates it once, before the scan begins, and the settings end with the
        transaction. So they cost no round trip, and no pooler hands them on.

        Args:
            k: How many records are wanted.
            narrow: Whether a condition leaves out candidates.
            order: In which they have to come, ``"relaxed_order"`` if they are sorted after that.
        """
        if k is None:
            return "TRUE"
        ef_search = min(max(self._options.ef_search, k), EF_SEARCH)
        # To be able to go on searching takes a tenth of the time; it is for want of candidates,
        # which deleted rows may cause too.
        going_on = order if narrow or 2 * k > ef_search else "off"
        # Its kind may be another one by now, if another process made it anew.
        probes = f"'{self._options.probes or _PROBES:d}'"
        if self._schema.kind != "hnsw" and self._options.probes is None:
            probes = _PROBED.format(self._table, probes)
        return (
            f"(SELECT set_config('hnsw.ef_search', '{ef_search:d}', true) || "
            f"set_config('hnsw.iterative_scan', '{going_on}', true) || "
            f"set_config('ivfflat.probes', {probes}, true) || "
            f"set_config('ivfflat.max_probes', '{_MOST_PROBES}', true) || "
            "set_config('ivfflat.iterative_scan', 'relaxed_order', true) <> '')"
        )

    def _hits(
        self,
        rows: list[Any],
        nearest_score: float,
        relevant: Callable[[float], float],
        min_score: float | None,
        passes: Predicate,
    ) -> list[Hit]:
        hits = []
        for row in rows:
            score = nearest_score - float(row["distance"])
            if min_score is not None and score < min_score:
                continue
            values = self._values(row, passes)
            if values is not None:
                hits.append(Hit(score=score, relevance=relevant(score), **values))
        return hits


def _of_one_size(queries: Dense) -> Dense:
    """Bring the largest number of each query to [0.5, 1), by a power of 2, so that nothing is lost.

    A cosine is the same for any length, but the server adds up squares in single precision.
    """
    _, exponents = np.frexp(np.abs(queries).max(axis=1))
    return np.asarray(np.ldexp(queries, -exponents[:, None]))


def _limit(k: int | None) -> str:
    return "" if k is None else f"LIMIT {k:d}"
