"""The rules of filters, and every index against the memory index."""

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from functools import reduce
from operator import and_, or_
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
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
    Or,
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


class Language(StrEnum):
    ENGLISH = "en"


TOKYO = timezone(timedelta(hours=9))
SUMMER = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))  # comes twice that day


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (Language.ENGLISH, "en"),
        (np.str_("en"), "en"),
        (np.float64(1.5), 1.5),
        (SUMMER, datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        (SUMMER.replace(fold=1), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
        (datetime(2026, 1, 1, tzinfo=TOKYO), datetime(2025, 12, 31, 15, tzinfo=UTC)),
    ],
)
def test_an_operand_is_what_it_becomes_as_metadata(given: Any, kept: Any) -> None:
    for where in (F("a") == given, F("a").is_in([given]), F("a") <= given):
        assert holds(where, a=kept)
        operand = where.value[0] if where.op == "in" else where.value
        assert type(operand) is type(kept)
    assert not holds(F("a") != given, a=kept)


@pytest.mark.parametrize("value", [(1, 2), [1], b"x", np.int64(1), object()])
def test_what_is_no_single_value_is_no_operand(value: Any) -> None:
    with pytest.raises(InvalidInput, match="got a value of type"):
        F("a") == value  # noqa: B015
    with pytest.raises(InvalidInput, match="got a value of type"):
        F("a").is_in([value])


def test_a_long_chain_is_no_deep_tree() -> None:
    ones: list[Filter] = [F("n") == number for number in range(3_000)]
    others: list[Filter] = [F("n") != number for number in range(3_000)]
    either, both = reduce(or_, ones), reduce(and_, others)
    assert holds(either, n=2_999)
    assert not holds(either, n=3_000)
    assert holds(both, n=3_000)
    chains = [each for each in (either, both) if isinstance(each, (And, Or))]
    assert [len(each.parts) for each in chains] == [3_000, 3_000]
    mixed = ((F("a") == 1) | (F("b") == 1)) & (F("c") == 1)
    assert not holds(mixed, a=1)
    assert holds(mixed, a=1, c=1)


def test_a_function_gets_a_copy() -> None:
    metadata = {"a": 1}

    def empties(found: Any) -> bool:
        found.clear()
        return True

    assert compile_filter(Where(empties))("id", None, metadata)
    assert metadata == {"a": 1}
