"""Versioned bytes for everything that is stored. Never pickle, never a class named by the data.

Three layers, from the inside out: vectors (``encode_dense`` and friends) and JSON-like values
(``encode_value``) make payloads; ``seal`` wraps a payload that leaves the process in an envelope
with its expiry and a checksum bound to its key.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import cache, partial
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Literal, TypeAlias

import msgpack
import numpy as np

from ragopt._imports import require
from ragopt.errors import CorruptData, InvalidInput, MissingDependency
from ragopt.protocols import Entry
from ragopt.types import Dense, SparseVector

Precision: TypeAlias = Literal["float32", "float16", "int8"]

# -- envelope ---------------------------------------------------------------------------------

_ENVELOPE = struct.Struct("<3sBd8s")  # magic and version, flags, expires_at, checksum
_SIGNED_ENVELOPE = struct.Struct("<3sBd16s")  # the same, with a message authentication code
STAMP_SIZE = _ENVELOPE.size
"""Bytes at the start of an envelope that tell it from every other one under the same key."""
_MAGIC = b"RO\x01"
_COMPRESSED, _SIGNED = 1, 2  # flags
_LARGEST = 256 * 2**20  # bytes that a compressed payload may grow to

Secrets: TypeAlias = tuple[bytes, ...]


def signing_keys(secret: bytes | Sequence[bytes] | None) -> Secrets:
    """Return the keys that ``seal`` and ``unseal`` take, made from what a user gives.

    Args:
        secret: A secret of at least 16 bytes; several, of which the first one signs and all
            verify, so that a secret can be replaced step by step; None to sign nothing.

    Raises:
        InvalidInput: A secret is too short or is no bytes, or the sequence is empty.
    """
    if secret is None:
        return ()
    secrets = (secret,) if isinstance(secret, bytes) else tuple(secret)
    if not secrets or not all(isinstance(one, bytes) and len(one) >= 16 for one in secrets):
        raise InvalidInput(
            "A secret for signing entries is missing, is no bytes, or is shorter than 16 bytes.",
            fix="Make one with secrets.token_bytes(32) and give every process the same one.",
        )
    # Hashed, since BLAKE2b takes keys of at most 64 bytes.
    return tuple(blake2b(one, digest_size=32, person=b"ragopt entries").digest() for one in secrets)


def _checksum(key: bytes, flags: int, expires_at: float, payload: bytes) -> bytes:
    digest = blake2b(struct.pack("<IBd", len(key), flags, expires_at), digest_size=8)
    digest.update(key)
    digest.update(payload)
    return digest.digest()


def _sign(key: bytes, flags: int, expires_at: float, payload: bytes, secret: bytes) -> bytes:
    head = struct.pack("<IBd", len(key), flags, expires_at)
    digest = blake2b(head, digest_size=16, key=secret)
    digest.update(key)
    digest.update(payload)
    return digest.digest()


def seal(
    key: bytes,
    payload: bytes,
    expires_at: float | None,
    secrets: Secrets = (),
    compress_above: int | None = None,
) -> bytes:
    """Wrap a payload for a store outside this process.

    The checksum covers key, expiry and payload, so neither a flipped bit nor an entry that was
    moved to another key is ever taken for a value. With secrets it is a keyed BLAKE2b of 16
    bytes, which nobody can make who does not know one (RFC 7693).

    Args:
        key: The key of the entry.
        payload: The bytes to wrap.
        expires_at: Seconds since the epoch; None for never.
        secrets: What ``signing_keys`` returned; the first one signs.
        compress_above: Compress longer payloads with zstd, where that makes them smaller; None
            for none.

    Raises:
        MissingDependency: The payload is to be compressed and zstandard is not installed.
    """
    expires = math.inf if expires_at is None else expires_at
    flags = 0
    if compress_above is not None and compress_above < len(payload) <= _LARGEST:
        smaller = _zstd().compress(payload)
        if len(smaller) < len(payload):
            payload, flags = smaller, _COMPRESSED
    if secrets:
        flags |= _SIGNED
        code = _sign(key, flags, expires, payload, secrets[0])
        return _SIGNED_ENVELOPE.pack(_MAGIC, flags, expires, code) + payload
    return _ENVELOPE.pack(_MAGIC, flags, expires, _checksum(key, flags, expires, payload)) + payload


def unseal(key: bytes, blob: bytes, secrets: Secrets = ()) -> Entry | None:
    """Open an envelope; None if it is not exactly what ``seal`` made for this key.

    With secrets, it must be signed with one of them; without, it must not be signed.
    """
    if secrets:
        return _unseal_signed(key, blob, secrets)
    if len(blob) < _ENVELOPE.size:
        return None
    magic, flags, expires, checksum = _ENVELOPE.unpack_from(blob)
    payload = blob[_ENVELOPE.size :]
    if (
        magic != _MAGIC
        or flags > _COMPRESSED
        or checksum != _checksum(key, flags, expires, payload)
    ):
        return None
    if flags:
        return _decompressed(payload, expires, blob[:STAMP_SIZE])
    return Entry(payload, None if expires == math.inf else expires, blob[:STAMP_SIZE])


def _unseal_signed(key: bytes, blob: bytes, secrets: Secrets) -> Entry | None:
    if len(blob) < _SIGNED_ENVELOPE.size:
        return None
    magic, flags, expires, code = _SIGNED_ENVELOPE.unpack_from(blob)
    payload = blob[_SIGNED_ENVELOPE.size :]
    if magic != _MAGIC or flags not in (_SIGNED, _SIGNED | _COMPRESSED):
        return None
    for secret in secrets:
        if compare_digest(code, _sign(key, flags, expires, payload, secret)):
            if flags & _COMPRESSED:
                return _decompressed(payload, expires, blob[:STAMP_SIZE])
            return Entry(payload, None if expires == math.inf else expires, blob[:STAMP_SIZE])
    return None


def stamp_of(entry: Entry) -> bytes:
    """Return what tells an entry from every other one under the same key."""
    if entry.stamp:
        return entry.stamp
    expires = math.inf if entry.expires_at is None else entry.expires_at
    digest = blake2b(struct.pack("<d", expires), digest_size=STAMP_SIZE)
    digest.update(entry.value)
    return digest.digest()


class _Zstd(threading.local):
    """A compressor and a decompressor for each thread: neither may be shared, both are kept.

    A new pair for each payload of 2 KB takes six times as long as the work itself.
    """

    def __init__(self) -> None:
        zstandard = require("zstandard", "zstd")
        self.compress: Callable[[bytes], bytes] = zstandard.ZstdCompressor(level=3).compress
        self.decompress: Callable[..., bytes] = zstandard.ZstdDecompressor().decompress
        self.size: Callable[[bytes], int] = zstandard.frame_content_size
        self.error: type[Exception] = zstandard.ZstdError


@cache
def _zstd() -> _Zstd:
    return _Zstd()


def _decompressed(frame: bytes, expires: float, stamp: bytes) -> Entry | None:
    """Return an entry from its frame; None if it is none or too large, or zstandard is missing."""
    try:
        zstd = _zstd()
    except MissingDependency:
        return None
    try:
        # The size stands in the frame, -1 if it is left out, and is what will be allocated.
        if not 0 <= zstd.size(frame) <= _LARGEST:
            return None
        payload = zstd.decompress(frame, allow_extra_data=False)
    except zstd.error:
        return None
    return Entry(payload, None if expires == math.inf else expires, stamp)


# -- JSON-like values -------------------------------------------------------------------------

_DATETIME, _DATE, _TUPLE, _BIGINT = 1, 2, 3, 4
_TUPLE_MARK = msgpack.ExtType(_TUPLE, b"")  # the first item of a list that was a tuple
_MARK_BYTES: bytes = msgpack.packb(_TUPLE_MARK)


def _pack_other(value: Any) -> Any:
    kind = type(value)
    if kind is datetime:
        return msgpack.ExtType(_DATETIME, value.isoformat().encode())
    if kind is date:
        return msgpack.ExtType(_DATE, value.isoformat().encode())
    if kind is tuple:
        return [_TUPLE_MARK, *value]
    if isinstance(value, str):  # a subclass, such as LangChain's texts: the string it is
        return str.__str__(value)
    if kind is int:
        return msgpack.ExtType(_BIGINT, str(value).encode())
    if isinstance(value, np.generic):
        raise TypeError("a numpy number; convert it with .item()")
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__}")


_READERS: dict[int, Callable[[bytes], Any]] = {
    _DATETIME: lambda raw: datetime.fromisoformat(raw.decode()),
    _DATE: lambda raw: date.fromisoformat(raw.decode()),
    _BIGINT: int,
}


def _unpack_other(code: int, data: bytes) -> Any:
    return _READERS[code](data)


class _Tuples:
    """Turns marked lists back into tuples, and sees to it that no mark is left over."""

    def __init__(self) -> None:
        self._open = 0

    def read(self, code: int, data: bytes) -> Any:
        if code != _TUPLE:
            return _unpack_other(code, data)
        if data:
            raise ValueError("a tuple's mark with content")
        self._open += 1
        return self

    def of(self, items: list[Any]) -> Any:
        if items and items[0] is self:
            self._open -= 1
            return tuple(items[1:])
        return items

    def check(self) -> None:
        if self._open:
            raise ValueError("a tuple's mark that is not the first of a list")


_unpack = partial(msgpack.unpackb, strict_map_key=False, unicode_errors="surrogatepass")


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
    # A mark in front says that there may be others, so that no reader has to look for them.
    return _MARK_BYTES + packed if _MARK_BYTES in packed else packed


def decode_value(data: bytes) -> Any:
    """Decode what ``encode_value`` made; always a fresh copy.

    Raises:
        CorruptData: The bytes are anything else.
    """
    try:
        if not data.startswith(_MARK_BYTES):
            return _unpack(data, ext_hook=_unpack_other)
        tuples = _Tuples()
        marked = data[len(_MARK_BYTES) :]
        value = _unpack(marked, ext_hook=tuples.read, list_hook=tuples.of)
        tuples.check()
        return value
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
