"""In how many records each value of a metadata key is: the same counting for every index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from ragopt._operators import family_of
from ragopt.filters import Scalar

# What a filter can ask for, in the order of values that are in equally many records.
_FAMILIES = ("NoneType", "bool", "number", "date", "naive", "aware", "str")


def by_frequency(values: Iterable[tuple[Any, int]]) -> list[tuple[Scalar, int]]:
    """Return what ``VectorIndex.counts`` does.

    Args:
        values: What records have under the key, and how many have just that; ``MISSING`` counts
            for nothing.
    """
    # By family and value, since True == 1 in Python, and not in a filter.
    counted: Counter[tuple[str, Any]] = Counter()
    for value, records in values:
        for item in _items(value):
            counted[item] += records
    ordered = sorted(
        (-number, _FAMILIES.index(family), value) for (family, value), number in counted.items()
    )
    return [(_plain(value), -number) for number, _, value in ordered]


def _items(value: Any) -> set[tuple[str, Any]]:
    """Return what a record with this value counts for."""
    items = value if isinstance(value, list | tuple) else (value,)
    each = ((family_of(item), item) for item in items)
    # NaN equals nothing, itself included.
    return {(of, item) for of, item in each if of in _FAMILIES and item == item}  # noqa: PLR0124


def _plain(value: Scalar) -> Scalar:
    """Return of all values that are equal the same one, whichever was seen first."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        try:
            return value.astimezone(UTC)
        except OverflowError:  # an instant before the year 1 or after 9999
            return value
    return value
