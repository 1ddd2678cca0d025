"""Filters in the words of LangChain's own stores."""

from __future__ import annotations

from typing import Any

import pytest

from ragopt import F, HashingEmbedder
from ragopt.errors import InvalidInput
from ragopt.filters import And, Filter, Not, Or, Where
from ragopt.langchain import FaissVectorStore
from ragopt.langchain.filters import to_filter


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (None, None),
        ({}, None),
        (F("a") == 1, F("a") == 1),
        ({"a": 1}, F("a") == 1),
        ({"a": {"$neq": 1}}, F("a") != 1),
        ({"a": {"$ne": 1, "$gt": 0}}, And((F("a") != 1, F("a") > 0))),
        ({"a": [1, 2]}, F("a").is_in([1, 2])),
        ({"a": []}, F("a").is_in([])),
        ({"$not": {"a": [1]}}, Not(F("a").is_in([1]))),
        ({"$not": [{"a": 1}, {"b": {"$neq": 2}}]}, Not(Or((F("a") == 1, F("b") != 2)))),
        (
            {"$and": [{"a": [1]}, {"$or": ({"b": 2},)}]},
            And((F("a").is_in([1]), Or((F("b") == 2,)))),
        ),
    ],
)
def test_dicts(written: Any, meant: Filter | None) -> None:
    read = to_filter(written)
    assert repr(read) == repr(meant)


@pytest.mark.parametrize(
    "written",
    [
        {"a": {"$ilike": "x"}},
        {"a": {"$regex": "x"}},
        {"$nor": [{"a": 1}]},
        {"$and": []},
        {"$or": []},
        {"$not": []},
        {"$not": {}},
        {"$and": [{}]},
        {"$and": {"a": 1}},
        {"$and": "ab"},
        {"$not": 7},
        {"a": {}},
        "@a:{b}",
        7,
    ],
)
def test_what_is_refused(written: Any) -> None:
    with pytest.raises(InvalidInput):
        to_filter(written)


def test_a_function_stays_what_it_is() -> None:
    read = to_filter(len)
    assert isinstance(read, Where)
    assert read.test is len


def test_the_dict_that_was_passed_in_is_not_changed() -> None:
    written = {"$not": [{"a": {"$neq": [1]}}], "b": [1]}
    with pytest.raises(InvalidInput):
        to_filter(written)
    assert written == {"$not": [{"a": {"$neq": [1]}}], "b": [1]}


def test_a_store_takes_them() -> None:
    store = FaissVectorStore(HashingEmbedder(16))
    store.add_texts(["a", "b", "c"], [{"n": n} for n in range(3)], ids=["0", "1", "2"])
    assert {d.id for d in store.similarity_search("a", filter={"n": [0, 2]})} == {"0", "2"}
    assert {d.id for d in store.similarity_search("a", filter={"n": {"$neq": 0}})} == {"1", "2"}
    store.delete(filter={"$not": [{"n": 0}]})
    assert [d.id for d in store.similarity_search("a")] == ["0"]
