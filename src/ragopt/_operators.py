"""What the operators of filters mean for two values, whatever their types."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

MISSING = object()


def family_of(value: object) -> str:
    """Return the family of types within which values compare."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, datetime):
        return "aware" if value.tzinfo else "naive"
    return type(value).__name__


def _same(left: object, right: object) -> bool:
    return left == right and family_of(left) == family_of(right)


def _ordered(left: Any, right: Any, test: Callable[[Any, Any], bool]) -> bool:
    family = family_of(left)
    comparable = family == family_of(right) and family not in ("NoneType", "list", "dict")
    return comparable and test(left, right)


def _holds(values: object, wanted: object) -> bool:
    return isinstance(values, (list, tuple)) and any(_same(value, wanted) for value in values)


@lru_cache(maxsize=256)
def _pattern(like: str) -> re.Pattern[str]:
    wild = {"%": ".*", "_": "."}
    return re.compile("".join(wild.get(char) or re.escape(char) for char in like), re.DOTALL)


def _like(value: object, pattern: str) -> bool:
    return isinstance(value, str) and _pattern(pattern).fullmatch(value) is not None


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": _same,
    "!=": lambda value, other: not _same(value, other),
    "<": lambda value, other: _ordered(value, other, lambda a, b: a < b),
    "<=": lambda value, other: _ordered(value, other, lambda a, b: a <= b),
    ">": lambda value, other: _ordered(value, other, lambda a, b: a > b),
    ">=": lambda value, other: _ordered(value, other, lambda a, b: a >= b),
    "in": lambda value, others: any(_same(value, other) for other in others),
    "not_in": lambda value, others: not any(_same(value, other) for other in others),
    "any": lambda value, others: any(_holds(value, other) for other in others),
    "all": lambda value, others: bool(others) and all(_holds(value, other) for other in others),
    "contains": _holds,
    "text_match": lambda value, text: isinstance(value, str) and text in value,
    "text_match_insensitive": lambda value, text: (
        isinstance(value, str) and text.casefold() in value.casefold()
    ),
    "like": _like,
    "is_empty": lambda value, _: value is MISSING or value is None or value in ("", [], ()),
    "exists": lambda value, _: value is not MISSING,
}
"""From the value of the key, or ``MISSING``, and the operand to a verdict."""
