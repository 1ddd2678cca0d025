"""Random metadata and filters, with the values on which backends like to disagree."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from ragopt.filters import And, Compare, Documents, Filter, Ids, Not, Or

KEYS = ["a", "b", "key with. dots"]
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-3.5))])
INSTANTS = st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 2))
TEXTS = st.one_of(
    st.text("abAB%_\\'\"ßẞſKİıé日\n.", max_size=4),
    st.sampled_from(["", "true", "1", "2024-01-01", "straße", "STRASSE"]),
)
NUMBERS = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([2**53, 2**53 + 1, 10**23, 0.5, -0.0, 1e23, 2.0**53, 1e-7, 5e-324, 1e300]),
    st.sampled_from([math.inf, -math.inf, math.nan, 0.1, 0.30000000000000004, 3.0]),
)


def moments(instants: st.SearchStrategy[datetime]) -> st.SearchStrategy[date]:
    """Return dates, and instants without and with a zone."""
    whole = instants.map(lambda at: at.replace(microsecond=0))
    return st.one_of(
        st.dates(date(2024, 1, 1), date(2024, 1, 3)),
        instants,
        st.builds(datetime.replace, whole, tzinfo=ZONES),
    )


SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, moments(INSTANTS))
PATTERNS = st.text("ab%_\\ßé日\n", min_size=1, max_size=4)


def values(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return scalars, lists of them, and what is nested deeper."""
    return st.one_of(
        scalars,
        st.lists(scalars, max_size=3),
        st.lists(scalars, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["a", "$date", "$float", "$tuple"]), scalars, max_size=2),
        st.lists(st.lists(scalars, max_size=2), max_size=2),
    )


def comparisons(
    scalars: st.SearchStrategy[Any], texts: st.SearchStrategy[str]
) -> st.SearchStrategy[Filter]:
    """Return comparisons of one key by every operator, with a scalar, several, or a text."""
    one = ["==", "!=", "<", "<=", ">", ">=", "contains"]
    several = ["in", "not_in", "any", "all"]
    text = ["text_match", "text_match_insensitive", "like"]
    key = st.sampled_from(KEYS)
    return st.one_of(
        st.builds(Compare, key, st.sampled_from(one), scalars),
        st.builds(Compare, key, st.sampled_from(several), st.lists(scalars, max_size=4)),
        st.builds(Compare, key, st.sampled_from(text), texts),
        st.builds(Compare, key, st.sampled_from(["is_empty", "exists"])),
    )


def nested(leaves: st.SearchStrategy[Filter], most: int) -> st.SearchStrategy[Filter]:
    """Return filters of up to ``most`` comparisons, ids and documents."""
    return st.recursive(
        st.one_of(
            leaves,
            st.builds(Ids, st.lists(st.sampled_from(["0", "1", "2", "no"]), max_size=3)),
            st.builds(Documents, st.lists(st.sampled_from(["d0", "d1", "no"]), max_size=2)),
        ),
        lambda inner: st.one_of(
            st.builds(Not, inner),
            st.builds(And, st.lists(inner, min_size=1, max_size=3).map(tuple)),
            st.builds(Or, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        ),
        max_leaves=most,
    )


FILTERS = nested(comparisons(SCALARS, st.one_of(PATTERNS, TEXTS.filter(bool), st.just("\0"))), 4)
METADATA = st.dictionaries(st.sampled_from(KEYS), values(SCALARS), max_size=3)
