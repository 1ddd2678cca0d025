"""Filters in the forms that users of LangChain's stores have: dicts, functions, RedisVL's."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ragopt import filters
from ragopt.errors import InvalidInput
from ragopt.filters import And, F, Filter, Ids, Not, Or

if TYPE_CHECKING:
    from redisvl.query.filter import FilterExpression

AnyFilter: TypeAlias = (
    "Filter | Mapping[str, Any] | Callable[[Mapping[str, Any]], bool] | FilterExpression | None"
)

_REDISVL = "redisvl.query.filter"
_ALIASES = {"$neq": "$ne"}  # community FAISS


def to_filter(where: object) -> Filter | None:
    """Read a filter: a ragopt one, a dict, a function of the metadata, or one of RedisVL's.

    None and an empty dict mean that there is no filter.

    Raises:
        InvalidInput: It cannot be read, or not be said as a ragopt filter.
    """
    redisvl = sys.modules.get(_REDISVL)  # loaded, if somebody made one
    if redisvl is not None and isinstance(where, redisvl.FilterExpression):
        return _translated(where)
    return filters.to_filter(_dialect(where) if isinstance(where, Mapping) else where)


def _dialect(expression: Any) -> Any:
    """Return a dict of LangChain's FAISS or PostgreSQL in the words of ragopt's own."""
    if isinstance(expression, list | tuple):
        return [_dialect(part) for part in expression]
    if not isinstance(expression, Mapping):
        return expression
    read: dict[str, Any] = {}
    for key, value in expression.items():
        if key == "$not" and isinstance(value, list | tuple):
            read[key] = {"$or": _dialect(value)}  # none of them holds
        elif key in ("$and", "$or", "$not"):
            read[key] = _dialect(value)
        elif isinstance(value, Mapping):
            read[key] = {_ALIASES.get(name, name): operand for name, operand in value.items()}
        else:
            read[key] = {"$in": value} if isinstance(value, list) else value
    return read


# -- RedisVL ----------------------------------------------------------------------------------

# A combination of filters is a tree. A single one keeps only the text that it rendered itself to,
# in which values are escaped, so exactly these texts are read, and every other one is refused.
_FIELD = r"@(?P<field>[^\s@:{}()\[\]|]+)"
_ESCAPED = r",.<>{}\[\]\\\"':;!@#$%^&*()\-+=~|/ ?"
_TAG = re.compile(rf"{_FIELD}:\{{(?P<body>(?:\\.|[^{_ESCAPED}]|[*|])+)\}}", re.DOTALL)
_NUMBER = r"\(?[-+]?(?:inf|\d{1,400}(?:\.\d*)?(?:e[-+]?\d+)?)"
_RANGE = re.compile(rf"{_FIELD}:\[(?P<low>{_NUMBER}) (?P<high>{_NUMBER})\]")
_MISSING = re.compile(rf"ismissing\({_FIELD}\)")
_NEGATED = re.compile(r"\(-(.*)\)", re.DOTALL)
_PIECE = re.compile(r"\\(.)|([*|])|(.)", re.DOTALL)
_TEXT = re.compile(rf"{_FIELD}:(\(.*\)|\".*\")", re.DOTALL)
_GEO = re.compile(rf"{_FIELD}:\[\S+ \S+ \S+ (m|km|mi|ft)\]")


def _translated(expression: Any) -> Filter:
    if not hasattr(expression, "_operator"):
        raise InvalidInput(
            f"A RedisVL filter was combined with {expression!r}.",
            fix='Combine it with RedisVL filters only, or write all of it as F("key") == value.',
        )
    if expression._operator is not None:
        parts = tuple(_translated(part) for part in (expression._left, expression._right))
        return Or(parts) if expression._operator.name == "OR" else And(parts)
    text = expression._filter
    if text is None or text.strip() in ("", "*"):
        raise InvalidInput(
            "A RedisVL filter matches everything, which is what RedisVL makes of an empty value.",
            fix="Check the value; where everything is meant, leave the filter out.",
        )
    if negated := _NEGATED.fullmatch(text):
        return Not(_leaf(negated[1], text, negated=True))
    return _leaf(text, text)


def _leaf(leaf: str, text: str, *, negated: bool = False) -> Filter:
    if found := _TAG.fullmatch(leaf):
        return _tag(F(found["field"]), found["body"], text, negated)
    if found := _RANGE.fullmatch(leaf):
        return _range(F(found["field"]), found["low"], found["high"])
    if (found := _MISSING.fullmatch(leaf)) and not negated:
        return ~F(found["field"]).exists()
    if found := _TEXT.fullmatch(leaf):
        raise _refused(
            text,
            "Text fields are searched by their words",
            f'Write F("{found["field"]}").text_match(...), which looks for a part of the text.',
        )
    if _GEO.fullmatch(leaf):
        raise _refused(text, "there are no places in metadata", "Leave it out, or filter the hits.")
    raise _refused(
        text, "it was not made by Tag, Num or Timestamp", 'Write it as F("key") == value.'
    )


def _tag(field: F, body: str, text: str, negated: bool) -> Filter:
    """A tag field holds one value or a list of them, so both are asked for."""
    patterns = [""]
    wild = False
    for escaped, special, plain in _PIECE.findall(body):
        if special == "|":
            patterns.append("")
        elif special == "*":
            patterns[-1] += "%"
            wild = True
        else:
            patterns[-1] += escaped or plain
    if not wild:
        return field.is_in(patterns) | field.any(patterns)
    if negated or re.search(r"_|\\%", body) or not all(pattern.strip("%") for pattern in patterns):
        raise _refused(
            text, "a wildcard stands beside _ or %, or alone", 'Write F("key").like("...").'
        )
    parts = tuple[Filter, ...](field.like(pattern) for pattern in patterns)
    return parts[0] if len(parts) == 1 else Or(parts)


def _range(field: F, low: str, high: str) -> Filter:
    least, most = (_number(bound.removeprefix("(")) for bound in (low, high))
    if low == high and low[0] != "(":
        return field == least
    return And(
        (
            field > least if low[0] == "(" else field >= least,
            field < most if high[0] == "(" else field <= most,
        )
    )


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _refused(text: str, why: str, fix: str) -> InvalidInput:
    return InvalidInput(f"The RedisVL filter {text!r} cannot be translated: {why}.", fix=fix)


def selection(ids: list[str] | None, filter: AnyFilter) -> Filter:
    """Return the filter of a delete: these ids, this filter, or what meets both."""
    where = to_filter(filter)
    if ids is None:
        if where is None:
            raise InvalidInput(
                "A delete was asked for without ids and without a filter.",
                fix="Pass ids or a filter; to remove everything, call store.index.clear().",
            )
        return where
    return Ids(ids) if where is None else And((Ids(ids), where))
