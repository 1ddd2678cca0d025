"""The terms of texts in PostgreSQL, and how many records hold each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ragopt.errors import PruningWarning
from ragopt.indexes._pgvectors import SPARSE_DIMENSION, SPARSE_ENTRIES, pack_pruned, unpack_sparse
from ragopt.indexes._postgres import quoted
from ragopt.text import term_vector

TERM_COLUMNS = ("terms", "term_ids")
DEFINED = (f"terms sparsevec({SPARSE_DIMENSION})", "term_ids integer[]")
COUNTS = "ragopt_terms"  # one row for each term of each index of a schema
_MOST = SPARSE_ENTRIES["none"]
_NAMED = 5  # records that a warning names
_ALL = -1  # in the place of a term: all records


def packed_terms(ids: Sequence[str], texts: Sequence[str]) -> list[tuple[bytes, list[int]]]:
    """Return what is stored of each record's text: the weights of its terms, and the terms."""
    rows, lost = pack_pruned([term_vector(text) for text in texts], _MOST)
    named = [repr(id_) for id_, share in zip(ids, lost, strict=True) if share]
    if named:
        more = f" and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
        warnings.warn(
            f"The text of the record {', '.join(named[:_NAMED])}{more} has more than {_MOST:,} "
            "different words. A search by text does not find it by those that stand least often "
            f"in it, which make up to {max(lost):.1%} of its weight. Part the text to have all.",
            PruningWarning,
            stacklevel=2,
        )
    return [(row, unpack_sparse(row).indices.tolist()) for row in rows]


class TermCounts:
    """How many records of an index hold each term.

    Every change keeps it right. To count when a query asks would be to read every record that
    holds one of its terms, since a GIN index cannot be counted by itself.

    Args:
        schema: The schema of the table of counts, which all indexes of it share.
        name: Name of the index.
    """

    def __init__(self, schema: str, name: str) -> None:
        quoted(name)  # or else refuses it: the name stands in statements
        self._name = name
        self._table = f"{quoted(schema)}.{quoted(COUNTS)}"

    async def create(self, connection: Any) -> None:
        """Make the table of counts, if it is not there."""
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self._table} (name text, term integer, "
            "records bigint NOT NULL, PRIMARY KEY (name, term))"
        )

    async def clear(self, connection: Any) -> None:
        """Count from nothing."""
        await connection.execute(f"DELETE FROM {self._table} WHERE name = $1", self._name)

    async def read(self, connection: Any, terms: Sequence[int]) -> tuple[int, list[int]]:
        """Return the number of records, and how many of them hold each term."""
        found = dict(
            await connection.fetch(
                f"SELECT term, records FROM {self._table} WHERE name = $1 AND term = ANY($2)",
                self._name, [_ALL, *terms],
            )
        )  # fmt: skip
        return found.get(_ALL, 0), [found.get(term, 0) for term in terms]

    async def size(self, connection: Any) -> int:
        """Return the bytes of what is counted, without the index on it."""
        found = await connection.fetchval(
            f"SELECT COALESCE(sum(pg_column_size(counts.*)), 0) FROM {self._table} AS counts "
            "WHERE name = $1",
            self._name,
        )
        return int(found)

    def change(self, more: str | None = None, less: str | None = None) -> str:
        """Return a statement that counts rows that come and go.

        Args:
            more: What follows ``FROM`` in a query for rows that come.
            less: The same for rows that go.
        """
        each = [
            f"SELECT unnest(term_ids || {_ALL}) AS term, {sign} AS sign FROM {rows}"
            for rows, sign in ((more, 1), (less, -1))
            if rows is not None
        ]
        return (
            f"INSERT INTO {self._table} AS counts "
            f"SELECT '{self._name}', term, sum(sign) FROM ({' UNION ALL '.join(each)}) AS each "
            "GROUP BY term HAVING sum(sign) <> 0 "
            "ON CONFLICT (name, term) DO UPDATE SET records = counts.records + EXCLUDED.records"
        )
