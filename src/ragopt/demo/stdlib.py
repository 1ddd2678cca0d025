"""The documentation of Python's standard library, as it is installed: the demo's own corpus."""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.resources import files
from inspect import Parameter
from types import ModuleType
from typing import Any

from ragopt.demo.passages import Passage, split

# Games, programs, tests, what acts when it is imported, and other systems' sides of os.path.
_SKIPPED = re.compile(
    r"(antigravity|this|idlelib|test|turtle|turtledemo|tkinter|lib2to3|distutils|ensurepip|"
    r"pydoc_data|encodings|readline|rlcompleter|nt|ntpath|posix|posixpath|genericpath)(\.|$)"
    r"|(^|\.)_|(^|\.)tests?(\.|$)"
)
_STARS: dict[object, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
_PLAIN = (str, bytes, int, float, bool, type(None))


def read(limit: int) -> tuple[list[Passage], int, list[str]]:
    """Read the docstrings of modules, classes, functions and methods.

    Args:
        limit: The most passages to return.

    Returns:
        Passages in an order that is the same every time, how many more there are, and the
        names of modules that cannot be imported here.
    """
    passages: list[Passage] = []
    seen: set[str] = set()
    missing: list[str] = []
    for name in _modules():
        module = _load(name)
        if module is None:
            missing.append(name)
            continue
        for path, value in _documented(name, module):
            doc = inspect.cleandoc(value.__doc__)
            if not doc or doc in seen:
                continue  # an alias, or a method that repeats the one it overrides
            seen.add(doc)
            parts = split(f"{_heading(path, value)}: {doc}")
            passages += [
                Passage(path if number == 1 else f"{path}#{number}", part, path)
                for number, part in enumerate(parts, 1)
            ]
    unique = {passage.id: passage for passage in passages}
    return list(unique.values())[:limit], max(0, len(unique) - limit), missing


def _modules() -> list[str]:
    # What people ask about first, so that a small corpus holds it; the others follow by name.
    text = files("ragopt.demo").joinpath("stdlib_modules.txt").read_text(encoding="utf-8")
    first = text.split()
    names = set(first)
    for name in sys.stdlib_module_names:
        if not _SKIPPED.search(name):
            names.add(name)
            names.update(_submodules(name))
    return first + sorted(names.difference(first))


def _submodules(name: str) -> Iterator[str]:
    module = _load(name)
    for part in pkgutil.iter_modules(getattr(module, "__path__", ())):
        path = f"{name}.{part.name}"
        if not _SKIPPED.search(path):
            yield path
            if part.ispkg:
                yield from _submodules(path)


def _load(name: str) -> ModuleType | None:
    """Import a module in silence; None for one of another system, or that is not built in."""
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            try:
                return import_module(name)
            except (Exception, SystemExit):  # noqa: BLE001 - whatever it is, the caller counts it
                return None


def _documented(name: str, module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the qualified name of everything public that the module documents."""
    if module.__doc__:
        yield name, module
    for key in sorted(_public(module)):
        value = inspect.getattr_static(module, key, None)
        path = key if name == "builtins" else f"{name}.{key}"
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if isinstance(value.__doc__, str):
            yield path, value
        if inspect.isclass(value):
            for method, member in sorted(vars(value).items()):
                if not method.startswith("_") and isinstance(_doc(member), str):
                    yield f"{path}.{method}", member


def _public(module: ModuleType) -> list[str]:
    stated = getattr(module, "__all__", None)
    if stated is not None:
        return list(stated)
    own = {module.__name__, f"_{module.__name__}"}  # the second: the part of it written in C
    return [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) in own
    ]


def _doc(member: object) -> object:
    # Anything else in a class, such as a constant, has the docstring of its type.
    described = inspect.isroutine(member) or inspect.isdatadescriptor(member)
    return member.__doc__ if described else None


def _heading(path: str, value: Any) -> str:
    if isinstance(value, ModuleType):
        return f"module {path}"
    return f"{'class ' if inspect.isclass(value) else ''}{path}{_signature(value)}"


def _signature(value: Any) -> str:
    """Return the arguments, without annotations and without defaults that print an address."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    try:
        parameters = inspect.signature(value).parameters.values()
    except (AttributeError, TypeError, ValueError):
        return ""  # written in C without a signature: the docstring begins with it
    shown = []
    for parameter in parameters:
        stars = _STARS.get(parameter.kind, "")
        default = parameter.default
        if default is parameter.empty:
            ending = ""
        else:
            ending = f"={default!r}" if isinstance(default, _PLAIN) else "=..."
        if parameter.name != "self":
            shown.append(f"{stars}{parameter.name}{ending}")
    return f"({', '.join(shown)})"
