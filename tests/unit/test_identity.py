"""What other libraries' objects are in cache keys."""

import enum
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ragopt.cache.identity import identity
from ragopt.embedders.hashing import HashingEmbedder
from ragopt.errors import UnkeyableValue
from ragopt.keys import encode


class Colour(enum.Enum):
    RED = 1
    BLUE = 1.5


class Text(str):
    pass


@dataclass
class Model:
    name: str
    api_key: str = ""


class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def call(self, text: str) -> str:
        return text


class Component:
    """Something with one setting."""

    def __init__(self, value: Any) -> None:
        self.value = value


def of(value: Any, **options: Any) -> bytes:
    return encode(identity(Component(value), **options))


def adder(number: int) -> Any:
    return lambda other: other + number


def looks_in_a_set(word: str) -> bool:
    return word in {"alpha", "beta", "gamma", "delta"}


APART = [
    None,
    True,
    1,
    1.0,
    "1",
    b"1",
    [],
    (),
    {},
    set(),
    [1],
    (1,),
    {1},
    {1: 2},
    {1: "2"},
    {"a": 1, "b": 2},
    {"a": 2, "b": 1},
    ["list", [1]],
    ("list", [1]),
    [[1], [2]],
    [[1, 2]],
    Colour.RED,
    Colour.BLUE,
    Path("a"),
    "a",
    re.compile("a"),
    re.compile("a", re.IGNORECASE),
    int,
    str,
    len,
    max,
    "text".upper,
    adder(1),
    adder(2),
    lambda: 1,
    lambda: 2,
    lambda: (1, "a"),
    lambda: (1, "b"),
    lambda x=1: x,
    lambda x=2: x,
    lambda x: x in {"a", "b"},
    lambda x: x in {"a", "c"},
    lambda: [i for i in range(3)],  # noqa: C416 - its code has code within
    lambda: [-i for i in range(3)],
    partial(max, 1),
    partial(max, 2),
    partial(max, key=len),
    Named("one").call,
    Named("two").call,
    Named("one"),
    Named("two"),
    Model("one"),
    Model("two"),
    HashingEmbedder(32),
    HashingEmbedder(64),
    Component,
]


def test_other_values_are_apart_and_the_same_are_the_same() -> None:
    assert len({of(value) for value in APART}) == len(APART)
    for value in APART:
        assert of(value) == of(value)
    assert of(Text("a")) == of("a")
    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1})
    assert of(adder(1)) == of(adder(1))


def test_secrets_take_no_part() -> None:
    assert of(Model("one", "key 1")) == of(Model("one", "key 2"))
    for name in (
        "api_key",
        "openai_api_key",
        "API-KEY",
        "token",
        "hf_token",
        "password",
        "headers",
    ):
        assert of({name: "1"}) == of({name: "2"}) == of({}), name
    for name in ("max_tokens", "tokenizer", "stop_token", "keys", "keyword", "header_level"):
        assert of({name: "1"}) != of({name: "2"}), name


def test_what_cannot_be_told_needs_a_name() -> None:
    for value in (object(), [object()], {"a": object()}):
        with pytest.raises(UnkeyableValue, match=r"of type builtins\.object"):
            of(value)
        assert of(value, name="one") != of(value, name="two")
    assert of(1, name="one") != of(2, name="one")
    assert of(1, name="one") != of(1)


def test_an_object_that_holds_itself() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert of(loop) == of(loop)

    def recursive(number: int) -> int:
        return recursive(number - 1)

    assert of(recursive) == of(recursive)


def test_it_is_the_same_in_another_process() -> None:
    code = (
        "from tests.unit.test_identity import of, looks_in_a_set, adder;"
        "print(of([looks_in_a_set, adder(1), {'a', 'b', 'c'}]).hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(["", *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
