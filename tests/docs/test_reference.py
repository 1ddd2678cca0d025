"""Every public class has a docstring and a place in the reference."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import pytest

from tests.docs.pages import ROOT

PACKAGES = ("ragopt", "ragopt.langchain", "ragopt.llama_index", "ragopt.testing")


def public() -> list[str]:
    """Return the dotted names of everything public that is a class or a function."""
    return [
        f"{package}.{name}"
        for package in PACKAGES
        for name in import_module(package).__all__
        if not name.startswith("__")
    ]


def resolve(path: str) -> object:
    """Return what a dotted path names: modules first, then attributes."""
    parts = path.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(path)


def shown(text: str) -> list[str]:
    """Return the paths that a page hands to mkdocstrings."""
    return re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE)


def reference() -> list[str]:
    pages = sorted((ROOT / "docs/reference").glob("*.md"))
    return [path for page in pages for path in shown(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", public())
def test_every_public_name_is_in_the_reference(name: str) -> None:
    value = resolve(name)
    assert any(resolve(path) is value for path in reference()), f"add '::: {name}' to a page"


@pytest.mark.parametrize("name", public())
def test_every_public_name_has_a_docstring(name: str) -> None:
    value = resolve(name)
    if inspect.isroutine(value):
        text = value.__doc__
    else:  # its own, not one that its class inherits
        text = vars(value if inspect.isclass(value) else type(value)).get("__doc__")
    assert (text or "").strip()


def test_nothing_is_shown_twice() -> None:
    paths = reference()
    assert len({id(resolve(path)) for path in paths}) == len(paths)


def test_control_what_is_not_shown_is_seen() -> None:
    paths = shown("# Page\n\n::: ragopt.MemoryStore\n    options:\n      a: b\n\n::: ragopt.F\n")
    assert paths == ["ragopt.MemoryStore", "ragopt.F"]
    store = resolve("ragopt.stores.sqlite.SqliteStore")
    assert not any(resolve(path) is store for path in paths)
    assert resolve("ragopt.stores.memory.MemoryStore") is resolve("ragopt.MemoryStore")
    with pytest.raises(AttributeError):
        resolve("ragopt.NoSuchClass")
