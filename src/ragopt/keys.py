"""Cache keys: structured, injective, hashed.

A key is a readable prefix (namespace, tenant, kind) and a BLAKE2b digest of everything else. The
encoding tags every value with its type and length, so two different inputs never meet:
``("a:b", "c")`` and ``("a", "b:c")``, ``1`` and ``1.0`` and ``True`` and ``"1"`` are all apart.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from datetime import date, datetime
from hashlib import blake2b
from typing import Any
from urllib.parse import quote

from ragopt.errors import InvalidInput, UnkeyableValue

_DIGEST_SIZE = 24  # 192 bits: a collision among 10^12 keys has a chance below 10^-33
_FORMAT = b"ragopt-key-1"


def encode(value: object) -> bytes:
    """Encode a value of JSON-like types injectively.

    Strings, bytes, numbers, booleans, None, dates, and lists, tuples, sets and dicts of them;
    filters, and whatever else says what it is by a method ``__ragopt_key__``.

    Raises:
        UnkeyableValue: The value holds another type. It is refused rather than turned into a
            string, since two different objects may print alike.
    """
    parts: list[bytes] = []
    _encode(value, parts.append)
    return b"".join(parts)


def _encode(value: Any, put: Callable[[bytes], None]) -> None:
    kind = type(value)
    if kind is str:
        data = value.encode("utf-8", "surrogatepass")
        put(b"s%d:" % len(data))
        put(data)
    elif value is None:
        put(b"n")
    elif kind is bool:
        put(b"t" if value else b"f")
    elif kind is int:
        put(b"i%d;" % value)
    elif kind is float:
        put(b"d" + struct.pack(">d", value))
    elif kind is bytes:
        put(b"b%d:" % len(value))
        put(value)
    elif kind is list or kind is tuple:
        put(b"%s%d[" % (b"l" if kind is list else b"u", len(value)))
        for item in value:
            _encode(item, put)
    elif kind is dict:
        pairs = sorted((encode(key), encode(item)) for key, item in value.items())
        put(b"m%d{" % len(pairs))
        for key, item in pairs:
            put(key)
            put(item)
    elif kind is set or kind is frozenset:
        items = sorted(map(encode, value))
        put(b"e%d{" % len(items))
        for item in items:
            put(item)
    elif kind is datetime or kind is date:
        text = value.isoformat().encode()
        put(b"%s%d:" % (b"D" if kind is datetime else b"y", len(text)))
        put(text)
    elif isinstance(value, str):  # a subclass, such as LangChain's texts: the string it is
        _encode(str.__str__(value), put)
    elif hasattr(kind, "__ragopt_key__"):
        put(b"o")
        _encode((kind.__qualname__, value.__ragopt_key__()), put)
    else:
        raise UnkeyableValue(
            f"A value of type {kind.__module__}.{kind.__qualname__} cannot be part of a cache key.",
            fix="Pass strings, numbers, booleans, None, dates, or lists and dicts of them.",
        )


def settings_of(model: object, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return those attributes that a key can hold, encoded, as sorted pairs.

    Attributes which do not change what the model returns (a timeout) may be among them: they
    cost a miss when they change. Leaving one out that does would cost a wrong value. Secrets are
    no plain values and so never take part.
    """
    settings = []
    for name in sorted(names):
        try:
            settings.append((name, encode(getattr(model, name, None)).hex()))
        except UnkeyableValue:
            continue
    return tuple(settings)


class KeySpace:
    """All keys of one kind: same namespace, tenant, kind and settings.

    Args:
        kind: What is stored, such as ``"embedding"``.
        settings: Whatever else the values depend on (model, revision, role, parameters).
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application; None where there are none.

    Raises:
        InvalidInput: The namespace, kind or tenant is empty: an empty tenant must never mean
            "everybody".
        UnkeyableValue: The settings hold a value that has no injective encoding.
    """

    __slots__ = ("_texts", "_values", "prefix")

    def __init__(
        self,
        kind: str,
        settings: object = None,
        *,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        self.prefix = namespace_prefix(namespace, tenant, kind)
        state = blake2b(_FORMAT, digest_size=_DIGEST_SIZE)
        state.update(encode((namespace, tenant, kind, settings)))
        self._texts, self._values = state.copy(), state
        self._texts.update(b"T")
        self._values.update(b"V")

    def key(self, payload: object) -> bytes:
        """Return the key of one payload: any value that ``encode`` takes."""
        if isinstance(payload, str):
            return self.text_keys([payload])[0]
        state = self._values.copy()
        state.update(encode(payload))
        return self.prefix + state.digest()

    def text_keys(self, texts: list[str]) -> list[bytes]:
        """Return ``[key(text) for text in texts]``.

        A text is the last thing that is hashed, so it needs no length before it; this is the
        one loop in Python that every cached embedding goes through.
        """
        try:
            encoded = [text.encode() for text in texts]
        except UnicodeEncodeError:  # lone surrogates, which an error handler costs every text
            encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        copy, prefix = self._texts.copy, self.prefix
        keys = []
        for data in encoded:
            state = copy()
            state.update(data)
            keys.append(prefix + state.digest())
        return keys


def namespace_prefix(namespace: str, tenant: str | None = None, kind: str | None = None) -> bytes:
    """Return the first bytes of every key of a namespace, a tenant in it, or a kind in that."""
    for name, value in (("namespace", namespace), ("tenant", tenant), ("kind", kind)):
        if value == "":
            raise InvalidInput(f"The {name} of a cache is empty.", fix=f"Give the {name} a name.")
    prefix = f"ragopt:{quote(namespace, safe='')}:"
    if tenant is not None:
        # "-" stands for no tenant: one of that name is written "%2D".
        prefix += quote(tenant, safe="").replace("-", "%2D") + ":"
    if kind is not None:
        prefix += f"{'-:' if tenant is None else ''}{quote(kind, safe='')}:"
    return prefix.encode()
