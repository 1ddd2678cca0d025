"""LlamaIndex metadata filters as ragopt filters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from ragopt.errors import InvalidInput
from ragopt.filters import And, Documents, F, Filter, Ids, Not, Or

_OPERATORS: dict[FilterOperator, Callable[[F, Any], Filter]] = {
    FilterOperator.EQ: lambda field, value: field == value,
    FilterOperator.NE: lambda field, value: field != value,
    FilterOperator.GT: lambda field, value: field > value,
    FilterOperator.GTE: lambda field, value: field >= value,
    FilterOperator.LT: lambda field, value: field < value,
    FilterOperator.LTE: lambda field, value: field <= value,
    FilterOperator.IN: lambda field, value: field.is_in(value),
    FilterOperator.NIN: lambda field, value: field.not_in(value),
    FilterOperator.ANY: lambda field, value: field.any(value),
    FilterOperator.ALL: lambda field, value: field.all(value),
    FilterOperator.CONTAINS: lambda field, value: field.contains(value),
    FilterOperator.TEXT_MATCH: lambda field, value: field.text_match(value),
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda field, value: field.text_match(value, case=False),
    FilterOperator.IS_EMPTY: lambda field, _: field.is_empty(),
}


def convert(filters: MetadataFilters | None) -> Filter | None:
    """Return the same condition as a ragopt filter; None for no filter.

    A ``NOT`` over several filters holds when none of them does, as in LlamaIndex itself.
    """
    if filters is None or not filters.filters:
        return None
    parts = tuple(_part(part) for part in filters.filters)
    if filters.condition is FilterCondition.NOT:
        return Not(parts[0] if len(parts) == 1 else Or(parts))
    if len(parts) == 1:
        return parts[0]
    return Or(parts) if filters.condition is FilterCondition.OR else And(parts)


def _part(part: MetadataFilter | MetadataFilters) -> Filter:
    if isinstance(part, MetadataFilter):
        return _OPERATORS[part.operator](F(part.key), part.value)
    inner = convert(part)
    if inner is None:
        raise InvalidInput(
            "A group of filters is empty.", fix="Leave it out, or put a filter into it."
        )
    return inner


def selection(
    filters: MetadataFilters | None = None,
    node_ids: Sequence[str] | None = None,
    doc_ids: Sequence[str] | None = None,
) -> Filter | None:
    """Return the filter that meets all conditions given; None if there is none.

    An empty list of ids matches nothing: it never means "all".
    """
    parts = [
        part
        for part in (
            None if node_ids is None else Ids(node_ids),
            None if doc_ids is None else Documents(doc_ids),
            convert(filters),
        )
        if part is not None
    ]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else And(tuple(parts))
