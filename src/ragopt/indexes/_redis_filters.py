"""Filters in the query language of Redis, with no word of a user in it.

Every record has tokens in one TAG field: digests of its id, of its document, of each metadata key,
of each key with its value, and of each key with an item of its list. A filter asks for tokens, so
no value has to be escaped and none can be split, folded or taken for syntax. What is ordered by
number (numbers and dates) is in one NUMERIC field for each key and family, named by a digest.

A NUMERIC field holds doubles. From 2**53 on several integers are one double, so a bound there lets
too many through, and the caller checks them again.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from ragopt.errors import InvalidInput
from ragopt.filters import And, Compare, Documents, Filter, Ids, Not, Op, Or, Where

TAGS = "tags"

_NOTHING = f"@{TAGS}:{{none}}"  # no digest is that short
EVERYTHING = f"(-{_NOTHING})"  # `*` can only stand alone

_EXACT = 2.0**53
_MOST = sys.float_info.max
_EPOCH = datetime(1970, 1, 1)
_AWARE_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TESTS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_UNSURE = object()  # an operand that Python compares in a way of its own


# -- tokens -----------------------------------------------------------------------------------


def tokens_of(
    id_: str, document_id: str | None, metadata: Mapping[str, Any]
) -> tuple[set[str], dict[str, float]]:
    """Return the tokens of a record, and the values of its NUMERIC fields."""
    tokens = {_digest("id", id_), _of_document(document_id)}
    numbers: dict[str, float] = {}
    for key, value in metadata.items():
        tokens.add(_of_key("key", key))
        if type(value) is list or type(value) is tuple:
            tokens.update(_items(key, value))
        elif (text := _text(value)) is not None:
            tokens.add(_digest("value", key, text))
            if (ordered := _number(value)) is not None:
                numbers[_of_key(ordered[0], key)] = ordered[1]
    return tokens, numbers


def _items(key: str, values: Sequence[Any]) -> Iterator[str]:
    if not values:
        yield _of_key("empty", key)
    for value in values:
        if (text := _text(value)) is not None:
            yield _digest("item", key, text)


def _of_document(document_id: str | None) -> str:
    return _digest("no document", "") if document_id is None else _digest("document", document_id)


@lru_cache(maxsize=1024)
def _of_key(kind: str, key: str) -> str:
    digest = _digest(kind, key)
    return f"n{digest}" if kind in _FAMILIES else digest


def _digest(kind: str, key: str, value: str = "") -> str:
    # The length before the key: ("a", "b:c") and ("a:b", "c") are two tokens.
    data = f"{kind}:{len(key)}:{key}{value}".encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=12).hexdigest()


def _text(value: Any) -> str | None:
    """Return a text that two values share exactly where a filter takes them for the same.

    None for what equals nothing: NaN, and what a filter cannot hold.
    """
    kind = type(value)
    if kind is str:
        return f"s{value}"
    if kind is bool:
        return f"b{value:d}"
    if kind is int:
        return f"n{value:x}"
    if kind is float:
        if value.is_integer():
            return f"n{int(value):x}"  # 1.0 == 1
        return None if math.isnan(value) else f"f{value.hex()}"
    if value is None:
        return "-"
    if kind is date or kind is datetime:
        return f"{_moment(value)}"
    return None


def _moment(value: date) -> tuple[str, int]:
    """Return the family of a date or datetime, and its place in the order as an integer."""
    if not isinstance(value, datetime):
        return "date", value.toordinal()
    if value.tzinfo is None:
        return "naive", (value - _EPOCH) // _MICROSECOND
    return "aware", (value - _AWARE_EPOCH) // _MICROSECOND


_FAMILIES = frozenset({"number", "date", "naive", "aware"})


def _number(value: Any) -> tuple[str, float] | None:
    """Return the family of a value that has a NUMERIC field, and what stands in it."""
    family = "number"
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return None
    if isinstance(value, date):
        family, value = _moment(value)
    try:
        double = float(value)
    except OverflowError:
        double = math.inf if value > 0 else -math.inf
    if math.isnan(double):
        return None
    # Whatever is as large as the largest double shares a place with it, and is checked again.
    return family, min(max(double, -_MOST), _MOST)


# -- filters ----------------------------------------------------------------------------------


class Condition:
    """A filter as a query.

    Every record that meets the filter meets the query. Where the query cannot say all of it, it
    lets more through and ``exact`` is False: the caller checks the rest with ``compile_filter``.

    Args:
        where: The filter; None matches everything.
        fields: The NUMERIC fields that the index has.

    Attributes:
        text: The query, in parentheses; None matches everything.
        exact: Whether the query says all of the filter.
        missing: NUMERIC fields that would have said more.

    Raises:
        InvalidInput: The filter holds a Python function.
    """

    def __init__(self, where: Filter | None, fields: Collection[str] = ()) -> None:
        self._fields = fields
        self.missing: set[str] = set()
        self.text: str | None = None
        self.exact = True
        if where is not None:
            self.text, self.exact = self._of(where)

    def _of(self, where: Filter, negated: bool = False) -> tuple[str, bool]:
        """Return a query and whether it is exact. Only what asks for tokens is ever negated.

        The engine loses records where a negation stands within another one.
        """
        if isinstance(where, Not):
            return self._of(where.part, not negated)
        if isinstance(where, (And, Or)):
            parts = [self._of(part, negated) for part in where.parts]
            every = isinstance(where, And) != negated
            joined = (" " if every else "|").join(text for text, _ in parts)
            return f"({joined})", all(exact for _, exact in parts)
        if isinstance(where, Compare):
            if where.op == "is_empty":
                return self._empty(where.key, negated)
            if where.op in ("!=", "not_in"):
                opposite: Op = "==" if where.op == "!=" else "in"
                return self._of(Compare(where.key, opposite, where.value), not negated)
        text, exact = self._asked(where)
        if not negated:
            return text, exact
        # What lets too many through, turned round, lets too few.
        return (f"(-{text})", True) if exact else (EVERYTHING, False)

    def _asked(self, where: Filter) -> tuple[str, bool]:
        if isinstance(where, Ids):
            return _any([_digest("id", id_) for id_ in _texts(where.values)]), True
        if isinstance(where, Documents):
            absent = [_of_document(None)] if None in where.values else []
            return _any([*absent, *map(_of_document, _texts(where.values))]), True
        if isinstance(where, Compare):
            return self._compare(where)
        if isinstance(where, Where):
            raise InvalidInput(
                "A Python function was given as a filter; it works only in process, not in Redis.",
                fix='Write the condition as F("key") == value, or use a memory or FAISS index.',
            )
        raise InvalidInput(
            f"{where!r} is not a filter.", fix='Write comparisons as F("key") == value.'
        )

    def _compare(self, where: Compare) -> tuple[str, bool]:
        key, operand = where.key, where.value
        exists = _any([_of_key("key", key)])
        match where.op:
            case "==":
                return _same("value", key, [operand])
            case "in":
                return _same("value", key, operand)
            case "<" | "<=" | ">" | ">=":
                return self._ordered(key, where.op, operand)
            case "contains":
                return _same("item", key, [operand])
            case "any":
                return _same("item", key, operand)
            case "all":
                parts = [_same("item", key, [item]) for item in operand]
                if not parts:
                    return _any([]), True
                return f"({' '.join(text for text, _ in parts)})", all(e for _, e in parts)
            case "exists":
                return exists, True
            case _:  # text_match and like: the query only finds who has the key
                return exists, False

    def _empty(self, key: str, negated: bool) -> tuple[str, bool]:
        exists = _any([_of_key("key", key)])
        nothing = [_digest("value", key, text) for text in ("-", "s")]
        empty = _any([*nothing, _of_key("empty", key)])
        return (f"({exists} (-{empty}))" if negated else f"((-{exists})|{empty})"), True

    def _ordered(self, key: str, op: str, operand: Any) -> tuple[str, bool]:
        exists = _any([_of_key("key", key)])
        plain = _plain(operand)
        if plain is _UNSURE or isinstance(plain, str):
            return exists, False
        if isinstance(plain, bool):
            return _same("value", key, [b for b in (False, True) if _TESTS[op](b, plain)])
        place = None if plain is None else _number(plain)
        if place is None:
            return _any([]), True
        family, bound = place
        field = _of_key(family, key)
        if field not in self._fields:
            self.missing.add(field)
            return exists, False
        exact = abs(bound) < _EXACT
        edge = f"({bound!r}" if exact and "=" not in op else repr(bound)
        limits = f"-inf {edge}" if op[0] == "<" else f"{edge} +inf"
        return f"(@{field}:[{limits}])", exact


def _any(tokens: Sequence[str]) -> str:
    return f"(@{TAGS}:{{{'|'.join(tokens)}}})" if tokens else f"({_NOTHING})"


def _texts(values: frozenset[str]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _same(kind: str, key: str, operands: Sequence[Any]) -> tuple[str, bool]:
    """Return a query for: the value, or an item of it, is one of the operands."""
    plain = [_plain(operand) for operand in operands]
    if any(one is _UNSURE for one in plain):
        return _any([_of_key("key", key)]), False
    texts = [text for text in map(_text, plain) if text is not None]
    return _any([_digest(kind, key, text) for text in texts]), True


def _plain(operand: Any) -> Any:
    """Return an operand as the type that a record would hold; NaN if it equals none of them."""
    kind = type(operand)
    if kind in (str, bool, type(None), int, float, date):
        return operand
    if isinstance(operand, int):  # such as an IntEnum
        return int(operand)
    if isinstance(operand, float):
        return float(operand)
    if isinstance(operand, datetime):
        folded = operand.replace(fold=1 - operand.fold)
        # Python says that an hour which the clock shows twice is never the same elsewhere.
        if kind is datetime and operand.utcoffset() == folded.utcoffset():
            return operand
        return _UNSURE
    return math.nan
