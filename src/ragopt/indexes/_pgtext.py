"""Searching the texts of an index in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragopt._progress import Progress, tallied
from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput
from ragopt.filters import Filter
from ragopt.indexes._pgschema import Terms
from ragopt.indexes._pgsearch import PgSearch
from ragopt.indexes._pgterms import packed_terms
from ragopt.indexes._pgvectors import SPARSE_ENTRIES, pack_sparse
from ragopt.text import WeightedTerms, highest
from ragopt.types import Hit, SparseVector

_BATCH = 1_000
_REST = 0.4  # of the highest weight: what words that are nearly everywhere may weigh together


class PgText(PgSearch):
    """Search by the words of a text."""

    def enable_text_search(self, *, progress: Progress | bool = False) -> None:
        """Give a table that was made without ``text_search=True`` what a search by text needs.

        Every text is read, batch by batch, while others read and write. If it is interrupted,
        doing it again goes on from there; where all is done, nothing happens. Each row is written
        anew, so that an HNSW index takes its vector once more: a table of many rows should be
        vacuumed afterwards.

        Args:
            progress: Called after each batch with the records that are done and with all of them;
                True for a bar on stderr.

        Raises:
            StorageError: The server failed.
        """
        run(self._enable(SYNC, progress))

    async def aenable_text_search(self, *, progress: Progress | bool = False) -> None:
        """Give a table what a search by text needs; see ``enable_text_search``."""
        await self._enable(ASYNC, progress)

    async def _enable(self, io: Runtime, progress: Progress | bool) -> None:
        unread = await self._run(io, self._begin_reading)
        if unread is None:
            return
        after = ""
        with tallied(progress, unread, "reading texts") as tally:
            while rows := await self._postgres.run(io, self._read_texts, after):
                terms = await io.cpu(packed_terms, *zip(*rows, strict=True))
                each = [(*row, *of_text) for row, of_text in zip(rows, terms, strict=True)]
                await self._postgres.run(io, self._fill, each)
                after = rows[-1][0]
                if tally is not None:
                    tally.add(len(rows))
        await self._postgres.run(io, self._finish_reading)

    async def _search_terms(
        self,
        io: Runtime,
        queries: Sequence[WeightedTerms],
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        found = await self._run(io, self._best, queries, k, where, embeddings)
        return self._sparse_hits(found, queries, where, min_score)

    async def _frequencies(self, io: Runtime, terms: Sequence[int]) -> tuple[int, list[int]]:
        return await self._run(io, self._read_counts, terms)

    # -- what runs on an event loop ----------------------------------------------------------

    async def _read_counts(self, terms: Sequence[int]) -> tuple[int, list[int]]:
        async with self._connection() as connection:
            if not self._ready:
                return 0, [0] * len(terms)
            if self._schema.terms is not Terms.KEPT:
                await self._schema.open(connection, self._given)  # it may be there by now
            if self._schema.terms is not Terms.KEPT:
                raise InvalidInput(
                    f"The table {self._schema.name!r} does not keep the terms of its texts.",
                    fix="Call enable_text_search() once, or make it with text_search=True.",
                )
            return await self._schema.counts.read(connection, terms)

    async def _best(
        self,
        queries: Sequence[WeightedTerms],
        k: int | None,
        where: Filter | None,
        embeddings: bool,
    ) -> list[list[Any]]:
        async with (
            self._connection() as connection,
            self._searching(connection, len(queries), where, first=3) as condition,
        ):
            if not self._ready:
                return [[] for _ in queries]
            found = []
            for query in queries:
                (packed,) = pack_sparse([query], SPARSE_ENTRIES["none"])
                parameters, groups = condition.parameters, list(map(list, query.groups))
                if groups:
                    each = [2, *range(3 + len(parameters), 2 + len(parameters) + len(groups))]
                    held = " OR ".join(f"term_ids @> ${number}" for number in each)
                    how = self._by_product("terms", condition, k, embeddings, f"({held})")
                    rows = await connection.fetch(how, packed, groups[0], *parameters, *groups[1:])
                    found.append(rows)
                    continue
                how = self._by_product("terms", condition, k, embeddings, "term_ids && $2")
                rare, rest = _parted(query) if k is not None else (query, None)
                rows = await connection.fetch(how, packed, rare.indices.tolist(), *parameters)
                # What has none of the rare terms scores less than all others can add up to.
                if rest and (len(rows) != k or -rows[-1]["distance"] < highest(rest)):
                    rows = await connection.fetch(how, packed, query.indices.tolist(), *parameters)
                found.append(rows)
            return found

    async def _begin_reading(self) -> int | None:
        """Make the columns; return how many texts are to be read, None if nothing is to be done."""
        async with self._connection() as connection:
            self._schema.text_search = True
            if not self._ready:
                return None
            async with connection.transaction():
                await self._schema.alone(connection)
                known = await self._schema.lock(connection)
                if known is Terms.KEPT:
                    return None
                if known is Terms.NONE:
                    await self._schema.add_terms(connection)
            unread = f"SELECT count(*) FROM {self._table} WHERE terms IS NULL"
            return int(await connection.fetchval(unread))

    async def _read_texts(self, after: str) -> list[tuple[str, str]]:
        async with self._connection() as connection:
            rows = await connection.fetch(
                f"SELECT id, text FROM {self._table} WHERE id > $1 AND terms IS NULL "
                f"ORDER BY id LIMIT {_BATCH}",
                after,
            )
        return [tuple(row) for row in rows]

    async def _fill(self, rows: list[tuple[Any, ...]]) -> None:
        async with self._connection() as connection, connection.transaction():
            await connection.execute(
                "CREATE TEMP TABLE ragopt_texts (id text, text text, terms sparsevec, "
                "term_ids integer[]) ON COMMIT DROP"
            )
            await connection.copy_records_to_table("ragopt_texts", records=rows)
            await self._schema.lock(connection)
            # A record that was replaced meanwhile has its terms.
            await connection.execute(
                f"UPDATE {self._table} AS record SET terms = new.terms, term_ids = new.term_ids "
                "FROM ragopt_texts AS new WHERE record.id = new.id AND record.terms IS NULL"
            )

    async def _finish_reading(self) -> None:
        async with self._connection() as connection, connection.transaction():
            if await self._schema.lock(connection) is Terms.READ:
                await self._schema.index_terms(connection)


def _parted(query: SparseVector) -> tuple[SparseVector, SparseVector | None]:
    """Part the terms that decide from those that nearly every record holds.

    Few records hold the former, and they alone are looked at, as long as their scores prove that
    no other record can be among the best (Turtle and Flood, "Query evaluation: strategies and
    optimizations", Information Processing and Management 1995: MaxScore).
    """
    ascending = query.values[query.values.argsort()]
    light = int((ascending.cumsum() <= _REST * ascending[-1]).sum()) if len(query) else 0
    return query.prune(len(query) - light) if light else (query, None)
