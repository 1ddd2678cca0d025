"""Search by dense and sparse vectors in PostgreSQL, with the pgvector extension."""

from __future__ import annotations

from typing import Literal

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC
from ragopt.errors import InvalidInput
from ragopt.indexes._pgadopt import Adopting
from ragopt.indexes._pgschema import Schema
from ragopt.indexes._pgsearch import EF_SEARCH
from ragopt.indexes._pgtext import PgText
from ragopt.indexes._pgvectors import (
    DENSE_TYPES,
    SPARSE_ENTRIES,
)
from ragopt.indexes._postgres import Postgres
from ragopt.types import Metric


class PgvectorIndex(Adopting, PgText):
    """Records in a PostgreSQL table, found by the distance of their vectors.

    The table and its HNSW index are made when the dimension is known: at the first use, or at the
    first ``add``. The table ``ragopt_index`` of the same schema keeps the version, dimension and
    metric of every index. Each event loop has a pool of connections, and all sync calls of the
    process share a thread.

    A search with an HNSW index is approximate. When it finds fewer than ``k`` records, which a
    narrow filter may cause, the search is made again without the index, and that is exact. So is
    every search with ``index="none"``. Zero vectors are not in an HNSW index on cosine distance:
    a search that comes to scores below theirs, which is 0, is made again as well. Changes of one
    index wait for each other.

    Sparse vectors stand in a column of their own. Of one with more than 16,000 entries, or 1,000
    with ``sparse_index="hnsw"``, those of the lowest weights are left out, with a
    ``PruningWarning``. A table that was made before there was such a column gets it when it is
    opened.

    A filter is checked by PostgreSQL and again on what it returns. ``text_match`` without regard
    to case, and the order of text that PostgreSQL cannot hold, are decided in Python over the
    records that the rest of the filter leaves.

    Args:
        dsn: ``postgresql://user:password@host:5432/database``.
        table: Name of the table; made if it is not there.
        dimension: Length of the vectors; None to take it from the table or the first record.
        metric: ``cosine``, ``ip`` or ``l2``.
        index: ``"hnsw"`` for approximate search, ``"none"`` for exact search.
        sparse_index: The same for sparse vectors; used when the table is made. Without it every
            record is looked at, which is as fast up to some ten thousand.
        precision: ``"float32"``, or ``"float16"`` for half the space (``halfvec``); None for what
            the table has, and in a new one float32, or float16 where the dimension is above the
            2,000 that an HNSW index takes in float32.
        m: Links of a node of the HNSW graph; used when the table is made.
        ef_construction: Candidates while the graph is built; used when the table is made.
        ef_search: Candidates of a search, at least ``k``: more find more and take longer.
        text_search: Keep the terms of the texts, which a search ``by="text"`` needs; used when the
            table is made. ``enable_text_search`` gives them to a table that is there.
        schema: The schema of the table; it must exist.
        max_connections: Bound on the connections of each pool.
        timeout: Seconds to wait for a connection, or for other searches on the same event loop.
        command_timeout: Seconds to wait for each statement, and for each 1,000 records of one that
            writes; None for as long as it takes.
        statement_cache_size: Prepared statements that a connection keeps. None for 100 on a direct
            connection, and for 0 where a pooler such as pgbouncer stands between.

    Raises:
        MissingDependency: asyncpg is not installed.
        InvalidInput: The DSN or a name cannot be used, or an option is out of its range. From
            the first operation: the table has another metric.
        DimensionMismatch: From the first operation: the table has another dimension.
        BackendUnavailable: From every operation: the server could not be reached, or did not
            answer in time.
        StorageError: From every operation: the server refused it. The sentence says why.
    """

    def __init__(
        self,
        dsn: str,
        table: str,
        dimension: int | None = None,
        *,
        metric: Metric | str = Metric.COSINE,
        index: Literal["hnsw", "none"] = "hnsw",
        sparse_index: Literal["hnsw", "none"] = "none",
        precision: Literal["float32", "float16"] | None = None,
        m: int = 16,
        ef_construction: int = 64,
        ef_search: int = 100,
        text_search: bool = False,
        schema: str = "public",
        max_connections: int = 10,
        timeout: float = 5.0,
        command_timeout: float | None = 60.0,
        statement_cache_size: int | None = None,
    ) -> None:
        metric = Metric(metric)
        _check_index(index, m, ef_construction, ef_search)
        _check_index(sparse_index, m, ef_construction, ef_search)
        if precision is not None and precision not in DENSE_TYPES:
            raise InvalidInput(
                f"{precision!r} is no precision.", fix=f"Use one of: {', '.join(DENSE_TYPES)}."
            )
        super().__init__(
            Postgres(
                dsn,
                purpose=f"the table {table!r}",
                max_connections=max_connections,
                timeout=timeout,
                command_timeout=command_timeout,
                statement_cache_size=statement_cache_size,
                session=f"SET hnsw.ef_search = {ef_search:d}",
            ),
            Schema(
                schema,
                table,
                metric=metric,
                index=index,
                sparse_index=sparse_index,
                precision=precision,
                m=m,
                ef_construction=ef_construction,
                text_search=text_search,
            ),
            dimension,
            metric=metric,
            index=index,
            sparse_index=sparse_index,
            ef_search=ef_search,
        )
        self._patience = timeout

    def __repr__(self) -> str:
        return (
            f"PgvectorIndex(table={self._schema.name!r}, dimension={self._dimension}, "
            f"metric={str(self._metric)!r})"
        )

    def drop(self) -> None:
        """Remove the table and what is kept of it elsewhere. A missing one is no error."""
        run(self._postgres.run(SYNC, self._drop))

    async def adrop(self) -> None:
        """Remove the table and what is kept of it elsewhere. A missing one is no error."""
        await self._postgres.run(ASYNC, self._drop)


def _check_index(index: str, m: int, ef_construction: int, ef_search: int) -> None:
    if index not in SPARSE_ENTRIES:
        raise InvalidInput(f"{index!r} is not an index.", fix='Use "hnsw" or "none".')
    if not (2 <= m <= 100 and 2 * m <= ef_construction <= 1000 and 1 <= ef_search <= EF_SEARCH):
        raise InvalidInput(
            f"An HNSW index was given m={m}, ef_construction={ef_construction} and "
            f"ef_search={ef_search}.",
            fix="Give m from 2 to 100, ef_construction from 2 * m to 1000, ef_search up to 1000.",
        )
