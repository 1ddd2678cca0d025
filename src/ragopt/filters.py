"""One filter expression for every index.

Build it with ``F``::

    (F("year") >= 2020) & F("lang").is_in(["ja", "ko"]) & ~F("draft").exists()

A record that lacks the key meets ``!=``, ``not_in`` and ``is_empty``, and no other comparison.
Values of different types are never equal and never ordered: ``"1" != 1`` and ``True != 1``. A
comparison that makes no sense for a value (a number ``contains``) is false, not an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime, timezone
from typing import Any, Literal, TypeAlias

from ragopt._operators import MISSING, OPERATORS
from ragopt.errors import InvalidInput

Scalar: TypeAlias = str | int | float | bool | datetime | date | None
Op: TypeAlias = Literal[
    "==", "!=", "<", "<=", ">", ">=", "in", "not_in", "any", "all", "contains",
    "text_match", "text_match_insensitive", "like", "is_empty", "exists",
]  # fmt: skip
Predicate: TypeAlias = Callable[[str, str | None, Mapping[str, Any]], bool]

# Keys become identifiers in some query languages, so their alphabet is closed.
_KEY = re.compile(r"[^\W\d][\w .:/-]{0,127}")
_PLAIN = frozenset({str, int, float, bool, date, type(None)})


class Filter:
    """A condition on a record. Combine with ``&``, ``|`` and ``~``."""

    __slots__ = ()

    def __ragopt_key__(self) -> object:
        """What this filter is, for cache keys."""
        return tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def __and__(self, other: Filter) -> And:
        return And((*_parts_of(self, And), *_parts_of(other, And)))

    def __or__(self, other: Filter) -> Or:
        return Or((*_parts_of(self, Or), *_parts_of(other, Or)))

    def __invert__(self) -> Not:
        return Not(self)

    def __bool__(self) -> bool:
        raise InvalidInput(
            "A filter has no truth value.",
            fix="Combine filters with &, | and ~ instead of and, or and not; "
            "put comparisons in parentheses.",
        )


@dataclass(frozen=True, slots=True)
class Compare(Filter):
    """``metadata[key] op value``."""

    key: str
    op: Op
    value: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not _KEY.fullmatch(self.key):
            raise InvalidInput(
                f"{self.key!r} cannot be a metadata key in a filter.",
                fix="Begin with a letter or _, then up to 127 letters, digits, spaces or . : / - _",
            )
        if self.op not in OPERATORS:
            raise InvalidInput(
                f"{self.op!r} is not a filter operator.",
                fix=f"Use one of: {', '.join(OPERATORS)}.",
            )
        if self.op in ("in", "not_in", "any", "all"):
            if isinstance(self.value, (str, bytes)) or not isinstance(self.value, Iterable):
                raise InvalidInput(
                    f"The operator {self.op!r} on {self.key!r} got {self.value!r}.",
                    fix="Give it a list of values.",
                )
            value: Any = tuple(_plain(self.key, each) for each in self.value)
        else:
            value = _plain(self.key, self.value)
        object.__setattr__(self, "value", value)
        if self.op in ("text_match", "text_match_insensitive", "like") and not (
            isinstance(value, str) and value
        ):
            raise InvalidInput(
                f"The operator {self.op!r} on {self.key!r} got {self.value!r}.",
                fix="Give it a text that is not empty.",
            )


@dataclass(frozen=True, slots=True)
class And(Filter):
    """Every part holds."""

    parts: tuple[Filter, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)


@dataclass(frozen=True, slots=True)
class Or(Filter):
    """At least one part holds."""

    parts: tuple[Filter, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """The part does not hold."""

    part: Filter

    def __post_init__(self) -> None:
        _check_parts((self.part,))


@dataclass(frozen=True, slots=True)
class Ids(Filter):
    """The record's id is one of these; none of them matches nothing."""

    values: frozenset[str]

    def __init__(self, values: Iterable[str]) -> None:
        object.__setattr__(self, "values", frozenset(ids_of(values)))


@dataclass(frozen=True, slots=True)
class Documents(Filter):
    """The record was cut from one of these documents."""

    values: frozenset[str]

    def __init__(self, values: Iterable[str]) -> None:
        object.__setattr__(self, "values", frozenset(ids_of(values)))


@dataclass(frozen=True, slots=True)
class Where(Filter):
    """Any Python function of the metadata. Only for indexes that live in this process."""

    test: Callable[[Mapping[str, Any]], bool]


def _plain(key: str, value: Any) -> Scalar:
    """Return an operand as a plain value, equal to what the same object becomes as metadata."""
    if type(value) in _PLAIN:
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):  # a StrEnum, or LangChain's texts
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, datetime) and value == value:  # noqa: PLR0124 - NaT of pandas is not
        moment = datetime.combine(datetime.date(value), datetime.timetz(value))
        offset = moment.utcoffset()
        # With its zone, a time that the clock shows twice equals no other one (PEP 495).
        return moment if offset is None else moment.replace(tzinfo=timezone(offset), fold=0)
    if isinstance(value, date) and not isinstance(value, datetime):
        return date(value.year, value.month, value.day)
    raise InvalidInput(
        f"A filter on {key!r} got a value of type {type(value).__name__}.",
        fix="Compare with a string, a number, a boolean, a date or None.",
    )


def _parts_of(where: Filter, kind: type[And | Or]) -> tuple[Filter, ...]:
    """Return what a chain of & or | goes on from, so that it does not become deeper."""
    return where.parts if isinstance(where, kind) else (where,)


def _check_parts(parts: tuple[Filter, ...]) -> None:
    if not parts:
        raise InvalidInput(
            "A filter that combines nothing was given.",
            fix="Leave the filter out to search everything.",
        )
    for part in parts:
        if not isinstance(part, Filter):
            raise InvalidInput(
                f"{part!r} is not a filter.", fix='Write comparisons as F("key") == value.'
            )


def ids_of(values: Iterable[str]) -> list[str]:
    """Return ids as plain strings, or raise InvalidInput for what can be no id."""
    ids = [values] if isinstance(values, str) else list(values)
    for each in ids:
        if isinstance(values, str) or not isinstance(each, str):
            raise InvalidInput(
                f"{each!r} was given where ids are expected.", fix="Pass a list of strings."
            )
    return [str.__str__(each) for each in ids]


class F:
    """A metadata key, to be compared. ``F("year") >= 2020`` is a ``Filter``."""

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key = key

    def __eq__(self, value: Scalar) -> Compare:  # type: ignore[override]
        return Compare(self._key, "==", value)

    def __ne__(self, value: Scalar) -> Compare:  # type: ignore[override]
        return Compare(self._key, "!=", value)

    def __lt__(self, value: Scalar) -> Compare:
        return Compare(self._key, "<", value)

    def __le__(self, value: Scalar) -> Compare:
        return Compare(self._key, "<=", value)

    def __gt__(self, value: Scalar) -> Compare:
        return Compare(self._key, ">", value)

    def __ge__(self, value: Scalar) -> Compare:
        return Compare(self._key, ">=", value)

    __hash__ = None  # type: ignore[assignment]

    def is_in(self, values: Iterable[Scalar]) -> Compare:
        """The value is one of ``values``."""
        return Compare(self._key, "in", values)

    def not_in(self, values: Iterable[Scalar]) -> Compare:
        """The value is none of ``values``, or is missing."""
        return Compare(self._key, "not_in", values)

    def between(self, low: Scalar, high: Scalar) -> And:
        """``low <= value <= high``."""
        return (self >= low) & (self <= high)

    def any(self, values: Iterable[Scalar]) -> Compare:
        """The value is a list that holds at least one of ``values``."""
        return Compare(self._key, "any", values)

    def all(self, values: Iterable[Scalar]) -> Compare:
        """The value is a list that holds every one of ``values``."""
        return Compare(self._key, "all", values)

    def contains(self, value: Scalar) -> Compare:
        """The value is a list that holds ``value``."""
        return Compare(self._key, "contains", value)

    def text_match(self, text: str, *, case: bool = True) -> Compare:
        """The value is a string with ``text`` in it, with or without regard to case."""
        return Compare(self._key, "text_match" if case else "text_match_insensitive", text)

    def like(self, pattern: str) -> Compare:
        """The value is a string that fits the SQL pattern: ``%`` any run, ``_`` one character."""
        return Compare(self._key, "like", pattern)

    def is_empty(self) -> Compare:
        """The value is missing, None, an empty string or an empty list."""
        return Compare(self._key, "is_empty")

    def exists(self) -> Compare:
        """The key is there, whatever its value."""
        return Compare(self._key, "exists")


def compile_filter(where: Filter) -> Predicate:
    """Turn a filter into a function of a record's id, document id and metadata."""
    if isinstance(where, Compare):
        key, operand, verdict = where.key, where.value, OPERATORS[where.op]
        return lambda _id, _doc, metadata: verdict(metadata.get(key, MISSING), operand)
    if isinstance(where, (And, Or)):
        tests = [compile_filter(part) for part in where.parts]
        together = all if isinstance(where, And) else any
        return lambda id_, doc, metadata: together(test(id_, doc, metadata) for test in tests)
    if isinstance(where, Not):
        inner = compile_filter(where.part)
        return lambda id_, doc, metadata: not inner(id_, doc, metadata)
    if isinstance(where, Ids):
        ids = where.values
        return lambda id_, _doc, _metadata: id_ in ids
    if isinstance(where, Documents):
        documents = where.values
        return lambda _id, doc, _metadata: doc in documents
    if isinstance(where, Where):
        function = where.test
        # A copy, since it may be what the index itself has.
        return lambda _id, _doc, metadata: bool(function(dict(metadata)))
    raise InvalidInput(f"{where!r} is not a filter.", fix='Write comparisons as F("key") == value.')


def _parts(key: str, value: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, Mapping) for each in value):
        raise InvalidInput(f"{key!r} got {value!r} in a filter.", fix="Give it dicts.")
    return value


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise InvalidInput(f"$between got {value!r}.", fix="Give it a list: [low, high].")
    return value[0], value[1]


_DOLLAR: dict[str, Callable[[F, Any], Filter]] = {
    "$eq": F.__eq__, "$ne": F.__ne__, "$lt": F.__lt__, "$lte": F.__le__, "$gt": F.__gt__,
    "$gte": F.__ge__, "$in": F.is_in, "$nin": F.not_in, "$like": F.like, "$contains": F.contains,
    "$any": F.any, "$all": F.all,
    "$between": lambda field, value: field.between(*_pair(value)),
    "$exists": lambda field, value: field.exists() if value else ~field.exists(),
}  # fmt: skip


def from_dict(expression: Mapping[str, Any]) -> Filter:
    """Read the ``$``-style filters of LangChain's stores.

    ``{"lang": "ja", "year": {"$gte": 2020}, "$or": [{...}, {...}]}``; several keys mean "and".

    Raises:
        InvalidInput: The dict is empty, or has an operator that is not known.
    """
    parts: list[Filter] = []
    for key, value in expression.items():
        if key in ("$and", "$or", "$not"):
            inner = [from_dict(part) for part in _parts(key, [value] if key == "$not" else value)]
            parts.append(
                Not(inner[0]) if key == "$not" else (And if key == "$and" else Or)(tuple(inner))
            )
        elif isinstance(value, Mapping):
            for operator, operand in value.items():
                if operator not in _DOLLAR:
                    raise InvalidInput(
                        f"{operator!r} is not a filter operator (key {key!r}).",
                        fix=f"Use one of: {', '.join(_DOLLAR)}.",
                    )
                parts.append(_DOLLAR[operator](F(key), operand))
        else:
            parts.append(F(key) == value)
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def to_filter(where: object) -> Filter | None:
    """Read a filter in any form that users of the frameworks write: a Filter, a dict, a function.

    None and an empty dict mean that there is no filter.
    """
    if where is None or (isinstance(where, Mapping) and not where):
        return None
    if isinstance(where, Filter):
        return where
    if isinstance(where, Mapping):
        return from_dict(where)
    if callable(where):
        return Where(where)
    raise InvalidInput(
        f"A filter of type {type(where).__name__} was given.",
        fix="Pass a ragopt Filter, a dict, or a function of the metadata.",
    )
