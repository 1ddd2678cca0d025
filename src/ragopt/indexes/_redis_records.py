"""Records as Redis hashes: keys, bytes of vectors, and the replies of searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ragopt.codecs import decode_multi, decode_value, encode_multi, encode_value
from ragopt.errors import InvalidInput
from ragopt.indexes._redis_filters import TAGS, tokens_of
from ragopt.indexes._redis_postings import pack_sparse, unpack_sparse
from ragopt.types import Dense, Embedding, Hit, Metric, Record, RecordBatch, SparseVector

T = TypeVar("T")

Found: TypeAlias = tuple[bytes, dict[bytes, bytes]]  # the key of a record, and fields of it
Placed: TypeAlias = tuple[float, int, Hit]  # minus the score, the place in the order, the hit
VectorPrecision: TypeAlias = Literal["float32", "float16", "bfloat16"]

PRECISIONS = {"float32": "FLOAT32", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
VECTOR, SEQ, DISTANCE = "vector", "seq", "distance"
PLAIN = ("text", "metadata", "document")
SPARSE, TERMS, MULTI = "sparse", "terms", "multi"
EMBEDDED = (VECTOR, "norm", SPARSE, MULTI)

_TINY = 1e-300  # no length of float32 numbers is, but 0
_LONGEST = 60_000  # bytes of an id: the query engine counts those of a key in 16 bits


class Row(NamedTuple):
    """A record that is ready to be stored, but for its place in the order.

    Args:
        end: What its key ends with; see ``Keys``.
        words: Its fields and their values in turn.
        numbers: Which of the fields are NUMERIC ones for metadata.
        text: Its text.
        sparse: Its sparse vector.
    """

    end: bytes
    words: tuple[bytes | str, ...]
    numbers: frozenset[str]
    text: str
    sparse: SparseVector | None


class Keys:
    """The keys of records.

    The query engine reads a key up to its first NUL, so an id is written without one.

    Args:
        prefix: What all keys begin with.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()

    @staticmethod
    def end(id_: str) -> bytes:
        """Return what the key of a record ends with, wherever it is."""
        raw = id_.encode("utf-8", "surrogatepass")
        return raw.replace(b"\\", b"\\\\").replace(b"\0", b"\\0")

    def of(self, id_: str) -> bytes:
        """Return the key of a record."""
        return self.prefix + self.end(id_)

    def id_of(self, key: bytes) -> str:
        """Return the id of the record with a key."""
        raw = key[len(self.prefix) :]
        if b"\\" in raw:
            parts = (part.replace(b"\\0", b"\0") for part in raw.split(b"\\\\"))
            raw = b"\\".join(parts)
        return raw.decode("utf-8", "surrogatepass")


def rows_of(
    records: RecordBatch, packed: Sequence[bytes], norms: Sequence[float] | None
) -> list[Row]:
    """Encode a batch.

    Args:
        records: The batch.
        packed: The bytes of its dense vectors.
        norms: Their lengths, where they are stored.

    Raises:
        InvalidInput: Metadata or a sparse vector cannot be stored, or an id is too long.
    """
    rows = []
    columns = records.ids, records.texts, records.metadatas or (), records.document_ids or ()
    sparse, multi = records.embeddings.sparse, records.embeddings.multi
    for at, (id_, text, metadata, document_id) in enumerate(zip(*columns, strict=True)):
        end = Keys.end(id_)
        if len(end) > _LONGEST:
            raise InvalidInput(
                f"The id {id_[:40]!r}... has {len(id_)} characters. Nothing was stored.",
                fix=f"Redis can search ids of up to {_LONGEST} bytes; use a digest of the id.",
            )
        tokens, numbers = tokens_of(id_, document_id, metadata)
        words: list[bytes | str] = [
            *("text", text.encode("utf-8", "surrogatepass"), "metadata", encode_value(metadata)),
            *(TAGS, ",".join(tokens), VECTOR, packed[at]),
        ]
        if norms is not None:
            words += "norm", repr(norms[at])
        vector = None if sparse is None else sparse[at]
        if vector is not None:
            words += SPARSE, pack_sparse(vector)
        if multi is not None:
            words += MULTI, encode_multi(multi[at], "float16")
        if document_id is not None:
            words += "document", document_id.encode("utf-8", "surrogatepass")
        for field, number in numbers.items():
            words += field, repr(number)
        rows.append(Row(end, tuple(words), frozenset(numbers), text, vector))
    return rows


class Vectors:
    """Vectors as bytes, and back.

    For the cosine they are stored at length 1, with the length beside them: the engine then takes
    inner products, which a zero vector has as well (0 with everything), and no cosine.

    Args:
        metric: How vectors are compared.
        precision: The numbers that are stored.
    """

    def __init__(self, metric: Metric, precision: VectorPrecision) -> None:
        self._metric = metric
        self._precision = precision

    def pack(self, vectors: Dense, what: str) -> tuple[list[bytes], list[float] | None]:
        """Return the bytes of each vector and, for the cosine, its length.

        Raises:
            InvalidInput: A number is too large for the precision.
        """
        norms = None
        if self._metric is Metric.COSINE:
            # In double precision: squares of large numbers overflow in single precision.
            square = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
            norms = np.sqrt(square)
            vectors = (vectors / np.maximum(norms, _TINY)[:, None]).astype(np.float32)
        packed: NDArray[Any] = vectors
        if self._precision == "bfloat16":
            packed = _bfloat16(vectors)
        elif self._precision == "float16":
            with np.errstate(over="ignore"):
                packed = vectors.astype(np.float16)
            if not np.isfinite(packed).all():
                raise InvalidInput(
                    f"A {what} vector holds a number above 65504, which float16 does not have. "
                    "Nothing was changed.",
                    fix='Use precision="float32" or "bfloat16".',
                )
        return [row.tobytes() for row in packed], None if norms is None else norms.tolist()

    def unpack(self, blob: bytes, norm: bytes | None) -> Dense:
        """Return a vector from its bytes and its length."""
        if self._precision == "bfloat16":
            vector = (np.frombuffer(blob, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif self._precision == "float16":
            vector = np.frombuffer(blob, "<f2").astype(np.float32)
        else:
            vector = np.frombuffer(blob, "<f4").astype(np.float32)
        return vector if norm is None else np.asarray(vector * float(norm), dtype=np.float32)

    def score(self, distance: float) -> float:
        """Return the score that a distance of the engine means."""
        return -(max(distance, 0.0) ** 0.5) if self._metric is Metric.L2 else 1.0 - distance


def _bfloat16(vectors: Dense) -> NDArray[np.uint16]:
    """Round float32 to its upper half, to the nearest and from the middle to the even one."""
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def found(reply: Sequence[Any]) -> list[Found]:
    """Return the keys and the fields out of the reply to FT.SEARCH.

    A record without fields was removed while the server answered.
    """
    pairs = zip(reply[1::2], reply[2::2], strict=True)
    return [
        (key, dict(zip(values[::2], values[1::2], strict=True))) for key, values in pairs if values
    ]


def fields_of(names: Sequence[str], values: Sequence[bytes | None]) -> dict[bytes, bytes]:
    """Return the fields of a record that are there, out of the reply to HMGET."""
    return {
        name.encode(): value for name, value in zip(names, values, strict=True) if value is not None
    }


def plain_of(fields: Mapping[bytes, bytes]) -> tuple[str, dict[str, Any], str | None]:
    """Return text, metadata and document id."""
    document = fields.get(b"document")
    return (
        fields.get(b"text", b"").decode("utf-8", "surrogatepass"),
        decode_value(fields[b"metadata"]),
        None if document is None else document.decode("utf-8", "surrogatepass"),
    )


def embedding_of(fields: Mapping[bytes, bytes], vectors: Vectors) -> Embedding:
    """Return the embedding, empty where it was not asked for."""
    blob, packed, multi = (fields.get(name) for name in (b"vector", b"sparse", b"multi"))
    return Embedding(
        None if blob is None else vectors.unpack(blob, fields.get(b"norm")),
        None if packed is None else unpack_sparse(packed),
        None if multi is None else decode_multi(multi),
    )


def record_of(id_: str, fields: Mapping[bytes, bytes], vectors: Vectors) -> Record:
    """Return a record from the fields that were asked for."""
    return Record(id_, *plain_of(fields), embedding_of(fields, vectors))


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into parts of a size; the last one may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
