"""The rules of filters, and every index against the memory index."""

from typing import Any

import pytest
from hypothesis import given
from tests.strategies import FILTERS, METADATA

from ragopt import F
from ragopt.errors import InvalidInput
from ragopt.filters import (
    And,
    Compare,
    Filter,
    Ids,
    Where,
    compile_filter,
    from_dict,
    to_filter,
)


@given(FILTERS, METADATA)
def test_not_is_the_complement(where: Filter, metadata: dict[str, Any]) -> None:
    here, there = compile_filter(where), compile_filter(~where)
    assert here("0", "d0", metadata) != there("0", "d0", metadata)


def holds(where: Filter, **metadata: Any) -> bool:
    return compile_filter(where)("id", None, metadata)


def test_a_missing_key_meets_only_what_says_so() -> None:
    key = F("missing")
    assert [holds(each) for each in (key != 1, key.not_in([1]), key.is_empty())] == [True] * 3
    never = [key == None, key == 1, key < 1, key.is_in([None]), key.contains(None)]  # noqa: E711
    assert not any(holds(each) for each in [*never, key.exists(), key.any([None]), key.like("%")])


def test_types_do_not_meet() -> None:
    assert not holds(F("a") == 1, a="1")
    assert not holds(F("a") == 1, a=True)
    assert not holds(F("a") < 2, a=True)
    assert not holds(F("a") < "2", a=1)
    assert holds(F("a") == 1, a=1.0)


@pytest.mark.parametrize("key", ["", "1a", "a;b", "a'b", 'a"b', "a" * 129, "$a", "a\n", None, 7])
def test_keys_are_checked(key: Any) -> None:
    with pytest.raises(InvalidInput, match="metadata key"):
        F(key) == 1  # noqa: B015


@pytest.mark.parametrize(
    "build",
    [
        lambda: F("a").is_in("text"),
        lambda: F("a").is_in(7),  # type: ignore[arg-type]
        lambda: F("a") == object(),
        lambda: F("a").contains([1]),  # type: ignore[arg-type]
        lambda: F("a").text_match(""),
        lambda: F("a").like(7),  # type: ignore[arg-type]
        lambda: Ids("text"),
        lambda: And(()),
        lambda: (F("a") == 1) & 7,  # type: ignore[operator]
        lambda: Compare("a", "near", 1),  # type: ignore[arg-type]
        lambda: bool(F("a") == 1),
        lambda: (F("a") == 1) and (F("b") == 2),
        lambda: from_dict({}),
        lambda: from_dict({"$or": []}),
        lambda: from_dict({"$or": {"a": 1, "b": 2}}),
        lambda: from_dict({"$and": "ab"}),
        lambda: from_dict({"$and": 7}),
        lambda: from_dict({"$not": 7}),
        lambda: from_dict({"a": {"$near": 1}}),
        lambda: to_filter(7),
    ],
)
def test_what_is_no_filter_is_refused_with_a_remedy(build: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        build()
    assert caught.value.fix


def test_where_is_any_function() -> None:
    assert holds(Where(lambda metadata: metadata["a"] > 1), a=2)
    where = to_filter(lambda metadata: metadata["a"] > 1)
    assert where is not None
    assert not holds(where, a=1)
