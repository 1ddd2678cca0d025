"""Metadata as ``jsonb``, and filters as SQL conditions on it.

JSON lacks some of the types that metadata may hold. Such a value is an object whose first key
begins with ``$``::

    date               {"$date": "2024-02-29"}
    naive datetime     {"$datetime": "2024-02-29T12:00:00"}
    aware datetime     {"$instant": "2024-02-29T12:00:00", "$offset": 3600.0}    the instant in UTC
    tuple, bytes       {"$tuple": [...]}, {"$bytes": "<base64>"}
    special float      {"$float": "inf"}, {"$nan": true}
    any other dict whose keys are not all strings, or begin with $: {"$dict": [[key, value], ...]}

``jsonb`` gives the keys of an object back in an order of its own: the shorter one first, in bytes,
and those of one length as their bytes are. A dict in another order has one key more::

    {"b": 1, "a": 2}           {"b": 1, "a": 2, "$order": [[1, 0]]}    each key's place in jsonb
    {"$order": 1, "b": 2}      {"b": 2, "$order": [[1, 0], 1]}         metadata that has this key

The texts of dates are of fixed width from the left, so comparing them byte by byte compares the
dates; aware datetimes are compared as instants.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from typing import Any

from ragopt.errors import InvalidInput
from ragopt.filters import And, Compare, Documents, Filter, Ids, Not, Or, Where
from ragopt.types import Metadata

_ORDER = "$order"
_EXACT = 2.0**53  # from here on the shortest text of a float is not its value


# -- metadata ---------------------------------------------------------------------------------


def dump_metadata(metadata: Metadata) -> str:
    """Write metadata as JSON.

    Raises:
        InvalidInput: It holds text that PostgreSQL cannot store, or is nested too deeply.
    """
    try:
        tree = _with_order({storable(key): _tag(value) for key, value in metadata.items()})
        return json.dumps(tree, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"Metadata cannot be stored in PostgreSQL ({error}). Nothing was stored.",
            fix="Use strings, numbers, booleans, None, dates, and lists and dicts of them.",
        ) from error


def load_metadata(text: str) -> dict[str, Any]:
    """Read what ``dump_metadata`` wrote."""
    tree: dict[str, Any] = json.loads(text)
    tags = text.count('"$')
    if tags and _ORDER in tree:
        tags -= 1
        tree = _in_order(tree)
    # Most metadata has no other tag, and then there is nothing to look for.
    return {key: _untag(value) for key, value in tree.items()} if tags else tree


def _with_order(tree: dict[str, Any]) -> dict[str, Any]:
    """Add the order of the keys, if jsonb would lose it."""
    places = _places(tuple(tree))
    if places or _ORDER in tree:
        own = [tree[_ORDER]] if _ORDER in tree else []
        tree[_ORDER] = [places, *own]
    return tree


@lru_cache(1_000)  # the records of a batch have the same keys, as a rule
def _places(keys: tuple[str, ...]) -> list[int]:
    """Return the place of each key in jsonb; nothing if they stand in that order."""
    ordered = sorted(keys, key=lambda key: (len(key.encode()), key))
    places = {key: place for place, key in enumerate(ordered)}
    return [] if ordered == list(keys) else [places[key] for key in keys]


def _in_order(tree: dict[str, Any]) -> dict[str, Any]:
    """Undo what ``_with_order`` did."""
    places, *own = tree[_ORDER]
    if own:
        tree[_ORDER] = own[0]
    else:
        del tree[_ORDER]
    keys = list(tree)
    if len(places) != len(keys):  # it had no other order, or somebody has changed it by SQL
        return tree
    return {keys[place]: tree[keys[place]] for place in places}


def storable(text: str) -> str:
    """Return the text, or raise InvalidInput if PostgreSQL cannot hold it."""
    if _is_storable(text):
        return text
    raise InvalidInput(
        f"PostgreSQL cannot hold the text {text[:80]!r}: it has a NUL or half a surrogate pair. "
        "Nothing was stored.",
        fix="Remove these characters, as with text.replace('\\0', '').",
    )


def _is_storable(text: str) -> bool:
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _tag(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        return storable(value)
    if value is None or kind is int or kind is bool:
        return value
    if kind is float:
        return _tag_float(value)
    if kind is list:
        return [_tag(item) for item in value]
    if kind is tuple:
        return {"$tuple": [_tag(item) for item in value]}
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return _with_order({storable(key): _tag(item) for key, item in value.items()})
        return {"$dict": [[_tag(key), _tag(item)] for key, item in value.items()]}
    if kind is date or kind is datetime:
        return _tag_date(value)
    if kind is bytes:
        return {"$bytes": b64encode(value).decode()}
    raise ValueError(f"it holds a {kind.__module__}.{kind.__qualname__}")


def _tag_float(value: float) -> Any:
    if value != value:  # noqa: PLR0124 - NaN alone is unlike itself
        return {"$nan": True}
    if abs(value) < _EXACT and (value or math.copysign(1, value) > 0):
        return value
    # jsonb drops the sign of zero and would give a large float back as an integer.
    return {"$float": format(value, ".1f")}


def _tag_date(value: date) -> dict[str, Any]:
    if not isinstance(value, datetime):
        return {"$date": value.isoformat()}
    offset = value.utcoffset()
    if offset is None:
        return {"$datetime": value.isoformat()}
    instant = value.astimezone(UTC).replace(tzinfo=None)
    return {"$instant": instant.isoformat(), "$offset": offset.total_seconds()}


_UNTAG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$date": lambda tagged: date.fromisoformat(tagged["$date"]),
    "$datetime": lambda tagged: datetime.fromisoformat(tagged["$datetime"]),
    "$instant": lambda tagged: (
        datetime.fromisoformat(tagged["$instant"])
        .replace(tzinfo=UTC)
        .astimezone(timezone(timedelta(seconds=tagged["$offset"])))
    ),
    "$tuple": lambda tagged: tuple(_untag(item) for item in tagged["$tuple"]),
    "$bytes": lambda tagged: b64decode(tagged["$bytes"]),
    "$float": lambda tagged: float(tagged["$float"]),
    "$nan": lambda _: math.nan,
    "$dict": lambda tagged: {_untag(key): _untag(item) for key, item in tagged["$dict"]},
}


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if isinstance(value, dict):
        if _ORDER in value:
            value = _in_order(value)
        elif next(iter(value), "").startswith("$"):
            for name, read in _UNTAG.items():
                if name in value:
                    return read(value)
        return {key: _untag(item) for key, item in value.items()}
    return value


# -- filters ----------------------------------------------------------------------------------


class Condition:
    """A filter as SQL on the columns ``id``, ``document_id`` and ``metadata``.

    Every record that meets the filter meets the SQL. Where the SQL cannot say all of it, it lets
    more through and ``exact`` is False: the caller checks the rest with ``compile_filter``.

    Args:
        where: The filter; None matches everything.
        first: Number of the first parameter.

    Raises:
        InvalidInput: The filter holds a Python function.
    """

    def __init__(self, where: Filter | None, first: int = 1) -> None:
        self._first = first
        self.parameters: list[Any] = []
        self.sql, self.exact = ("TRUE", True) if where is None else self._of(where)

    def _bind(self, value: Any, kind: str) -> str:
        self.parameters.append(value)
        return f"${self._first + len(self.parameters) - 1}::{kind}"

    def _of(self, where: Filter) -> tuple[str, bool]:
        if isinstance(where, (And, Or)):
            parts = [self._of(part) for part in where.parts]
            joined = (" AND " if isinstance(where, And) else " OR ").join(sql for sql, _ in parts)
            return f"({joined})", all(exact for _, exact in parts)
        if isinstance(where, Not):
            used = len(self.parameters)
            sql, exact = self._of(where.part)
            if exact:
                return f"(NOT {sql})", True
            del self.parameters[used:]
            return "TRUE", False  # what lets too many through, turned round, lets too few
        if isinstance(where, Ids):
            return f"(id = ANY({self._bind(_texts(where.values), 'text[]')}))", True
        if isinstance(where, Documents):
            names = self._bind(_texts(where.values), "text[]")
            absent = " OR document_id IS NULL" if None in where.values else ""
            return f"(COALESCE(document_id = ANY({names}), FALSE){absent})", True
        if isinstance(where, Compare):
            used = len(self.parameters)
            sql, exact = self._compare(where)
            if "metadata" not in sql:  # decided already, and PostgreSQL takes no idle parameter
                del self.parameters[used:]
            return sql, exact
        if isinstance(where, Where):
            raise InvalidInput(
                "A Python function was given as a filter; it works only in process, not in "
                "PostgreSQL.",
                fix='Write the condition as F("key") == value, or use a memory or FAISS index.',
            )
        raise InvalidInput(
            f"{where!r} is not a filter.", fix='Write comparisons as F("key") == value.'
        )

    def _compare(self, where: Compare) -> tuple[str, bool]:
        operand: Any = where.value
        value = f"(metadata -> {self._bind(where.key, 'text')})"
        text = f"({value} #>> '{{}}')"
        is_text = f"jsonb_typeof({value}) = 'string'"
        exact = True
        match where.op:
            case "==":
                sql = self._same(value, [operand])
            case "!=":
                sql = f"NOT {self._same(value, [operand])}"
            case "in":
                sql = self._same(value, operand)
            case "not_in":
                sql = f"NOT {self._same(value, operand)}"
            case "<" | "<=" | ">" | ">=":
                return self._ordered(value, where.op, operand)
            case "contains":
                sql = self._holds(value, [operand])
            case "any":
                sql = self._holds(value, operand)
            case "all":
                parts = [self._holds(value, [item]) for item in operand]
                sql = " AND ".join(parts) if parts else "FALSE"
            case "text_match" | "like" if not _is_storable(operand):
                sql = "FALSE"
            case "text_match":
                sql = f"{is_text} AND strpos({text}, {self._bind(str(operand), 'text')}) > 0"
            case "like":
                # Without an escape character, % and _ alone are special.
                pattern = self._bind(str(operand), "text")
                sql = f"{is_text} AND {text} COLLATE \"C\" LIKE {pattern} ESCAPE ''"
            case "text_match_insensitive":
                # Case folding is lower() for ASCII alone; of the rest, Python decides.
                sql, exact = f"{is_text} AND {self._folded(text, operand)}", False
            case "is_empty":
                empty = "'null', '\"\"', '[]', '{\"$tuple\": []}'"
                sql = f"{value} IS NULL OR {value} IN ({empty})"
            case "exists":
                sql = f"{value} IS NOT NULL"
        # A missing key makes NULL of most of these, which NOT would leave as it is.
        return f"COALESCE({sql}, FALSE)", exact

    def _folded(self, text: str, operand: str) -> str:
        folded = operand.casefold()
        ascii_only = f"octet_length({text}) = char_length({text})"
        if not folded.isascii():
            return f"NOT {ascii_only}"
        part = self._bind(folded, "text") if _is_storable(folded) else "NULL"
        return f'(NOT {ascii_only} OR strpos(lower({text} COLLATE "C"), {part}) > 0)'

    def _same(self, value: str, operands: Sequence[Any]) -> str:
        """SQL for: the value equals one of the operands and is of its family."""
        families: dict[str, list[Any]] = {}
        for operand in operands:
            family, item = _family(operand)
            families.setdefault(family, []).append(item)
        parts = []
        for family, items in families.items():
            if family == "null":
                parts.append(f"jsonb_typeof({value}) = 'null'")
            elif family in _EXPRESSIONS:
                expression, kind = _EXPRESSIONS[family]
                bound = self._bind(items, f"{kind}[]")
                parts.append(f"COALESCE({expression.format(value)} = ANY({bound}), FALSE)")
        return f"COALESCE({' OR '.join(parts) or 'FALSE'}, FALSE)"

    def _ordered(self, value: str, op: str, operand: Any) -> tuple[str, bool]:
        """SQL for: the value is of the operand's family and stands in this order to it."""
        family, item = _family(operand)
        if family == "unstorable":  # it has a place in the order all the same
            return "TRUE", False
        if family not in _EXPRESSIONS:
            return "FALSE", True
        expression, kind = _EXPRESSIONS[family]
        bound = self._bind(item, kind)
        return f"COALESCE({expression.format(value)} {op} {bound}, FALSE)", True

    def _holds(self, value: str, operands: Sequence[Any]) -> str:
        """SQL for: the value is a list or a tuple with one of the operands in it."""
        items = (
            f"CASE WHEN jsonb_typeof({value}) = 'array' THEN {value} "
            f"WHEN jsonb_typeof({value} -> '$tuple') = 'array' THEN {value} -> '$tuple' END"
        )
        same = self._same("item", operands)
        return f"EXISTS (SELECT FROM jsonb_array_elements({items}) AS item WHERE {same})"


# How the value of a family is read from jsonb, NULL where it is of another; and its SQL type.
_EXPRESSIONS = {
    "text": (
        "(CASE WHEN jsonb_typeof({0}) = 'string' THEN {0} #>> '{{}}' END COLLATE \"C\")",
        "text",
    ),
    "number": (
        "(CASE jsonb_typeof({0}) WHEN 'number' THEN {0}::numeric "
        "WHEN 'object' THEN ({0} ->> '$float')::numeric END)",
        "numeric",
    ),
    "bool": ("(CASE WHEN jsonb_typeof({0}) = 'boolean' THEN {0}::boolean END)", "boolean"),
    "$date": ("({0} ->> '$date' COLLATE \"C\")", "text"),
    "$datetime": ("({0} ->> '$datetime' COLLATE \"C\")", "text"),
    "$instant": ("({0} ->> '$instant' COLLATE \"C\")", "text"),
}


def _family(operand: Any) -> tuple[str, Any]:
    """Return the family of types within which an operand compares, and its SQL value.

    The families are those of ``ragopt.filters``. What is ``unstorable`` equals no stored value
    but is ordered among them; ``none`` is neither.
    """
    if operand is None:
        return "null", None
    if isinstance(operand, bool):
        return "bool", operand
    if isinstance(operand, float):
        if operand != operand:  # noqa: PLR0124 - NaN alone is unlike itself
            return "none", None
        # As it would be stored: the shortest text that is this float, or all of its digits.
        shortest = abs(operand) < _EXACT
        return "number", Decimal(float.__repr__(operand) if shortest else format(operand, ".1f"))
    if isinstance(operand, int):
        return "number", Decimal(int(operand))
    if isinstance(operand, datetime) or type(operand) is date:
        try:
            return next(iter(_tag_date(operand).items()))
        except OverflowError:  # an instant before the year 1 or after 9999
            return "unstorable", None
    if type(operand) is str:
        return ("text", operand) if _is_storable(operand) else ("unstorable", None)
    return "none", None


def _texts(values: frozenset[str]) -> list[str]:
    return [value for value in values if isinstance(value, str) and _is_storable(value)]
