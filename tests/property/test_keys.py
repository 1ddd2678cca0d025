import itertools
import random
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragopt.errors import InvalidInput, UnkeyableValue
from ragopt.filters import F, Filter, Ids, Where
from ragopt.keys import KeySpace, encode, namespace_prefix

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(st.text(), inner)
    ),
    max_leaves=10,
)

AWKWARD: list[Any] = [
    "", ":", "a", "a:b", "b", "ab", "1", "1:a", "s1:a", "\x00", "é", "e\u0301", "None", "True",
    None, True, False, 0, 1, -1, 10, 1.0, 0.0, -0.0, b"", b"a", b"1",
    (), [], {}, ("a",), ["a"], ("a", "b"), ("ab",), ("a", ""), ("", "a"), [["a"]], [["a"], "b"],
    [["a", "b"]], {"a": "b"}, {"b": "a"}, {"a": {"b": 1}}, {"a": 1, "b": 2}, [("a", 1)],
    date(2025, 1, 1), datetime(2025, 1, 1), datetime(2025, 1, 1, tzinfo=UTC), "2025-01-01",
    F("a") == 1, F("a") == "1", F("a") != 1, F("b") == 1, ~(F("a") == 1), Ids(["a"]), Ids(["b"]),
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Whether two values are one input: type by type, not by Python's equality."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float):
        return bool(repr(a) == repr(b))
    if isinstance(a, datetime):
        return bool(a.isoformat() == b.isoformat())
    return bool(a == b)


@given(VALUES, VALUES)
def test_equal_encodings_are_equal_values(a: Any, b: Any) -> None:
    assert (encode(a) == encode(b)) == same(a, b)


def test_no_join_of_awkward_parts_collides() -> None:
    inputs = [*AWKWARD, *itertools.product(AWKWARD, repeat=2)]
    encodings = [encode(value) for value in inputs]
    distinct = set(encodings)
    # ("a", "b") stands in both lists of inputs; everything else is an input of its own.
    repeated = sum(isinstance(value, tuple) and len(value) == 2 for value in AWKWARD)
    assert len(distinct) == len(inputs) - repeated


@pytest.mark.parametrize(
    ("most", "count"), [(4, 70_000), pytest.param(5, 1_000_000, marks=pytest.mark.slow)]
)
def test_many_inputs_have_as_many_keys(most: int, count: int) -> None:
    """Every tuple of up to so many awkward strings, and random ones over few characters."""
    parts = [value for value in AWKWARD if isinstance(value, str)]
    lengths = range(1, most + 1)
    inputs = {each for length in lengths for each in itertools.product(parts, repeat=length)}
    assert len(inputs) < 0.9 * count, "the random ones count as well"
    picked = random.Random(1)
    while len(inputs) < count:
        texts = ("".join(picked.choices("ab:1\x00", k=picked.randrange(7))) for _ in range(3))
        inputs.add(tuple(texts))
    space = KeySpace("answer", ("model", 1))
    assert len({space.key(each) for each in inputs}) == len(inputs)


def test_the_control_a_plain_join_does_collide() -> None:
    parts = [v for v in AWKWARD if isinstance(v, str)]
    joined = {":".join(pair) for pair in itertools.product(parts, repeat=2)}
    assert len(joined) < len(parts) ** 2


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_a_dict_does_not_matter(value: dict[str, int]) -> None:
    assert encode(value) == encode(dict(reversed(value.items())))


def test_every_part_of_a_key_counts() -> None:
    keys = {
        KeySpace(kind, settings, namespace=namespace, tenant=tenant).key(payload)
        for kind in ("answer", "embedding")
        for settings in (None, ("m", 1), ("m", "1"))
        for namespace in ("default", "a", "a:b")
        for tenant in (None, "-", "a", "b:c", "None")
        for payload in ("x", ("x",), ("x", "y"))
    }
    assert len(keys) == 2 * 3 * 3 * 5 * 3


def test_no_prefix_is_the_start_of_another() -> None:
    names = ["a", "ab", "a:", "a:b", "%3A", "-", "a%", "ü"]
    prefixes = [
        namespace_prefix(namespace, tenant, kind)
        for namespace in names
        for tenant in (None, *names)
        for kind in ("answer", "answers")
    ]
    for a, b in itertools.combinations(prefixes, 2):
        assert not a.startswith(b)
        assert not b.startswith(a)
    assert namespace_prefix("a", "b", "c").startswith(namespace_prefix("a", "b"))
    assert namespace_prefix("a", "b").startswith(namespace_prefix("a"))
    assert namespace_prefix("a", "b") != namespace_prefix("a")


@given(st.lists(st.text(alphabet=st.characters(), max_size=50), max_size=20))
def test_the_short_cut_for_texts_makes_the_same_keys(texts: list[str]) -> None:
    space = KeySpace("embedding", ("model", 1))
    assert space.text_keys(texts) == [space.key(text) for text in texts]


class Shady:
    def __str__(self) -> str:
        return "a"


@pytest.mark.parametrize("value", [Shady(), object(), lambda: 1, [Shady()], {"a": Shady()}, 1j])
def test_what_has_no_encoding_is_refused(value: Any) -> None:
    with pytest.raises(UnkeyableValue, match="cannot be part of a cache key"):
        encode(value)


def test_a_function_as_filter_is_refused() -> None:
    where: Filter = Where(lambda metadata: True)
    with pytest.raises(UnkeyableValue):
        encode(where)


@pytest.mark.parametrize("name", ["namespace", "tenant", "kind"])
def test_an_empty_name_is_refused(name: str) -> None:
    names: dict[str, Any] = {"namespace": "n", "tenant": "t", "kind": "k", name: ""}
    with pytest.raises(InvalidInput, match=f"The {name} of a cache is empty"):
        KeySpace(names.pop("kind"), **names)


class Name(str):
    __slots__ = ()


def test_a_subclass_of_str_is_the_string_it_is() -> None:
    assert encode(Name("a")) == encode("a")
