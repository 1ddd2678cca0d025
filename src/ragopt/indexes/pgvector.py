"""Search by dense and sparse vectors in PostgreSQL, with the pgvector extension."""

from __future__ import annotations

from typing import Literal

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC
from ragopt.errors import InvalidInput
from ragopt.indexes._pgadopt import Adopting
from ragopt.indexes._pgindexes import IndexOptions
from ragopt.indexes._pgschema import Schema
from ragopt.indexes._pgtext import PgText
from ragopt.indexes._pgvectors import DENSE_TYPES
from ragopt.indexes._postgres import Postgres
from ragopt.types import Metric


class PgvectorIndex(Adopting, PgText):
    """Records in a PostgreSQL table, found by the distance of their vectors.

    The table is made when the dimension is known: at the first use, or at the first ``add``; with
    it an HNSW index, if there is to be one. The table ``ragopt_index`` of the same schema keeps the
    version, dimension and metric of every index. Each event loop has a pool of connections, and all
    sync calls of the process share a thread.

    A search with an index is approximate. When it finds fewer than ``k`` records, which a narrow
    filter may cause, the search is made again without the index, and that is exact. So is every
    search with ``index="none"``, whatever the table has. Zero vectors are not in an index on cosine
    distance: a search that comes to scores below theirs, which is 0, is made again as well. Changes
    of one index wait for each other.

    An IVFFlat index has to see records before it can part them, so searches are exact until there
    are 10,000, or 50 for each of ``lists``. The ``add`` that brings them makes it. Lists that were
    not given follow the records: one for each 1,000, and above a million their square root. An
    ``add`` that finds that there should be four times as many makes the index anew, while others
    go on. ``clear`` removes it.

    With ``quantization="bit"`` an HNSW index holds only the signs of the numbers: it names
    ``rescore * k`` candidates, and the same statement compares their vectors exactly.

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
        index: ``"hnsw"`` or ``"ivfflat"`` for approximate search, ``"none"`` for exact search;
            None for what the table has, and in a new one ``"hnsw"``. If it has another one than was
            asked for, that one is used, with a warning; ``reindex`` changes it.
        sparse_index: ``"hnsw"`` for an index on sparse vectors, used when the table is made.
            Without it every record is looked at, which is as fast up to some ten thousand.
        precision: ``"float32"``, or ``"float16"`` for half the space (``halfvec``); None for what
            the table has, and in a new one float32, or float16 where the dimension is above the
            2,000 that an index takes in float32.
        quantization: ``"bit"`` for an HNSW index on one bit of each number, a small one that takes
            up to 16,000 dimensions; not for the metric ``l2``.
        rescore: Candidates for each hit that are compared exactly, of an index on bits: more find
            more and take longer.
        m: Links of a node of the HNSW graph; used when the index is made.
        ef_construction: Candidates while the graph is built; used when the index is made.
        ef_search: Candidates of a search, at least ``k``: more find more and take longer.
        lists: Parts of an IVFFlat index, used when it is made; None for a number that follows the
            records.
        probes: Lists that a search looks into: more find more and take longer. None for the square
            root of their number.
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
        InvalidInput: The DSN or a name cannot be used, an option is out of its range, or two of
            them exclude each other. From the first operation: the table has another metric.
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
        index: Literal["hnsw", "ivfflat", "none"] | None = None,
        sparse_index: Literal["hnsw", "none"] = "none",
        precision: Literal["float32", "float16"] | None = None,
        quantization: Literal["bit"] | None = None,
        rescore: int = 10,
        m: int = 16,
        ef_construction: int = 64,
        ef_search: int = 100,
        lists: int | None = None,
        probes: int | None = None,
        text_search: bool = False,
        schema: str = "public",
        max_connections: int = 10,
        timeout: float = 5.0,
        command_timeout: float | None = 60.0,
        statement_cache_size: int | None = None,
    ) -> None:
        options = IndexOptions(
            metric=Metric(metric),
            index=index,
            sparse_index=sparse_index,
            quantization=quantization,
            rescore=rescore,
            m=m,
            ef_construction=ef_construction,
            ef_search=ef_search,
            lists=lists,
            probes=probes,
        )
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
            Schema(schema, table, options, precision=precision, text_search=text_search),
            dimension,
        )
        self._patience = timeout

    def __repr__(self) -> str:
        return (
            f"PgvectorIndex(table={self._schema.name!r}, dimension={self._dimension}, "
            f"metric={str(self._metric)!r})"
        )

    def reindex(self) -> None:
        """Make the indexes on the vectors anew, while others search and change the records.

        The dense one becomes what this object was made with: so a table gets another kind, other
        lists, or an index after its records, which is several times faster than one that grows
        with them. With ``index=None`` or ``"none"`` it stays what it is. It is also what an HNSW
        index needs after many deletes, and an IVFFlat index when other subjects have come in. The
        new index is made beside the old one, so that both need space, and it waits for
        transactions of the database that began before. Behind a pooler, writers have to wait.

        Other processes that have the table open should open it anew after its kind has changed:
        until then their searches are right, but may be slow.

        Raises:
            InvalidInput: There is no index, and none was asked for; or it does not take vectors
                of this dimension.
            StorageError: The server failed, the table was cleared or dropped meanwhile, or
                somebody else is at it.
        """
        run(self._run(SYNC, self._reindex))

    async def areindex(self) -> None:
        """Make the indexes on the vectors anew; see ``reindex``."""
        await self._run(ASYNC, self._reindex)

    def drop(self) -> None:
        """Remove the table and what is kept of it elsewhere. A missing one is no error."""
        run(self._postgres.run(SYNC, self._drop))

    async def adrop(self) -> None:
        """Remove the table and what is kept of it elsewhere. A missing one is no error."""
        await self._postgres.run(ASYNC, self._drop)
