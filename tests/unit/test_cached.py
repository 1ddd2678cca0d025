"""Any function, cached."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ragopt import Freshness, Lineage, SqliteStore, TieredCache, cached
from ragopt.errors import InvalidInput, UnkeyableValue
from ragopt.sources import used


def test_a_function_runs_once_for_its_arguments() -> None:
    calls: list[Any] = []

    @cached(ttl=60)
    def join(a: int, *rest: int, sep: str = "-", **more: int) -> str:
        """Join."""
        calls.append(a)
        return sep.join(map(str, (a, *rest, *more.values())))

    assert join.__name__ == "join"  # type: ignore[attr-defined]
    assert join.__doc__ == "Join."
    for _ in range(2):
        assert join(1, 2) == "1-2"
        assert join(1, 2, sep="-") == "1-2"  # the default, said
        assert join(1, 2, sep="+") == "1+2"
        assert join(1, x=2) == "1-2"  # another way to be called, another key
    assert len(calls) == 3
    assert join.values.cache.stats.hit_rate("function") == 5 / 8


@pytest.mark.parametrize(
    ("one", "other"),
    [((1,), (1.0,)), ((1,), (True,)), (("1",), (1,)), (([1],), ((1,),)), (("",), (None,))],
)
def test_arguments_that_look_alike_are_apart(one: Any, other: Any) -> None:
    @cached()
    def kind(value: Any) -> str:
        return repr(value)

    assert kind(*one) != kind(*other)
    assert (kind(*one), kind(*other)) == (repr(*one), repr(*other))


async def test_an_async_function() -> None:
    calls: list[int] = []

    @cached(ttl=60)
    async def double(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(0.05)
        return 2 * x

    assert asyncio.iscoroutinefunction(double)
    assert await asyncio.gather(*(double(3) for _ in range(20))) == [6] * 20
    assert calls == [3]


def test_threads_wait_for_one_computation() -> None:
    calls: list[int] = []
    go = threading.Event()

    @cached(ttl=60)
    def slow(x: int) -> list[int]:
        calls.append(x)
        go.wait(5)
        return [x]

    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(slow, 1) for _ in range(20)]
        while not calls:
            pass
        go.set()
        assert [each.result() for each in asked] == [[1]] * 20
    assert calls == [1]


def test_recursion_into_itself() -> None:
    @cached(ttl=60)
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(60) == 1_548_008_755_920


def test_an_argument_without_a_key_is_refused() -> None:
    @cached()
    def show(value: object) -> str:
        return str(value)

    with pytest.raises(UnkeyableValue, match=r"show.*Pass key="):
        show(object())

    @cached(key=lambda value: value.name)
    def named(value: Any) -> str:
        return str(value.name).upper()

    class Thing:
        name = "thing"

    assert named(Thing()) == named(Thing()) == "THING"
    assert named.values.cache.stats.total("function", "hit") == 1


def test_a_method_needs_a_key() -> None:
    class Model:
        def __init__(self, name: str) -> None:
            self.name = name
            self.calls = 0

        @cached(key=lambda self, text: (self.name, text))
        def length(self, text: str) -> int:
            self.calls += 1
            return len(text)

    model = Model("m")
    assert model.length("abc") == model.length("abc") == 3  # type: ignore[call-arg,arg-type]
    assert model.calls == 1


def test_wrong_calls_are_pythons_own_errors() -> None:
    @cached()
    def one(a: int) -> int:
        return a

    with pytest.raises(TypeError, match="missing a required argument"):
        one()  # type: ignore[call-arg]


def test_forget_and_clear() -> None:
    calls: list[int] = []

    @cached()
    def count(x: int) -> int:
        calls.append(x)
        return x

    count(1), count(2)
    assert count.forget(x=1) is True
    assert count.forget(1) is False
    count(1), count(2)
    assert calls == [1, 2, 1]
    count.clear()
    count(1), count(2)
    assert calls == [1, 2, 1, 1, 2]


def test_functions_and_versions_are_apart() -> None:
    cache = TieredCache()

    @cached(cache, name="f")
    def first(x: int) -> str:
        return "first"

    @cached(cache, name="f", version="2")
    def second(x: int) -> str:
        return "second"

    @cached(cache)
    def third(x: int) -> str:
        return "third"

    assert (first(1), second(1), third(1)) == ("first", "second", "third")


def test_a_result_of_ones_own_class() -> None:
    class Answer:
        def __init__(self, text: str) -> None:
            self.text = text

    @cached(encode=lambda answer: answer.text, decode=Answer)
    def ask(question: str) -> Answer:
        return Answer(question.upper())

    assert ask("a").text == ask("a").text == "A"
    assert ask.values.cache.stats.total("function", "hit") == 1


@pytest.mark.parametrize("what", ["generator", "asyncgen", "class", "partial"])
def test_what_cannot_be_cached_is_refused(what: str) -> None:
    def generator() -> Any:
        yield 1

    async def asyncgen() -> Any:
        yield 1

    things = {"generator": generator, "asyncgen": asyncgen, "class": dict, "partial": print}
    with pytest.raises(InvalidInput):
        cached()(things[what])  # type: ignore[arg-type]


def test_lineage_and_freshness(tmp_path: Path) -> None:
    cache = TieredCache(SqliteStore(tmp_path / "cache.db"))
    lineage = Lineage(cache)
    texts = {"a": "old"}

    @cached(cache, ttl=Freshness(60, jitter=0.1), lineage=lineage)
    def read(name: str) -> str:
        used([name])
        return texts[name]

    read("a")
    texts["a"] = "new"
    assert read("a") == "old"
    lineage.changed("a")
    assert read("a") == "new"
