"""Embeddings for LangChain, and LangChain's embeddings for ragopt."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from ragopt._runtime import Runtime
from ragopt.cache.embeddings import CachedEmbedder
from ragopt.cache.tiers import TieredCache
from ragopt.codecs import Precision
from ragopt.embedders.base import BaseEmbedder
from ragopt.errors import InvalidInput
from ragopt.keys import settings_of
from ragopt.protocols import Embedder, KVStore
from ragopt.types import EmbedderSpec, EmbeddingBatch, Output, Role


class EmbedderEmbeddings(Embeddings):
    """Any ragopt ``Embedder`` as LangChain ``Embeddings``, in both colours.

    Args:
        embedder: The model.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector for each text."""
        return self.embedder.embed(texts, role="document").to_lists()

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        return self.embedder.embed([text], role="query").to_lists()[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector for each text."""
        return (await self.embedder.aembed(texts, role="document")).to_lists()

    async def aembed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        return (await self.embedder.aembed([text], role="query")).to_lists()[0]


class CachedEmbeddings(EmbedderEmbeddings):
    """Embeddings with a cache in front: every text is computed once.

    Args:
        embeddings: The LangChain embeddings (or ragopt embedder) that you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        model: Name of the model in cache keys. Needed where ``embeddings`` does not carry one;
            two models must never share a name.
        ttl: Seconds that an embedding is kept; None until it is evicted.
        precision: ``float32`` is exact; ``float16`` and ``int8`` save space.
        batch_size: Texts that are computed and then stored at a time.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Raises:
        InvalidInput: No name of the model could be found and none was given.

    Examples:
        >>> embeddings = CachedEmbeddings(OpenAIEmbeddings(model="text-embedding-3-small"))
    """

    def __init__(
        self,
        embeddings: Embeddings | Embedder,
        cache: KVStore | None = None,
        *,
        model: str | None = None,
        ttl: float | None = 86_400,
        precision: Precision = "float32",
        batch_size: int = 256,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        embedder = as_embedder(embeddings, model=model)
        if not embedder.spec.model:
            raise InvalidInput(
                f"{type(embeddings).__name__} does not say which model it is.",
                fix='Name it: CachedEmbeddings(..., model="provider/model-name").',
            )
        super().__init__(
            CachedEmbedder(
                embedder,
                cache,
                ttl=ttl,
                precision=precision,
                batch_size=batch_size,
                namespace=namespace,
                tenant=tenant,
            )
        )

    @property
    def cache(self) -> TieredCache:
        """Where the embeddings are kept, with its statistics."""
        assert isinstance(self.embedder, CachedEmbedder)
        return self.embedder.cache


class _Borrowed(BaseEmbedder):
    """LangChain's embeddings as a ragopt embedder."""

    def __init__(self, embeddings: Embeddings, model: str | None) -> None:
        self._embeddings = embeddings
        self._spec = EmbedderSpec(
            model or _model_name(embeddings),
            params=settings_of(embeddings, getattr(type(embeddings), "model_fields", ())),
        )

    @property
    def spec(self) -> EmbedderSpec:
        return self._spec

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        inner = self._embeddings
        if role == "document":
            vectors = await io.call(inner.embed_documents, inner.aembed_documents, texts)
        else:
            vectors = await io.gather(
                io.call(inner.embed_query, inner.aembed_query, text) for text in texts
            )
        return EmbeddingBatch.of_dense(vectors)


def as_embedder(embeddings: Embeddings | Embedder, *, model: str | None = None) -> Embedder:
    """Return embeddings of either kind as an ``Embedder``, without a detour over lists."""
    if isinstance(embeddings, EmbedderEmbeddings):
        return embeddings.embedder
    if isinstance(embeddings, Embeddings):
        return _Borrowed(embeddings, model)
    if isinstance(embeddings, Embedder):
        return embeddings
    raise InvalidInput(
        f"Embeddings of type {type(embeddings).__name__} were given.",
        fix="Pass LangChain Embeddings or a ragopt Embedder.",
    )


def _model_name(embeddings: Embeddings) -> str:
    for attribute in ("model", "model_name", "model_id", "deployment", "repo_id", "model_path"):
        name = getattr(embeddings, attribute, None)
        if isinstance(name, str) and name:
            return f"{type(embeddings).__module__}.{type(embeddings).__qualname__}:{name}"
    return ""
