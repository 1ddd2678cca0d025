"""What another library's object is, for cache keys: its class and its settings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from ragopt.errors import UnkeyableValue
from ragopt.keys import encode
from ragopt.types import EmbedderSpec

# Who asks and what for: it changes no result, and a key must not hold it, not even hashed.
_SECRET = re.compile(
    r"(^|[_-])((api|access|secret|private|auth)[_-]?keys?|secrets?|passw(or)?d|credentials?"
    r"|authorization|headers|(access|api|auth|bearer|hf|id|refresh|session)[_-]token)$|^token$",
    re.IGNORECASE,
)

# How fast and how visibly it is done, and what is done with it elsewhere.
_NEUTRAL = {
    "callback_manager",
    "embed_batch_size",
    "embeddings_cache",
    "num_workers",
    "rate_limiter",
    "show_progress",
}

_NAMES = ("name_or_path", "model_name", "name")  # what tells objects of one class apart


def identity(component: object, *, name: str | None = None) -> object:
    """Return what a key can hold of an object that computes something.

    That is its class and its settings: plain values, functions (by their code and what they
    enclose), other components. Secrets are left out, so a new password finds the old entries.

    Args:
        component: A splitter, an embedding, an extractor, or the like.
        name: Stands for the settings that no key can hold. Change it when they change.

    Raises:
        UnkeyableValue: A setting is an object of another kind, and there is no name.
    """
    return name, _Describer(lenient=name is not None).component(component)


class _Describer:
    """Turns settings into plain values, each tagged with what it was."""

    def __init__(self, *, lenient: bool) -> None:
        self._lenient = lenient
        self._open: list[object] = []  # what is being described, for objects that hold themselves

    def component(self, value: object) -> Any:
        kind = type(value)
        public = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", None)
        extra = getattr(value, "__pydantic_extra__", None) or {}
        names: Iterable[str] = vars(value) if public is None else [*public, *extra]
        settings = {name: self.value(getattr(value, name)) for name in _telling(names)}
        # A model's private attributes are mostly clients and caches, which come and go. Those
        # that compute take part: a tokeniser often has no public field.
        private = getattr(value, "__pydantic_private__", None) or {}
        hidden = {
            name: self.inside(private[name])
            for name in _telling(private)
            if _computes(private[name])
        }
        return "component", _path(kind), settings, hidden

    def inside(self, value: object) -> Any:
        """Describe what is no public setting, where it is enough to tell what can be told."""
        lenient, self._lenient = self._lenient, True
        try:
            return self.value(value)
        finally:
            self._lenient = lenient

    def value(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (str, bytes, bool, int, float, date, datetime):
            return value
        if any(value is each for each in self._open):
            return ("itself",)
        self._open.append(value)
        try:
            return self._other(value, kind)
        finally:
            self._open.pop()

    def _other(self, value: Any, kind: type) -> Any:
        if isinstance(value, Enum):
            return "enum", _path(kind), value.name
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, (list, tuple)):
            return "list" if isinstance(value, list) else "tuple", [*map(self.value, value)]
        if isinstance(value, (set, frozenset)):
            return "set", {encode(self.value(item)) for item in value}
        if isinstance(value, dict):
            kept = [key for key in value if not (isinstance(key, str) and _SECRET.search(key))]
            return "dict", {encode(self.value(key)): self.value(value[key]) for key in kept}
        if isinstance(value, PurePath):
            return "path", str(value)
        if isinstance(value, re.Pattern):
            return "pattern", value.pattern, value.flags
        if isinstance(value, type):
            return "class", _path(value)
        if isinstance(value, (partial, FunctionType, MethodType, BuiltinFunctionType)):
            return self._function(value)
        spec = getattr(value, "spec", None)
        if isinstance(spec, EmbedderSpec):
            return "embedder", spec.model, spec.revision, spec.dimension, spec.params
        if hasattr(value, "get_secret_value"):
            return ("secret",)
        if hasattr(kind, "model_fields") or hasattr(kind, "__dataclass_fields__"):
            return self.component(value)
        for name in _NAMES:
            told = getattr(value, name, None)
            if isinstance(told, str) and told:
                return "object", _path(kind), told
        if self._lenient:
            return "object", _path(kind)
        raise UnkeyableValue(
            f"A setting of type {_path(kind)} cannot be part of a cache key.",
            fix='Pass name="..." for the settings that no key can hold, and change it with them.',
        )

    def _function(self, value: Any) -> Any:
        if isinstance(value, partial):
            bound = (list(value.args), value.keywords)
            return "partial", self.inside(value.func), self.inside(bound)
        if isinstance(value, FunctionType):
            cells = [_content(cell) for cell in value.__closure__ or ()]
            enclosed = (cells, value.__defaults__, value.__kwdefaults__)
            code = _code(value.__code__)
            return "function", value.__module__, value.__qualname__, code, self.inside(enclosed)
        owner = value.__self__  # of a method its object, of a built-in function its module
        whose = owner.__name__ if isinstance(owner, ModuleType) else self.inside(owner)
        function = getattr(value, "__func__", None)  # None where it is not written in Python
        return "method", whose, value.__qualname__, self.inside(function)


def _telling(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name not in _NEUTRAL and not _SECRET.search(name))


def _computes(value: object) -> bool:
    return (
        callable(value)
        or hasattr(type(value), "model_fields")
        or isinstance(getattr(value, "spec", None), EmbedderSpec)
    )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _code(code: CodeType) -> Any:
    """Return what a function does, without where it stands in its file."""
    return code.co_code, code.co_names, [_constant(each) for each in code.co_consts]


def _constant(value: object) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, frozenset):  # in another order in each process
        return "frozenset", {encode(_constant(item)) for item in value}
    if isinstance(value, tuple):
        return "tuple", [_constant(item) for item in value]
    return type(value).__name__, repr(value)
