"""Texts and metadata beside the vectors, in rows that never move until they are packed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragopt.codecs import decode_sparse, encode_sparse
from ragopt.errors import CorruptData
from ragopt.filters import And, Filter, Ids, compile_filter
from ragopt.indexes._postings import Postings
from ragopt.types import RecordBatch, SparseVector

Rows = NDArray[np.int64]


class RecordTable:
    """Columns of records. A row is the position of a record's vector in the vector index.

    A removed row stays as a gap, so positions hold; ``packed`` closes the gaps.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.metadatas: list[dict[str, Any]] = []
        self.document_ids: list[str | None] = []
        self.sparse: list[bytes | None] = []  # encoded, which is smaller than the objects
        self.postings = Postings()
        self.row_of: dict[str, int] = {}
        self._alive = np.zeros(1024, dtype=bool)

    def __len__(self) -> int:
        """Rows, gaps included."""
        return len(self.ids)

    @property
    def live(self) -> int:
        """Records."""
        return len(self.row_of)

    @property
    def gaps(self) -> int:
        """Rows without a record."""
        return len(self.ids) - len(self.row_of)

    def append(self, batch: RecordBatch) -> None:
        """Add rows at the end; the rows that had the same ids become gaps."""
        start, size = len(self.ids), len(batch)
        if start + size > len(self._alive):
            grown = np.zeros(max(2 * len(self._alive), start + size), dtype=bool)
            grown[:start] = self._alive[:start]
            self._alive = grown
        replaced = [row for id_ in batch.ids if (row := self.row_of.get(id_)) is not None]
        self.ids.extend(batch.ids)
        self.texts.extend(batch.texts)
        self.metadatas.extend(batch.metadatas)  # type: ignore[arg-type]
        self.document_ids.extend(batch.document_ids or [])
        vectors = batch.embeddings.sparse
        self.sparse.extend([None] * size if vectors is None else map(encode_sparse, vectors))
        self.postings.append(start, vectors or [])
        self._forget(replaced)
        self._alive[start : start + size] = True
        self.row_of.update(zip(batch.ids, range(start, start + size), strict=True))

    def select(self, where: Filter | None) -> Rows:
        """Return the rows of the records that match, ascending."""
        if where is None:
            return np.flatnonzero(self._alive[: len(self.ids)])
        rows: Iterable[int]
        named = _named_ids(where)
        if named is None:
            rows = np.flatnonzero(self._alive[: len(self.ids)]).tolist()
        else:
            rows = sorted(self.row_of[id_] for id_ in named if id_ in self.row_of)
        if not isinstance(where, Ids):
            match = compile_filter(where)
            ids, documents, metadatas = self.ids, self.document_ids, self.metadatas
            rows = [row for row in rows if match(ids[row], documents[row], metadatas[row])]
        return np.asarray(rows, dtype=np.int64)

    def sparse_vector(self, row: int) -> SparseVector | None:
        """Return the sparse vector of a row, if it has one."""
        encoded = self.sparse[row]
        return None if encoded is None else decode_sparse(encoded)

    def remove(self, rows: Rows) -> None:
        """Turn rows into gaps."""
        for row in rows.tolist():
            del self.row_of[self.ids[row]]
        self._forget(rows.tolist())

    def _forget(self, rows: list[int]) -> None:
        for row in rows:
            # What was removed must not stay in memory, let alone be found in a dump of it.
            self.texts[row], self.metadatas[row] = "", {}
            self.document_ids[row] = self.sparse[row] = None
        self._alive[rows] = False

    def packed(self) -> tuple[RecordTable, Rows]:
        """Return a table without the gaps, and the rows that are in it, in order."""
        kept = self.select(None)
        columns = self.columns().items()
        return RecordTable.from_columns(
            {name: [column[row] for row in kept] for name, column in columns}
        ), kept

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns, gaps included."""
        return {
            "ids": self.ids,
            "texts": self.texts,
            "metadatas": self.metadatas,
            "document_ids": self.document_ids,
            "sparse": self.sparse,
        }

    @classmethod
    def from_columns(cls, columns: dict[str, list[Any]]) -> RecordTable:
        """Build a table without gaps.

        Raises:
            CorruptData: The columns differ in length, or an id stands in two rows.
        """
        table = cls()
        table.ids, table.texts = columns["ids"], columns["texts"]
        table.metadatas, table.document_ids = columns["metadatas"], columns["document_ids"]
        size = len(table.ids)
        # Indexes that were saved before there were sparse vectors have no such column.
        table.sparse = columns.setdefault("sparse", [None] * size)
        table.postings.append(0, [table.sparse_vector(row) for row in range(len(table.sparse))])
        table.row_of = dict(zip(table.ids, range(size), strict=True))
        if {len(column) for column in columns.values()} != {size} or len(table.row_of) != size:
            raise CorruptData(
                "The records of an index do not fit together.", fix="Restore it from a copy."
            )
        table._alive = np.ones(max(size, 1024), dtype=bool)
        table._alive[size:] = False
        return table


def _named_ids(where: Filter) -> frozenset[str] | None:
    """Return the only ids that can match, if the filter names them; else None."""
    if isinstance(where, Ids):
        return where.values
    if isinstance(where, And):
        named = [ids for part in where.parts if (ids := _named_ids(part)) is not None]
        return frozenset.intersection(*named) if named else None
    return None


_IMMUTABLE = frozenset({str, int, float, bool, type(None)})  # the common ones


def copied(value: Any) -> Any:
    """Return a deep copy of stored metadata, which hold nothing but what ``codecs`` can encode."""
    kind = type(value)
    if kind is dict:
        return {k: v if type(v) in _IMMUTABLE else copied(v) for k, v in value.items()}
    if kind is list or kind is tuple:
        return kind(map(copied, value))
    return value
