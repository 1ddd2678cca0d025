"""Versioned bytes for everything that is stored. Never pickle, never a class named by the data.

Three layers, from the inside out: vectors (``encode_dense`` and friends) and JSON-like values
(``encode_value``) make payloads; ``seal`` wraps a payload that leaves the process in an envelope
with its expiry and a checksum bound to its key.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from datetime import date, datetime
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

import msgpack
import numpy as np

from ragopt.errors import CorruptData, InvalidInput
from ragopt.protocols import Entry
from ragopt.types import Dense, SparseVector

Precision: TypeAlias = Literal["float32", "float16", "int8"]

# -- envelope ---------------------------------------------------------------------------------

_ENVELOPE = struct.Struct("<3sBd8s")  # magic and version, flags, expires_at, checksum
_MAGIC = b"RO\x01"


def _checksum(key: bytes, flags: int, expires_at: float, payload: bytes) -> bytes:
    digest = blake2b(struct.pack("<IBd", len(key), flags, expires_at), digest_size=8)
    digest.update(key)
    digest.update(payload)
    return digest.digest()


def seal(key: bytes, payload: bytes, expires_at: float | None) -> bytes:
    """Wrap a payload for a store outside this process.

    The checksum covers key, expiry and payload, so neither a flipped bit nor an entry that was
    moved to another key is ever taken for a value.
    """
    expires = math.inf if expires_at is None else expires_at
    return _ENVELOPE.pack(_MAGIC, 0, expires, _checksum(key, 0, expires, payload)) + payload


def unseal(key: bytes, blob: bytes) -> Entry | None:
    """Open an envelope; None if it is not exactly what ``seal`` made for this key."""
    if len(blob) < _ENVELOPE.size:
        return None
    magic, flags, expires, checksum = _ENVELOPE.unpack_from(blob)
    payload = blob[_ENVELOPE.size :]
    if magic != _MAGIC or flags or checksum != _checksum(key, flags, expires, payload):
        return None
    return Entry(payload, None if expires == math.inf else expires)


# -- JSON-like values -------------------------------------------------------------------------

_DATETIME, _DATE, _TUPLE, _BIGINT = 1, 2, 3, 4


def _pack_other(value: Any) -> Any:
    kind = type(value)
    if kind is datetime:
        return msgpack.ExtType(_DATETIME, value.isoformat().encode())
    if kind is date:
        return msgpack.ExtType(_DATE, value.isoformat().encode())
    if kind is tuple:
        return msgpack.ExtType(_TUPLE, encode_value(list(value)))
    if isinstance(value, str):  # a subclass, such as LangChain's texts: the string it is
        return str.__str__(value)
    if kind is int:
        return msgpack.ExtType(_BIGINT, str(value).encode())
    if isinstance(value, np.generic):
        raise TypeError("a numpy number; convert it with .item()")
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__}")


def _unpack_other(code: int, data: bytes) -> Any:
    readers: dict[int, Callable[[bytes], Any]] = {
        _DATETIME: lambda raw: datetime.fromisoformat(raw.decode()),
        _DATE: lambda raw: date.fromisoformat(raw.decode()),
        _TUPLE: lambda raw: tuple(decode_value(raw)),
        _BIGINT: int,
    }
    if code not in readers:
        raise ValueError(f"unknown extension type {code}")
    return readers[code](data)


def encode_value(value: Any) -> bytes:
    """Encode None, booleans, numbers, strings, bytes, dates, lists, tuples and dicts of them.

    Raises:
        InvalidInput: The value holds another type, or is nested too deeply.
    """
    try:
        packed: bytes = msgpack.packb(
            value, default=_pack_other, strict_types=True, unicode_errors="surrogatepass"
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(
            f"A value cannot be stored: it holds {error}.",
            fix="Use strings, numbers, booleans, None, dates, and lists and dicts of them.",
        ) from error
    return packed


def decode_value(data: bytes) -> Any:
    """Decode what ``encode_value`` made; always a fresh copy.

    Raises:
        CorruptData: The bytes are anything else.
    """
    try:
        return msgpack.unpackb(
            data, ext_hook=_unpack_other, strict_map_key=False, unicode_errors="surrogatepass"
        )
    except Exception as error:  # msgpack raises several unrelated types on bad bytes
        raise CorruptData(
            f"Stored bytes cannot be decoded ({type(error).__name__}).",
            fix="Treat the entry as absent and write it again.",
        ) from error


# -- vectors ----------------------------------------------------------------------------------

_VECTOR = struct.Struct("<2sBBI")  # magic and version, kind, precision, dimension: 8 bytes
_VECTOR_MAGIC = b"V\x01"
_DENSE, _SPARSE, _MULTI = 0, 1, 2
_PRECISIONS: dict[Precision, int] = {"float32": 0, "float16": 1, "int8": 2}


def _body(rows: Dense, precision: Precision) -> bytes:
    if precision == "int8":
        scale = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(127)
        scale[scale == 0] = 1
        whole = np.rint(rows / scale).astype("<i1")
        return bytes(scale.astype("<f4").tobytes() + whole.tobytes())
    return bytes(np.asarray(rows, "<f2" if precision == "float16" else "<f4").tobytes())


def _rows(body: bytes | memoryview, code: int, rows: int, dimension: int) -> Dense | None:
    """Decode ``rows`` vectors; None if the body has another size."""
    cells = rows * dimension
    if len(body) != (4 * cells, 2 * cells, 4 * rows + cells)[code]:
        return None
    if code == _PRECISIONS["int8"]:
        scale = np.frombuffer(body, "<f4", rows)
        whole = np.frombuffer(body, "<i1", cells, 4 * rows).reshape(rows, dimension)
        return np.asarray(whole * scale[:, None], dtype=np.float32)
    flat = np.frombuffer(body, "<f4" if code == 0 else "<f2")
    return flat.astype(np.float32).reshape(rows, dimension)


def encode_dense(vector: Dense, precision: Precision = "float32") -> bytes:
    """Encode one dense vector of shape ``(dimension,)``.

    ``float32`` is exact. ``float16`` halves and ``int8`` (one scale a vector) quarters the size.
    """
    head = _VECTOR.pack(_VECTOR_MAGIC, _DENSE, _PRECISIONS[precision], len(vector))
    return head + _body(vector[None, :], precision)


def decode_dense(payloads: Sequence[bytes]) -> Dense | None:
    """Decode dense vectors of one dimension and precision into one array ``(n, dimension)``.

    None if any of them is not such a vector. For float32 this is one copy of all the bytes: the
    result is a view which leaves out the 8 bytes before each row.
    """
    if not payloads or len(set(map(len, payloads))) > 1 or len(payloads[0]) < _VECTOR.size:
        return None
    magic, kind, code, dimension = _VECTOR.unpack_from(payloads[0])
    joined = np.frombuffer(bytearray().join(payloads), np.uint8).reshape(len(payloads), -1)
    heads, bodies = joined[:, : _VECTOR.size].view("<u8"), joined[:, _VECTOR.size :]
    if magic != _VECTOR_MAGIC or kind != _DENSE or code > 2 or (heads != heads[0]).any():
        return None
    if code == 0:
        return bodies.view("<f4") if bodies.shape[1] == 4 * dimension else None
    rows = [_rows(body.tobytes(), code, 1, dimension) for body in bodies]
    good = [row for row in rows if row is not None]
    return np.concatenate(good) if len(good) == len(rows) else None


def encode_sparse(vector: SparseVector) -> bytes:
    """Encode a sparse vector: exact."""
    head = _VECTOR.pack(_VECTOR_MAGIC, _SPARSE, 0, len(vector))
    return head + vector.indices.astype("<i8").tobytes() + vector.values.astype("<f4").tobytes()


def decode_sparse(payload: bytes) -> SparseVector | None:
    """Decode a sparse vector; None if the bytes are not one."""
    if len(payload) < _VECTOR.size:
        return None
    magic, kind, code, size = _VECTOR.unpack_from(payload)
    if magic != _VECTOR_MAGIC or kind != _SPARSE or code or len(payload) != 8 + 12 * size:
        return None
    try:
        return SparseVector(
            np.frombuffer(payload, "<i8", size, 8).astype(np.int64),
            np.frombuffer(payload, "<f4", size, 8 + 8 * size).astype(np.float32),
        )
    except InvalidInput:
        return None


def encode_multi(vectors: Dense, precision: Precision = "float32") -> bytes:
    """Encode a multi-vector of shape ``(tokens, dimension)``."""
    tokens, dimension = vectors.shape
    head = _VECTOR.pack(_VECTOR_MAGIC, _MULTI, _PRECISIONS[precision], dimension)
    return head + struct.pack("<I", tokens) + (_body(vectors, precision) if tokens else b"")


def decode_multi(payload: bytes) -> Dense | None:
    """Decode a multi-vector; None if the bytes are not one."""
    if len(payload) < _VECTOR.size + 4:
        return None
    magic, kind, code, dimension = _VECTOR.unpack_from(payload)
    (tokens,) = struct.unpack_from("<I", payload, _VECTOR.size)
    if magic != _VECTOR_MAGIC or kind != _MULTI or code > 2:
        return None
    return _rows(memoryview(payload)[_VECTOR.size + 4 :], code, tokens, dimension)
