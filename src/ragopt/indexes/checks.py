"""What every index asks of the records it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ragopt.codecs import decode_value, encode_value
from ragopt.errors import InvalidInput
from ragopt.types import Dense, EmbeddingBatch, RecordBatch, SparseVector


def check_columns(records: RecordBatch) -> None:
    """Raise InvalidInput unless ids are unique and usable and all columns are of one length."""
    ids = records.ids
    for name in ("texts", "metadatas", "document_ids"):
        column = getattr(records, name)
        if column is not None and len(column) != len(ids):
            raise InvalidInput(
                f"{len(ids)} ids came with {len(column)} {name}.", fix="Pass one for each record."
            )
    check_unique(ids)
    for name, values in (("id", ids), ("text", records.texts)):
        for row, value in enumerate(values):
            if type(value) is not str or (name == "id" and not value):
                raise InvalidInput(
                    f"The {name} in row {row} is {value!r}. Nothing was stored.",
                    fix=f"Every {name} is a string{' that is not empty' if name == 'id' else ''}.",
                )


def check_unique(ids: Sequence[str]) -> None:
    """Raise InvalidInput if an id is given twice."""
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(id_ for id_ in ids if id_ in seen or seen.add(id_))  # type: ignore[func-returns-value]
        raise InvalidInput(
            f"The id {twice!r} is given twice in one batch. Nothing was stored.",
            fix="Keep one of the two, or give them different ids.",
        )


def check_sparse(
    batch: EmbeddingBatch, what: str, ids: Sequence[str] | None = None
) -> Sequence[SparseVector]:
    """Return the sparse vectors of a batch, or raise InvalidInput if they cannot be used."""
    if batch.sparse is None:
        raise InvalidInput(
            f"A {what} came without a sparse vector.",
            fix='Embed it with outputs that include "sparse".',
        )
    check_finite([vector.values for vector in batch.sparse], "sparse vector", what, ids)
    return batch.sparse


def check_multi(
    batch: EmbeddingBatch, what: str, ids: Sequence[str] | None = None
) -> Sequence[Dense]:
    """Return the multi-vectors of a batch, or raise InvalidInput if they cannot be used."""
    if batch.multi is None:
        raise InvalidInput(
            f"A {what} came without a multi-vector.",
            fix='Embed it with outputs that include "multi".',
        )
    for rows in batch.multi:
        if np.ndim(rows) != 2:
            raise InvalidInput(
                f"A multi-vector has the shape {np.shape(rows)}. Nothing was changed.",
                fix="Pass shape (tokens, dimension).",
            )
    check_finite(batch.multi, "multi-vector", what, ids)
    return batch.multi


def check_finite(
    values: Sequence[Dense] | Dense, kind: str, what: str, ids: Sequence[str] | None
) -> None:
    """Raise InvalidInput, which names the row, if a vector holds NaN or infinity."""
    for row, each in enumerate(values):
        if not np.isfinite(each).all():
            name = f"{what} {ids[row]!r}" if ids else f"{what} {row}"
            raise InvalidInput(
                f"The {kind} of {name} holds NaN or infinity. Nothing was changed.",
                fix="Check the text and the model; leave the record out or embed it again.",
            )


def check_texts(texts: Sequence[str], queries: int) -> None:
    """Raise InvalidInput unless every query has a text, where queries have vectors too."""
    if isinstance(texts, str) or (queries and len(texts) != queries):
        raise InvalidInput(
            f"{queries} queries came with the texts {texts!r:.100}.", fix="Pass one for each query."
        )
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"The text of query {row} is {text!r}.", fix="Pass a string.")


_TEXT = frozenset({str})
_PLAIN = frozenset({str, int, float, bool, type(None)})


def copy_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of JSON-like metadata.

    Raises:
        InvalidInput: A key is no string, or a value is of a type that cannot be stored.
    """
    copy = dict(metadata)
    if _TEXT.issuperset(map(type, copy)) and _PLAIN.issuperset(map(type, copy.values())):
        return copy
    for key, value in metadata.items():
        if type(key) is not str:
            raise InvalidInput(
                f"The metadata key {key!r} is not a string. Nothing was stored.",
                fix="Use strings as keys.",
            )
        if type(value) not in _PLAIN:
            copy[key] = decode_value(encode_value(value))  # raises for what cannot be stored
    return copy
