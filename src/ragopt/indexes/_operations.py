"""What every vector index does around its own operations, written once for both colours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from ragopt._operators import MISSING
from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput
from ragopt.filters import Compare, Filter, Ids, Scalar, ids_of
from ragopt.indexes._counting import by_frequency
from ragopt.indexes._searching import Searching
from ragopt.indexes.checks import (
    check_columns,
    check_multi,
    check_sparse,
    copy_metadata,
    plain_texts,
)
from ragopt.protocols import ChangeListener
from ragopt.types import (
    Dense,
    EmbeddingBatch,
    IndexStats,
    Metric,
    Record,
    RecordBatch,
)


class IndexOperations(Searching):
    """The operations of an index, and the checks before and the telling after them.

    Args:
        dimension: Length of the vectors; None to take it from the first record.
        metric: How vectors are compared.
    """

    def __init__(self, dimension: int | None = None, *, metric: Metric | str = Metric.COSINE):
        super().__init__(dimension, metric)
        self._listeners: list[ChangeListener] = []
        self._model: str | None = None
        self._unnamed: str | None = None  # the model to name once there is something to name it in

    @abstractmethod
    async def _version(self, io: Runtime) -> str: ...

    @abstractmethod
    async def _add(self, io: Runtime, records: RecordBatch, vectors: Dense) -> None:
        """Store a batch that has been checked."""

    @abstractmethod
    async def _find(
        self, io: Runtime, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[Record]: ...

    @abstractmethod
    async def _delete(self, io: Runtime, where: Filter | None) -> int:
        """Remove what matches; everything if ``where`` is None."""

    @abstractmethod
    async def _count(self, io: Runtime, where: Filter | None) -> int: ...

    async def _counts(self, io: Runtime, key: str, where: Filter | None) -> list[tuple[Any, int]]:
        """Return what records have under a key, lists as they are, and how many have just that.

        The same may come several times, and ``MISSING`` too. An index that can do so reads less.
        """
        found = await self._find(io, where, None, False)
        return [(record.metadata.get(key, MISSING), 1) for record in found]

    @abstractmethod
    async def _stats(self, io: Runtime) -> IndexStats: ...

    async def _made_by(self, io: Runtime, model: str | None, replace: bool) -> str | None:
        """Return the model that the index is kept for, after naming it where there is none.

        With ``replace`` it is named in any case, and None forgets it. Returns None where there is
        nothing yet to name it in.
        """
        if replace or (self._model is None and await self._count(io, None)):
            self._model = model
        return self._model

    @abstractmethod
    async def _close(self, io: Runtime) -> None: ...

    async def _checked_get(
        self, io: Runtime, ids: Iterable[str], embeddings: bool
    ) -> list[Record | None]:
        asked = ids_of(ids)
        found = await self._get(io, asked, embeddings)
        first = dict(zip(reversed(asked), reversed(range(len(asked))), strict=True))
        # Of an id that is given twice, each record is a copy of its own.
        return [
            record if first[id_] == row else deepcopy(record)
            for row, (id_, record) in enumerate(zip(asked, found, strict=True))
        ]

    async def _checked_add(self, io: Runtime, records: RecordBatch) -> list[str]:
        ids = list(records.ids)
        if not ids:
            return []
        vectors = self._check_vectors(records.embeddings, "record", ids)
        self._check_kept(records.embeddings)
        if records.embeddings.sparse is not None:
            check_sparse(records.embeddings, "record", ids)
        if records.embeddings.multi is not None:
            check_multi(records.embeddings, "record", ids)
        check_columns(records)
        # One pass, and the caller keeps the right to change what was passed in.
        ids = plain_texts(ids)
        copy = replace(
            records,
            ids=ids,
            texts=plain_texts(records.texts),
            metadatas=[copy_metadata(m) for m in records.metadatas or [{}] * len(ids)],
            document_ids=list(records.document_ids or [None] * len(ids)),
        )
        if self._unnamed is not None:  # others may have made the index since it was asked for
            await self._check_model(io, self._unnamed, False)
        try:
            await self._add(io, copy, vectors)
            if self._unnamed is not None:
                together = "Both were first at the same time, so this batch is stored: delete it."
                await self._check_model(io, self._unnamed, False, together)
        finally:  # after a failure too: a server may have stored what it could not confirm
            await self._tell(io, [*ids, *(copy.document_ids or [])])
        return ids

    async def _checked_counts(
        self, io: Runtime, key: str, where: Filter | None
    ) -> list[tuple[Scalar, int]]:
        Compare(key, "exists")  # raises for what can be no key
        return await io.cpu(by_frequency, await self._counts(io, key, where))

    async def _check_model(
        self, io: Runtime, model: str, replace: bool, outcome: str = "Nothing was stored."
    ) -> None:
        if not isinstance(model, str) or not model:
            raise InvalidInput(
                f"{model!r} is not the name of a model.", fix="Pass a string that is not empty."
            )
        known = await self._made_by(io, model, replace)
        self._unnamed = model if known is None else None
        if known not in (None, model):
            raise InvalidInput(
                f"The vectors of this index were made by the model {known!r}, not by {model!r}. "
                f"{outcome}",
                fix="Use that model, or another index. If both names mean the same model, call "
                f"check_model({model!r}, replace=True) once.",
            )

    async def _clear(self, io: Runtime) -> None:
        await self._told_delete(io, None)
        await self._made_by(io, None, True)  # vectors of any model may follow

    async def _told_delete(self, io: Runtime, where: Filter | None) -> int:
        if not self._listeners:
            return await self._delete(io, where)
        if where is None:
            try:
                return await self._delete(io, None)
            finally:
                for each in self._listeners:
                    await io.call(each.changed_everything, each.achanged_everything)
        gone = await self._find(io, where, None, False)
        try:
            # Exactly those, and not what has come to match since.
            return await self._delete(io, Ids([record.id for record in gone])) if gone else 0
        finally:
            await self._tell(io, [name for r in gone for name in (r.id, r.document_id)])

    async def _tell(self, io: Runtime, names: Sequence[str | None]) -> None:
        told = {name for name in names if name is not None} if self._listeners else set()
        if told:
            for each in self._listeners:
                await io.call(each.changed, each.achanged, *told)

    def _check_kept(self, batch: EmbeddingBatch) -> None:
        """Refuse vectors that would be lost."""
        searched = type(self)._search_sparse is not Searching._search_sparse
        kind = None
        if batch.sparse is not None and not searched:
            kind = "sparse vectors"
        elif batch.multi is not None and not self._keeps_multi:
            kind = "multi-vectors"
        if kind is not None:
            raise InvalidInput(
                f"{type(self).__name__} keeps no {kind}. Nothing was stored.",
                fix="Embed without them: outputs says which vectors are made.",
            )
