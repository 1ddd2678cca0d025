"""BGE-M3 for LlamaIndex: its dense and its sparse face, over one model and one pass."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.embeddings import CachedEmbedder
from ragopt.embedders.bge_m3 import BGEM3Embedder
from ragopt.llama_index.embeddings import EmbedderEmbedding, as_embedder
from ragopt.protocols import Embedder
from ragopt.types import Output, Role

_SPARSE: tuple[Output, ...] = ("sparse",)


class BGEM3Embedding(EmbedderEmbedding):
    """The dense vectors of BGE-M3.

    Given a name, it keeps what it computes in memory, dense and sparse of one pass, so that a
    ``BGEM3SparseEmbedding`` over it finds the sparse vectors of the same texts there.

    Args:
        model: A folder, a model id of the Hugging Face hub, or an embedder that is there already.
            For settings of the model, pass a ``BGEM3Embedder``.
        options: Fields of ``BaseEmbedding``, such as ``embed_batch_size``.

    Examples:
        >>> dense = BGEM3Embedding("BAAI/bge-m3")
        >>> sparse = BGEM3SparseEmbedding(dense)
    """

    def __init__(self, model: str | Embedder = "BAAI/bge-m3", **options: Any) -> None:
        if not isinstance(model, Embedder):
            options.setdefault("model_name", str(model))
            model = CachedEmbedder(BGEM3Embedder(model), together=("dense", "sparse"))
        super().__init__(model, **options)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "BGEM3Embedding"


class BGEM3SparseEmbedding(BaseSparseEmbedding):
    """The sparse vectors of BGE-M3, or of any embedder that makes such: token id to weight.

    Args:
        source: The dense face, whose model and results are shared; or an embedder.
        options: Fields of ``BaseSparseEmbedding``, such as ``embed_batch_size``.
    """

    _embedder: Embedder = PrivateAttr()

    def __init__(self, source: EmbedderEmbedding | Embedder, **options: Any) -> None:
        embedder = as_embedder(source)
        if isinstance(source, EmbedderEmbedding):
            options.setdefault("model_name", source.model_name)
            options.setdefault("embed_batch_size", source.embed_batch_size)
        else:
            options.setdefault("model_name", embedder.spec.model)
        super().__init__(**options)
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "BGEM3SparseEmbedding"

    def _get_query_embedding(self, query: str) -> dict[int, float]:
        return run(self._sparse(SYNC, [query], "query"))[0]

    async def _aget_query_embedding(self, query: str) -> dict[int, float]:
        return (await self._sparse(ASYNC, [query], "query"))[0]

    def _get_text_embedding(self, text: str) -> dict[int, float]:
        return run(self._sparse(SYNC, [text], "document"))[0]

    async def _aget_text_embedding(self, text: str) -> dict[int, float]:
        return (await self._sparse(ASYNC, [text], "document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return run(self._sparse(SYNC, texts, "document"))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return await self._sparse(ASYNC, texts, "document")

    async def _sparse(self, io: Runtime, texts: list[str], role: Role) -> list[dict[int, float]]:
        embedder = self._embedder
        batch = await io.call(embedder.embed, embedder.aembed, texts, role=role, outputs=_SPARSE)
        return [vector.to_dict() for vector in batch.sparse or ()]
