"""RedisVL's filters find the same here as in Redis itself, or are refused."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.commands.search.query import Query
from redisvl.query.filter import FilterExpression, Geo, GeoRadius, Num, Tag, Text, Timestamp

from ragopt import HashingEmbedder, RedisIndex
from ragopt.errors import InvalidInput
from ragopt.filters import compile_filter
from ragopt.langchain import IndexVectorStore
from ragopt.langchain.filters import to_filter

# Without what RedisVL itself cannot find: white space but single ones inside, and the separator.
WORDS = ["a", "ab", "tech", "high-tech", "tech support", "a|b", "x*", "*", "{b}", "a,b", "50%",
         "(-@one:{a})", "a_b", "\\", '"', "日本", "-1", "@", "~", "$x", "'", "A"]  # fmt: skip
NUMBERS = [-3, -1, 0, 1, 1.5, 2, 7.25, 10**9, 1e-7, -1e300]
TIMES = [datetime(2024, 2, 28, 12, tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC)]
TIMES += [datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)]


def records() -> list[dict[str, Any]]:
    """Return metadata in which every value stands, alone, with others, and not at all."""
    made: list[dict[str, Any]] = [{}]
    words, numbers = itertools.cycle(WORDS), itertools.cycle(NUMBERS)
    times = itertools.cycle(at.timestamp() for at in TIMES)
    made += [{"one": word, "number": next(numbers)} for word in WORDS]
    made += [{"many": [word, next(words)], "at": next(times)} for word in WORDS]
    made += [{"number": number, "at": next(times), "one": next(words)} for number in NUMBERS * 2]
    return made


RECORDS = records()


@pytest.fixture(scope="module")
def ask(redis_url: str) -> Iterator[Callable[[FilterExpression], set[int]]]:
    """Search with an expression in Redis; return the places of the records that it finds."""
    name = f"redisvl_{secrets.token_hex(4)}"
    with redis.Redis.from_url(redis_url) as client:
        tag = "TAG", "SEPARATOR", ";", "CASESENSITIVE", "INDEXMISSING"
        number = "NUMERIC", "INDEXMISSING"
        client.execute_command(
            "FT.CREATE", name, "PREFIX", 1, f"{name}:", "SCHEMA",
            "one", *tag, "many", *tag, "number", *number, "at", *number,
        )  # fmt: skip
        for place, record in enumerate(RECORDS):
            fields = {k: ";".join(v) if isinstance(v, list) else v for k, v in record.items()}
            client.hset(f"{name}:{place}", mapping={"any": 1, **fields})

        def find(expression: FilterExpression) -> set[int]:
            query = Query(str(expression)).no_content().paging(0, 1_000).dialect(2)
            return {int(hit.id.rpartition(":")[2]) for hit in client.ft(name).search(query).docs}

        yield find
        client.execute_command("FT.DROPINDEX", name, "DD")


def ours(expression: Any) -> set[int]:
    """Return the places of the records that the same expression finds in ragopt."""
    where = to_filter(expression)
    assert where is not None
    matches = compile_filter(where)
    return {place for place, record in enumerate(RECORDS) if matches("", None, record)}


WORD = st.sampled_from([*WORDS, "absent"])
BOUND = st.sampled_from([*NUMBERS, 0.5, 10**15])
MOMENT = st.sampled_from(
    [*TIMES, *(at.timestamp() for at in TIMES), date(2024, 2, 29), "2024-02-29"]
)
INCLUSIVE = st.sampled_from(["both", "neither", "left", "right"])
LEAVES = st.one_of(
    st.builds(lambda f, v: Tag(f) == v, st.sampled_from(["one", "many"]), WORD),
    st.builds(lambda f, v: Tag(f) != v, st.sampled_from(["one", "many"]), WORD),
    st.builds(lambda v: Tag("many") == v, st.lists(WORD, min_size=1, max_size=3)),
    st.builds(lambda v: Tag("one") != v, st.lists(WORD, min_size=1, max_size=3)),
    st.builds(lambda v: Tag("one") % v, st.sampled_from(["te*", "high*", "hi*|te*", "50*"])),
    st.sampled_from([Tag("one"), Num("number"), Timestamp("at")]).map(lambda f: f.is_missing()),
    st.builds(lambda op, v: getattr(Num("number"), op)(v), st.sampled_from(
        ["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"]), BOUND),
    st.builds(lambda a, b, i: Num("number").between(a, b, i), BOUND, BOUND, INCLUSIVE),
    st.builds(lambda op, v: getattr(Timestamp("at"), op)(v), st.sampled_from(
        ["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"]), MOMENT),
    st.builds(lambda a, b, i: Timestamp("at").between(a, b, i), MOMENT, MOMENT, INCLUSIVE),
)  # fmt: skip
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner), st.builds(lambda a, b: a | b, inner, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(EXPRESSIONS)
def test_the_same_records_as_in_redis(
    ask: Callable[[FilterExpression], set[int]], expression: FilterExpression
) -> None:
    assert ours(expression) == ask(expression), str(expression)


@pytest.mark.parametrize(
    "empty",
    [
        Tag("one") == "",
        Tag("one") == [],
        Tag("one") == [None, ""],
        Tag("one") != "",
        Tag("one") == None,  # noqa: E711
        Tag("one") % "",
        Num("number") == None,  # noqa: E711
        Text("one") == "",
        Geo("one") == None,  # noqa: E711
        FilterExpression("*"),
        FilterExpression(" * "),
        FilterExpression(""),
        FilterExpression(),
    ],
)
def test_an_empty_value_never_means_everything(empty: FilterExpression) -> None:
    fine = Tag("one") == "a"
    for expression in (empty, fine & empty, empty & fine, fine | (fine & empty)):
        with pytest.raises(InvalidInput, match="matches everything, which is what RedisVL makes"):
            to_filter(expression)


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        (
            Text("t") == "words",
            r'Text fields are searched by their words. Write F\("t"\).text_match',
        ),
        (Text("t") != "words", "Text fields are searched by their words"),
        (Text("t") % "wor*|(x)", "Text fields are searched by their words"),
        (Geo("g") == GeoRadius(1, 2, 3), "there are no places in metadata"),
        (Geo("g") != GeoRadius(1.5, -2, 3, "mi"), "there are no places in metadata"),
        (Tag("a") % "a_*", "a wildcard stands beside _ or %, or alone"),
        (Tag("a") % "50%*", "a wildcard stands beside _ or %, or alone"),
        (Tag("a") % "*", "a wildcard stands beside _ or %, or alone"),
        (Tag("a") % "te?t", "it was not made by Tag, Num or Timestamp"),
        (FilterExpression("(-@a:{te*})"), "a wildcard stands beside"),
        (FilterExpression("(-ismissing(@a))"), "it was not made by"),
        (FilterExpression("@a:{x} | @b:{y}"), "it was not made by"),
        (FilterExpression("@a:{x}@b:{y}"), "it was not made by"),
        (FilterExpression("@a:{}"), "it was not made by"),
        (FilterExpression("@a:[1 x]"), "it was not made by"),
        (FilterExpression("@a:[nan nan]"), "it was not made by"),
        (FilterExpression("words"), "it was not made by"),
        (Tag("a:{x}|@b") == "y", "it was not made by"),
        ((Tag("a") == "x") & 7, "was combined with 7"),
    ],
)
def test_what_cannot_be_said_is_refused(expression: FilterExpression, sentence: str) -> None:
    fine = Tag("one") == "a"
    for each in (expression, fine & expression, expression | fine):
        with pytest.raises(InvalidInput, match=sentence):
            to_filter(each)


def test_a_field_name_is_checked_like_every_other() -> None:
    with pytest.raises(InvalidInput, match="'1a' cannot be a metadata key"):
        to_filter(Tag("1a") == "x")


def test_a_store_takes_them(redis_url: str) -> None:
    embedder = HashingEmbedder(16)
    with RedisIndex(redis_url, f"t_{secrets.token_hex(4)}") as index:
        store = IndexVectorStore(index, embedder)
        store.add_texts(["a", "b", "c"], [{"n": n, "tags": ["x"] * n} for n in range(3)])
        where = (Num("n") >= 1) & (Tag("tags") == ["x", "y"])
        assert {hit.page_content for hit in store.similarity_search("a", filter=where)} == {
            "b",
            "c",
        }
        store.delete(filter=Num("n") == 1)
        assert {hit.page_content for hit in store.similarity_search("a")} == {"a", "c"}
        index.drop()
