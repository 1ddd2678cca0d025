"""Any number of texts into a store, batch by batch."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence, Sized
from itertools import islice
from typing import Any, TypeAlias

from ragopt._progress import Progress, tallied
from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput
from ragopt.indexes.checks import check_unique

Metadatas: TypeAlias = list[dict[str, Any]] | None


async def add(
    io: Runtime,
    store: Callable[[Runtime, list[str], list[str], Metadatas], Awaitable[None]],
    texts: Iterable[str],
    metadatas: Metadatas,
    ids: Sequence[str | None] | None,
    batch_size: int,
    progress: Progress | bool,
) -> list[str]:
    """Hand ids, texts and metadatas to ``store``, so many at a time, and return the ids.

    Raises:
        InvalidInput: The lengths differ, an id is given twice, or ``batch_size`` is below 1.
        Exception: What ``store`` raised, with a note on what had been stored before.
    """
    if batch_size < 1:
        raise InvalidInput(f"A batch of {batch_size} texts was asked for.", fix="Give 1 or more.")
    if ids is not None or metadatas is not None:
        texts = list(texts)  # nothing is stored before all lengths are known to agree
    total = len(texts) if isinstance(texts, Sized) else None
    for name, column in (("ids", ids), ("metadatas", metadatas)):
        if column is not None and len(column) != total:
            raise InvalidInput(
                f"{len(column)} {name} came with {total} texts. Nothing was stored.",
                fix="Pass one for each text.",
            )
    check_unique([id_ for id_ in ids or () if id_])
    left, stored = iter(texts), list[str]()
    with tallied(progress, total, "stored") as tally:
        while batch := list(islice(left, batch_size)):
            place = slice(len(stored), len(stored) + len(batch))
            given = [None] * len(batch) if ids is None else ids[place]
            names = [id_ or str(uuid.uuid4()) for id_ in given]
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
