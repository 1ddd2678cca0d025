"""Indexes on the vectors of a table in PostgreSQL: which are wanted, and which are there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal, NamedTuple

from ragopt.errors import InvalidInput
from ragopt.indexes._pgvectors import SPARSE_ENTRIES, DenseType, operator_class
from ragopt.types import Metric

EF_SEARCH = 1_000  # pgvector's bound
_LISTS = 32_768  # pgvector's bound, of probes too
_MILLION = 1_000_000
_FIRST = 10_000  # records from which lists are worth their while
_LEARNT = 50  # records that pgvector wants to see for each list
_GROWN = 4  # how many times as many lists would be right now
_BITS = "bit_hamming_ops"
_RESCORED = 100  # candidates for each hit beyond which the exact search is as fast


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """What an index object was asked for; every option of the kinds is checked here.

    Args:
        metric: How dense vectors are compared.
        index: ``"hnsw"``, ``"ivfflat"`` or ``"none"``; None for what the table has.
        sparse_index: ``"hnsw"`` or ``"none"``, of a new table.
        quantization: ``"bit"``, or None.
        rescore: Candidates for each hit that is wanted, with bits.
        m: Links of a node of an HNSW graph.
        ef_construction: Candidates while the graph is built.
        ef_search: Candidates of a search in it.
        lists: Of an IVFFlat index; None for a number that follows the records.
        probes: Lists that a search looks into; None for the square root of their number.
    """

    metric: Metric
    index: Literal["hnsw", "ivfflat", "none"] | None
    sparse_index: Literal["hnsw", "none"]
    quantization: Literal["bit"] | None
    rescore: int
    m: int
    ef_construction: int
    ef_search: int
    lists: int | None
    probes: int | None

    def __post_init__(self) -> None:
        if self.index not in (None, "hnsw", "ivfflat", "none"):
            raise InvalidInput(
                f"{self.index!r} is not an index.", fix='Use "hnsw", "ivfflat" or "none".'
            )
        if self.sparse_index not in SPARSE_ENTRIES:
            raise InvalidInput(
                f"{self.sparse_index!r} is not an index for sparse vectors.",
                fix='Use "hnsw" or "none".',
            )
        if not (
            2 <= self.m <= 100
            and 2 * self.m <= self.ef_construction <= 1000
            and 1 <= self.ef_search <= EF_SEARCH
        ):
            raise InvalidInput(
                f"An HNSW index was given m={self.m}, ef_construction={self.ef_construction} and "
                f"ef_search={self.ef_search}.",
                fix="Give m from 2 to 100, ef_construction from 2 * m to 1000, ef_search up to "
                "1000.",
            )
        self._check_lists()
        self._check_bits()

    def _check_lists(self) -> None:
        for name, value in (("lists", self.lists), ("probes", self.probes)):
            if value is not None and not 1 <= value <= _LISTS:
                raise InvalidInput(
                    f"An IVFFlat index was given {name}={value}.",
                    fix=f"Give a number from 1 to {_LISTS:,}.",
                )
        if (self.lists and self.index != "ivfflat") or (self.probes and self.index == "hnsw"):
            raise InvalidInput(
                f"lists={self.lists} and probes={self.probes} came with index={self.index!r}.",
                fix='They are options of index="ivfflat".',
            )

    def _check_bits(self) -> None:
        if self.quantization not in (None, "bit"):
            raise InvalidInput(
                f"{self.quantization!r} is no quantization.", fix='Use "bit" or None.'
            )
        if not 1 <= self.rescore <= _RESCORED:
            raise InvalidInput(
                f"An index was given rescore={self.rescore}.",
                fix=f"Give a number from 1 to {_RESCORED}.",
            )
        if self.quantization and self.index not in (None, "hnsw"):
            raise InvalidInput(
                f'quantization="bit" came with index={self.index!r}.', fix='Use index="hnsw".'
            )
        if self.quantization and self.metric is Metric.L2:
            raise InvalidInput(
                "Bits keep the signs of numbers and not the length of a vector, so they cannot "
                'name the nearest by the metric "l2".',
                fix='Use metric="cosine" or "ip", or leave quantization out.',
            )

    @property
    def kind(self) -> str | None:
        """What was asked for by name, as ``Built.kind`` says it; None for what there is."""
        if self.quantization:
            return "hnsw, bit"
        return self.index

    def of_new_table(self) -> str:
        """Return the kind of a new table, in which nothing could be learnt for lists."""
        return "none" if self.kind == "ivfflat" else self.kind or "hnsw"

    def most(self, kind: DenseType) -> int:
        """Return the dimensions that vectors of a type may have."""
        return kind.stored if self.kind in ("none", "hnsw, bit") else kind.indexed

    def dense(self, kind: str | None, column: DenseType, dimension: int, records: int) -> str:
        """Return the definition of an index on the dense vectors, as what follows ``ON table``."""
        operators = operator_class(column.name, self.metric)
        if kind == "ivfflat":
            lists = self.lists or lists_for(records)
            return f"USING ivfflat (embedding {operators}) WITH (lists = {lists:d})"
        if kind == "hnsw, bit":
            return f"USING hnsw (({bits_of('embedding', dimension)}) {_BITS}) {self._graph}"
        return f"USING hnsw (embedding {operators}) {self._graph}"

    def sparse(self) -> str:
        """Return the definition of an index on the sparse vectors."""
        operators = operator_class("sparsevec", Metric.IP)
        return f"USING hnsw (sparse {operators}) {self._graph}"

    @property
    def _graph(self) -> str:
        return f"WITH (m = {self.m:d}, ef_construction = {self.ef_construction:d})"

    @property
    def first(self) -> int:
        """How many records there have to be before lists are learnt from them."""
        return _FIRST if self.lists is None else _LEARNT * self.lists

    def outgrown(self, lists: int, records: float) -> bool:
        """Whether lists that follow the records are far too few by now."""
        return self.lists is None and lists_for(int(records)) >= _GROWN * lists


class Built(NamedTuple):
    """An index that is there.

    Args:
        name: As it stands in SQL.
        kind: ``"hnsw"``, ``"hnsw, bit"`` or ``"ivfflat"``.
        operators: Its operator class.
        definition: What follows ``ON table``.
        valid: Whether it can be searched; False while it is made, and after that was interrupted.
    """

    name: str
    kind: str
    operators: str
    definition: str
    valid: bool


class Indexes(NamedTuple):
    """The indexes on the vectors of a table: those that its searches can use."""

    dense: list[Built]
    sparse: list[Built]

    @property
    def kind(self) -> str:
        """How dense vectors are found; ``"none"`` if all are looked at."""
        return next((each.kind for each in self.dense if each.valid), "none")

    @property
    def sparse_kind(self) -> str:
        """The same for sparse vectors."""
        return "hnsw" if any(each.valid for each in self.sparse) else "none"


async def read_indexes(connection: Any, table: str, metric: Metric) -> Indexes:
    """Find out which indexes on vectors a table has.

    Args:
        connection: To its database.
        table: Its quoted name.
        metric: That of the dense vectors; an index for another one is none of ours.
    """
    rows = await connection.fetch(
        "SELECT indexrelid::regclass::text, amname, opcname, pg_get_indexdef(indexrelid), "
        "indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
        "JOIN pg_am a ON a.oid = relam JOIN pg_opclass o ON o.oid = indclass[0] "
        "WHERE indrelid = $1::text::regclass AND amname IN ('hnsw', 'ivfflat') ORDER BY indexrelid",
        table,
    )
    found = [
        Built(
            name,
            f"{method}, bit" if operators == _BITS else method,
            operators,
            "USING " + definition.partition(" USING ")[2],
            valid,
        )
        for name, method, operators, definition, valid in map(tuple, rows)
    ]
    return Indexes(
        _with(found, (operator_class("vector", metric), operator_class("halfvec", metric), _BITS)),
        _with(found, (operator_class("sparsevec", Metric.IP),)),
    )


def _with(found: Iterable[Built], operators: tuple[str, ...]) -> list[Built]:
    return [each for each in found if each.operators in operators]


def lists_for(records: int) -> int:
    """Return how many lists suit so many records, as pgvector's manual has it."""
    return max(1, records // 1_000 if records <= _MILLION else isqrt(records))


def lists_in(definition: str) -> int:
    """Return how many lists an index has by its definition; 0 if it has none."""
    found = re.search(r"lists ?= ?'?(\d+)", definition)
    return int(found[1]) if found else 100 if "ivfflat" in definition else 0  # pgvector's default


def memory_for(lists: int, dimension: int) -> int:
    """Return the bytes of ``maintenance_work_mem`` without which pgvector learns no lists.

    It holds the vectors that it learns from, a bound for each of them and each list (Elkan, "Using
    the triangle inequality to accelerate k-means", ICML 2003), and the distances between lists.
    """
    learnt, vector = max(_LEARNT * lists, 10_000), 4 * dimension + 16
    numbers = learnt * (lists + 2) + lists * (lists + 4)
    return int(1.1 * (4 * numbers + vector * (learnt + 3 * lists))) + (1 << 20)


def bits_of(vector: str, dimension: int) -> str:
    """Return the signs of a vector's numbers, as SQL: 1 above 0."""
    return f"binary_quantize({vector})::bit({dimension:d})"
