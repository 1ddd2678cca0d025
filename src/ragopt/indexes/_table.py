"""Texts and metadata beside the vectors, in rows that never move until they are packed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragopt.codecs import decode_multi, decode_sparse, encode_sparse
from ragopt.errors import CorruptData
from ragopt.filters import And, Filter, Ids, compile_filter
from ragopt.indexes._late import half_precision
from ragopt.indexes._postings import Postings
from ragopt.text import term_vector
from ragopt.types import Dense, Embedding, RecordBatch, SparseVector

Rows = NDArray[np.int64]

_READ = 10_000  # texts whose terms are in memory as objects at a time


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
        self.multi: list[bytes | None] = []  # encoded in half precision
        self.postings = Postings()
        self.terms: Postings | None = None  # of the texts, from the first search by text on
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

    @property
    def nbytes(self) -> int:
        """Bytes of sparse vectors, multi-vectors and postings."""
        kept = sum(len(each) for each in (*self.sparse, *self.multi) if each is not None)
        return kept + self.postings.nbytes + (self.terms.nbytes if self.terms else 0)

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
        multi = batch.embeddings.multi
        self.multi.extend([None] * size if multi is None else map(half_precision, multi))
        self.postings.append(start, vectors or [])
        if self.terms is not None:
            self.terms.append(start, [term_vector(text) for text in batch.texts])
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

    def read_texts(self) -> Postings:
        """Return the terms of all texts, which are read at the first call."""
        if self.terms is None:
            self.terms = Postings()
            for start in range(0, len(self), _READ):
                texts = self.texts[start : start + _READ]
                self.terms.append(start, [term_vector(text) for text in texts])
        return self.terms

    def holding(self, terms: Sequence[int]) -> list[int]:
        """Return how many records hold each term."""
        return self.read_texts().holding(terms, self._alive)

    def sparse_vector(self, row: int) -> SparseVector | None:
        """Return the sparse vector of a row, if it has one."""
        encoded = self.sparse[row]
        return None if encoded is None else decode_sparse(encoded)

    def embedding(self, row: int, dense: Dense) -> Embedding:
        """Return all vectors of a row, of which the dense one is kept elsewhere."""
        multi = self.multi[row]
        return Embedding(
            dense, self.sparse_vector(row), None if multi is None else decode_multi(multi)
        )

    def remove(self, rows: Rows) -> None:
        """Turn rows into gaps."""
        for row in rows.tolist():
            del self.row_of[self.ids[row]]
        self._forget(rows.tolist())

    def _forget(self, rows: list[int]) -> None:
        for row in rows:
            # What was removed must not stay in memory, let alone be found in a dump of it.
            self.texts[row], self.metadatas[row] = "", {}
            self.document_ids[row] = self.sparse[row] = self.multi[row] = None
        self._alive[rows] = False

    def packed(self) -> tuple[RecordTable, Rows]:
        """Return a table without the gaps, and the rows that are in it, in order."""
        kept = self.select(None)
        columns = self.columns().items()
        packed = RecordTable._of({name: [column[row] for row in kept] for name, column in columns})
        packed.postings = self.postings.packed(kept, len(self))
        packed.terms = self.terms and self.terms.packed(kept, len(self))
        return packed, kept

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns, gaps included."""
        return {
            "ids": self.ids,
            "texts": self.texts,
            "metadatas": self.metadatas,
            "document_ids": self.document_ids,
            "sparse": self.sparse,
            "multi": self.multi,
        }

    @classmethod
    def from_columns(cls, columns: dict[str, list[Any]]) -> RecordTable:
        """Build a table without gaps.

        Raises:
            CorruptData: The columns differ in length, or an id stands in two rows.
        """
        table = cls._of(columns)
        table.postings.append(0, [table.sparse_vector(row) for row in range(len(table))])
        return table

    @classmethod
    def _of(cls, columns: dict[str, list[Any]]) -> RecordTable:
        table = cls()
        table.ids, table.texts = columns["ids"], columns["texts"]
        table.metadatas, table.document_ids = columns["metadatas"], columns["document_ids"]
        size = len(table.ids)
        # Indexes that were saved before there were such vectors have no columns for them.
        table.sparse = columns.setdefault("sparse", [None] * size)
        table.multi = columns.setdefault("multi", [None] * size)
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
