"""What the methods of a LangChain vector store ask of its embedder and its index."""

from __future__ import annotations

from typing import Any

import numpy as np
from langchain_core.documents import Document

from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput
from ragopt.filters import Filter
from ragopt.fusion import By, vectors_for
from ragopt.indexes.checks import check_known
from ragopt.langchain.filters import AnyFilter, to_filter
from ragopt.langchain.plain import document
from ragopt.protocols import Embedder, VectorIndex
from ragopt.retrieval.mmr import mmr
from ragopt.types import Dense, EmbeddingBatch, Hit, Output, Record, RecordBatch


class Asking:
    """The work behind the methods, in both colours."""

    index: VectorIndex
    by: By
    embedder: Embedder
    _checked = False

    async def _store(
        self,
        io: Runtime,
        ids: list[str],
        texts: list[str],
        metadatas: list[dict[str, Any]] | None,
    ) -> None:
        embedder, index = self.embedder, self.index
        await self._check_model(io, again=True)  # another may have cleared and filled it since
        outputs: set[Output] = {"dense", *vectors_for(self.by)}
        batch = await io.call(
            embedder.embed, embedder.aembed, texts, role="document", outputs=outputs
        )
        await io.call(index.add, index.aadd, RecordBatch(ids, texts, batch, metadatas))

    async def _search(
        self,
        io: Runtime,
        query: str | list[float] | Dense,
        k: int | None,
        filter: AnyFilter,
        *,
        by: By | None = None,
        min_score: float | None = None,
        **unknown: Any,
    ) -> list[Hit]:
        check_known(unknown, "k", "filter", "by", "min_score")
        where = to_filter(filter)
        by = self.by if by is None else by
        if isinstance(query, str):
            batch = await self._embed(io, query, vectors_for(by))
        else:
            batch, by = _one(query), "dense"
        return await self._hits(io, batch, query, k, where, by, min_score)

    async def _mmr(
        self,
        io: Runtime,
        query: str | list[float] | Dense,
        k: int,
        fetch_k: int,
        lambda_mult: float,
        filter: AnyFilter,
        *,
        by: By | None = None,
        min_score: float | None = None,
        **unknown: Any,
    ) -> list[Document]:
        check_known(unknown, "k", "fetch_k", "lambda_mult", "filter", "by", "min_score")
        if k < 1 or not 0 <= lambda_mult <= 1:
            raise InvalidInput(
                f"A search was given k={k} and lambda_mult={lambda_mult}.",
                fix="Give k of 1 or more, and lambda_mult from 0 to 1.",
            )
        where = to_filter(filter)
        by = self.by if by is None else by
        if isinstance(query, str):
            batch = await self._embed(io, query, vectors_for(by) | {"dense"})
        else:
            batch, by = _one(query), "dense"
        most = max(k, fetch_k)
        hits = await self._hits(io, batch, query, most, where, by, min_score, embeddings=True)
        found = [h.embedding.dense for h in hits if h.embedding and h.embedding.dense is not None]
        if not found or batch.dense is None:
            return []
        chosen = mmr(batch.dense[0], np.stack(found), k=k, lambda_mult=lambda_mult)
        return [document_of(hits[position]) for position in chosen]

    async def _hits(
        self,
        io: Runtime,
        batch: EmbeddingBatch,
        query: str | list[float] | Dense,
        k: int | None,
        where: Filter | None,
        by: By,
        min_score: float | None,
        *,
        embeddings: bool = False,
    ) -> list[Hit]:
        (hits,) = await io.call(
            self.index.search_batch,
            self.index.asearch_batch,
            batch,
            k=k,
            where=where,
            min_score=min_score,
            embeddings=embeddings,
            by=by,
            texts=[query] if isinstance(query, str) else None,
        )
        return hits

    async def _embed(self, io: Runtime, query: str, outputs: frozenset[Output]) -> EmbeddingBatch:
        if not outputs:
            return EmbeddingBatch()  # a search by words alone
        await self._check_model(io)
        embedder = self.embedder
        return await io.call(
            embedder.embed, embedder.aembed, [query], role="query", outputs=outputs
        )

    async def _check_model(self, io: Runtime, *, again: bool = False) -> None:
        """Refuse an index of another model's vectors, before the first of ours meet them."""
        if (again or not self._checked) and (model := self.embedder.spec.model):
            await io.call(self.index.check_model, self.index.acheck_model, model)
        self._checked = True


def document_of(record: Record | Hit) -> Document:
    """Return a record as a document."""
    # A record is the caller's own copy, and nobody else holds this one.
    return document(record.id, record.text, record.metadata)


def _one(query: list[float] | Dense) -> EmbeddingBatch:
    batch = EmbeddingBatch.of_dense(query)
    # A list of one list would be a batch too.
    if batch.dense is None or batch.dense.shape != (1, len(query)):
        raise InvalidInput(
            f"A search was given a vector of the shape {np.shape(query)}.",
            fix="Pass one vector: a list of numbers.",
        )
    return batch
