"""What every index asks of the records it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ragopt.codecs import decode_value, encode_value
from ragopt.errors import InvalidInput
from ragopt.types import Dense, EmbeddingBatch, RecordBatch, SparseVector

_TEXT = frozenset({str})
_PLAIN = frozenset({str, int, float, bool, type(None)})
_LONG = 2**63  # integers from here on may have more digits than can be written


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
        if _TEXT.issuperset(map(type, values)) and (name == "text" or all(values)):
            continue
        for row, value in enumerate(values):
            if not isinstance(value, str) or (name == "id" and not value):
                raise InvalidInput(
                    f"The {name} in row {row} is {value!r}. Nothing was stored.",
                    fix=f"Every {name} is a string{' that is not empty' if name == 'id' else ''}.",
                )
    for row, document in enumerate(records.document_ids or ()):
        if document is not None and not isinstance(document, str):
            raise InvalidInput(
                f"The document id in row {row} is {document!r}. Nothing was stored.",
                fix="Every document id is a string, or None.",
            )
    for row, metadata in enumerate(records.metadatas or ()):
        if type(metadata) is not dict and not isinstance(metadata, Mapping):
            raise InvalidInput(
                f"The metadata in row {row} are {metadata!r}. Nothing was stored.",
                fix="Pass a dict for each record, {} where there is nothing to say.",
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


def check_known(unknown: Mapping[str, Any], *known: str) -> None:
    """Raise InvalidInput if there is an option that nothing would look at: it may be a filter."""
    if unknown:
        raise InvalidInput(
            f"The option {next(iter(unknown))!r} is not known here. Nothing was done.",
            fix=f"Check its spelling, or leave it out. Known are {', '.join(known)}.",
        )


def plain_texts(texts: Iterable[str]) -> list[str]:
    """Return texts as they are kept: without what a subclass of ``str`` adds to them."""
    kept = list(texts)
    if _TEXT.issuperset(map(type, kept)):
        return kept
    return [str.__str__(text) for text in kept]


def copy_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of JSON-like metadata.

    Raises:
        InvalidInput: A key is no string, or a value is of a type that cannot be stored.
    """
    copy = dict(metadata)
    for key, value in metadata.items():
        kind = type(value)
        if type(key) is str and kind in _PLAIN and (kind is not int or -_LONG < value < _LONG):
            continue
        if type(key) is not str:
            raise InvalidInput(
                f"The metadata key {key!r} is not a string. Nothing was stored.",
                fix="Use strings as keys.",
            )
        copy[key] = decode_value(encode_value(value))  # raises for what cannot be stored
    return copy
