"""BGE-M3 for LangChain."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.embedders.bge_m3 import BGEM3Embedder
from ragopt.langchain.embeddings import EmbedderEmbeddings
from ragopt.protocols import Embedder
from ragopt.types import Embedding, EmbeddingBatch, Output, Role

_HYBRID: tuple[Output, ...] = ("dense", "sparse")


class BGEM3Embeddings(EmbedderEmbeddings):
    """BGE-M3 as LangChain ``Embeddings``: the dense vectors, and all three kinds on request.

    Args:
        model: A folder, a model id of the Hugging Face hub, or an embedder that is there already,
            such as a ``CachedEmbedder`` over one.
        options: Arguments of ``BGEM3Embedder``, where ``model`` is a name.

    Examples:
        >>> embeddings = BGEM3Embeddings(device="cpu", query_prefix="query: ")
        >>> embeddings.embed_hybrid(["a text"]).sparse[0].to_dict()
    """

    def __init__(self, model: str | Embedder = "BAAI/bge-m3", **options: Any) -> None:
        super().__init__(model if isinstance(model, Embedder) else BGEM3Embedder(model, **options))

    def embed_hybrid(
        self, texts: list[str], *, outputs: Collection[Output] = _HYBRID
    ) -> EmbeddingBatch:
        """Return several kinds of vectors of documents, from one pass.

        Args:
            texts: The documents.
            outputs: Any of ``"dense"``, ``"sparse"``, ``"multi"``.
        """
        return run(self._hybrid(SYNC, texts, "document", outputs))

    async def aembed_hybrid(
        self, texts: list[str], *, outputs: Collection[Output] = _HYBRID
    ) -> EmbeddingBatch:
        """Return several kinds of vectors of documents; see ``embed_hybrid``."""
        return await self._hybrid(ASYNC, texts, "document", outputs)

    def embed_hybrid_query(self, text: str, *, outputs: Collection[Output] = _HYBRID) -> Embedding:
        """Return several kinds of vectors of a question, from one pass."""
        return run(self._hybrid(SYNC, [text], "query", outputs))[0]

    async def aembed_hybrid_query(
        self, text: str, *, outputs: Collection[Output] = _HYBRID
    ) -> Embedding:
        """Return several kinds of vectors of a question, from one pass."""
        return (await self._hybrid(ASYNC, [text], "query", outputs))[0]

    async def _hybrid(
        self, io: Runtime, texts: list[str], role: Role, outputs: Collection[Output]
    ) -> EmbeddingBatch:
        embedder = self.embedder
        return await io.call(embedder.embed, embedder.aembed, texts, role=role, outputs=outputs)
