"""What every vector index counts for the values of a metadata key."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from ragopt.errors import InvalidInput
from ragopt.filters import Documents, F, Filter, Ids
from ragopt.testing.records import FILTERS, HOSTILE, METADATA, batch, vectors

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
IN_TOKYO = NOON.astimezone(timezone(timedelta(hours=9)))

AWKWARD: list[tuple[list[dict[str, Any]], list[tuple[Any, int]]]] = [
    ([{"k": 1}, {"k": 1.0}, {"k": True}, {"k": "1"}], [(1, 2), (True, 1), ("1", 1)]),
    ([{"k": 2**53}, {"k": 2.0**53}, {"k": 2**53 + 1}], [(2**53, 2), (2**53 + 1, 1)]),
    ([{"k": 1e300}, {"k": int(1e300)}, {"k": 10**23}], [(int(1e300), 2), (10**23, 1)]),
    ([{"k": -0.0}, {"k": [0, 0.0, -0.0]}, {"k": 0.5}], [(0, 2), (0.5, 1)]),
    ([{"k": float("inf")}, {"k": -float("inf")}], [(-float("inf"), 1), (float("inf"), 1)]),
    ([{"k": "inf"}, {"k": "Infinity"}, {"k": 1e9}], [(10**9, 1), ("Infinity", 1), ("inf", 1)]),
    ([{"k": "a"}, {"k": "A"}, {"k": " a"}, {"k": "a"}], [("a", 2), (" a", 1), ("A", 1)]),
    ([{"k": None}, {}, {"K": 1}, {"k": ""}], [(None, 1), ("", 1)]),
    ([{"k": ["x", "y", "x"]}, {"k": ("x", 1)}, {"k": "x"}], [("x", 3), (1, 1), ("y", 1)]),
    ([{"k": []}, {"k": float("nan")}, {"k": {"a": 1}}, {"k": b"a"}], []),
    ([{"k": ["in", ["deep"], {"deep": 1}, None, float("nan")]}], [(None, 1), ("in", 1)]),
    ([{"k": {"$date": "2024-01-01", "b": 1}}, {"k": "$date"}, {"k": ["$float"]}],
     [("$date", 1), ("$float", 1)]),
    ([{"k": NOON}, {"k": [IN_TOKYO, NOON]}, {"k": NOON.replace(tzinfo=None)}, {"k": NOON.date()}],
     [(NOON, 2), (date(2024, 1, 1), 1), (datetime(2024, 1, 1, 12), 1)]),
    ([{"k": 2}, {"k": False}, {"k": 10}, {"k": "10"}, {"k": -1.5}, {"k": None}],
     [(None, 1), (False, 1), (-1.5, 1), (2, 1), (10, 1), ("10", 1)]),
]  # fmt: skip


def shown(counts: list[tuple[Any, int]]) -> list[str]:
    """Return texts that tell True from 1, 1 from 1.0, and one zone from another."""
    return [f"{value!r}: {number}" for value, number in counts]


def _items(metadata: dict[str, Any], key: str) -> list[Any]:
    """Return what a record with this metadata counts for."""
    value = metadata.get(key, [])
    items = value if isinstance(value, list) else [value]
    return [item for item in items if not isinstance(item, dict)]


class CountsContract:
    """Tests of a fixture ``index``, which shows an index in one colour."""

    def test_values_and_their_order(self, index: Any) -> None:
        for metadatas, expected in AWKWARD:
            size = len(metadatas)
            for order in (1, -1):  # the order of adding makes no difference
                ids = [f"{order}: {row}" for row in range(size)]
                index.add(batch(ids, vectors(size), metadatas[::order]))
                assert shown(index.counts("k")) == shown(expected)
                index.delete(Ids(ids))
                assert index.counts("k") == []

    def test_nothing_is_counted_where_nothing_is(self, index: Any) -> None:
        for where in (None, F("k") == 1, F("k").text_match("a"), Ids(["a"])):
            assert index.counts("k", where) == []
        index.add(batch(["a"], vectors(1), [{"other": 1}]))
        assert index.counts("k") == index.counts("other", F("other") == 2) == []
        assert index.count(~F("k").exists()) == 1

    def test_a_count_is_that_of_a_filter(self, index: Any) -> None:
        size = len(METADATA)
        documents = [f"d{row // 2}" if row < 4 else None for row in range(size)]
        index.add(
            batch(
                [f"r{row}" for row in range(size)], vectors(size), METADATA, document_ids=documents
            )
        )
        for key in ("n", "s", "tags", "flag", "when", "at", "nothing", "Header 1", "deep"):
            values = [value for value, _ in index.counts(key)]
            each = {repr(value): (F(key) == value) | F(key).contains(value) for value in values}
            assert each.keys() == {repr(item) for given in METADATA for item in _items(given, key)}
            for where in FILTERS if key in ("n", "tags") else FILTERS[::6]:
                counts = index.counts(key, where)
                found = {repr(value): number for value, number in counts}
                expected = {name: index.count(one & where) for name, one in each.items()}
                assert found == {name: number for name, number in expected.items() if number}
                assert len(found) == len(counts)
                numbers = [number for _, number in counts]
                assert numbers == sorted(numbers, reverse=True)

    def test_counts_of_many(self, index: Any) -> None:
        """More records than a server sends at once, of which some were replaced or deleted."""
        ids = [f"r{row}" for row in range(1_200)]
        metadatas = [{"third": row % 3, "tags": ["all", f"t{row % 2}"]} for row in range(1_200)]
        documents = ["first" if row < 600 else "second" for row in range(1_200)]
        index.add(batch(ids, vectors(1_200), metadatas, document_ids=documents))
        index.add(batch(ids[:2], vectors(2), [{"third": "new", "tags": ["all"]}] * 2))
        index.delete(F("third") == 2)
        assert index.counts("third") == [(0, 399), (1, 399), ("new", 2)]
        assert index.counts("tags") == [("all", 800), ("t0", 399), ("t1", 399)]
        cases: list[tuple[Filter, list[tuple[Any, int]]]] = [
            (Documents(["first"]), [(0, 199), (1, 199)]),
            (Ids(["r0", "r3", "r2", "missing"]), [(0, 1), ("new", 1)]),
            (F("third").like("n_w"), [("new", 2)]),
            (~F("third").text_match("NEW", case=False) & (F("third") > 0), [(1, 399)]),
        ]
        for where, expected in cases:
            assert index.counts("third", where) == expected

    def test_any_text_is_counted_as_it_is(self, index: Any) -> None:
        size = len(HOSTILE)
        metadatas = [{"key with. dots": text, "日本": [text]} for text in HOSTILE]
        for copy in range(2):
            index.add(batch([f"{copy}{row}" for row in range(size)], vectors(size), metadatas))
        for key in ("key with. dots", "日本"):
            assert index.counts(key) == [(text, 2) for text in sorted(HOSTILE)]

    def test_what_cannot_be_counted(self, index: Any) -> None:
        index.add(batch(["a"], vectors(1), [{"k": 1}]))
        for key in ("", "1st", "a'b", "a" * 129, None, 5):
            with pytest.raises(InvalidInput, match="cannot be a metadata key"):
                index.counts(key)
        with pytest.raises(InvalidInput, match="is not a filter"):
            index.counts("k", {"k": 1})
