"""Any number of texts into a store, batch by batch."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sized
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from ragopt._progress import Progress, tallied
from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput
from ragopt.filters import ids_of
from ragopt.indexes.checks import check_unique

T = TypeVar("T")

Metadatas: TypeAlias = list[dict[str, Any]] | None


async def add(
    io: Runtime,
    store: Callable[[Runtime, list[str], list[str], Metadatas], Awaitable[None]],
    texts: Iterable[str],
    metadatas: Iterable[dict[str, Any]] | None,
    ids: Iterable[str | None] | None,
    batch_size: int,
    progress: Progress | bool,
) -> list[str]:
    """Hand ids, texts and metadatas to ``store``, so many at a time, and return the ids.

    Raises:
        InvalidInput: The lengths differ, an id is given twice, or ``batch_size`` is below 1.
        Exception: What ``store`` raised, with a note on what had been stored before.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidInput(f"A batch of {batch_size!r} texts was asked for.", fix="Give 1 or more.")
    ids, metadatas = listed("ids", ids), listed("metadatas", metadatas)
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InvalidInput(
            f"{type(texts).__name__} was given where texts are expected.",
            fix="Pass a list of strings, or another iterable.",
        )
    if ids is not None or metadatas is not None:
        texts = list(texts)  # nothing is stored before all lengths are known to agree
    total = len(texts) if isinstance(texts, Sized) else None
    for name, column in (("ids", ids), ("metadatas", metadatas)):
        if column is not None and len(column) != total:
            raise InvalidInput(
                f"{len(column)} {name} came with {total} texts. Nothing was stored.",
                fix="Pass one for each text.",
            )
    check_unique(ids_of(id_ for id_ in ids or () if id_ is not None))
    left, stored = iter(texts), list[str]()
    with tallied(progress, total, "stored") as tally:
        while batch := list(islice(left, batch_size)):
            place = slice(len(stored), len(stored) + len(batch))
            given = [None] * len(batch) if ids is None else ids[place]
            names = [str(uuid.uuid4()) if id_ is None else id_ for id_ in given]
            try:
                await store(io, names, batch, None if metadatas is None else metadatas[place])
            except Exception as error:
                if stored:
                    error.add_note(
                        f"Before this, {len(stored):,} texts were stored, the last one with the id "
                        f"{stored[-1]!r}."
                    )
                raise
            stored += names
            if tally is not None:
                tally.add(len(batch))
    return stored


def listed(name: str, column: Iterable[T] | None) -> list[T] | None:
    """Return a column as a list, or raise InvalidInput for what is none."""
    if column is None or isinstance(column, list):
        return column
    if isinstance(column, (str, bytes, Mapping)) or not isinstance(column, Iterable):
        raise InvalidInput(
            f"{type(column).__name__} was given where {name} are expected.",
            fix="Pass a list with one for each text.",
        )
    return list(column)
