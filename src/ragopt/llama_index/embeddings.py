"""Embeddings for LlamaIndex, and LlamaIndex's embeddings for ragopt."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from ragopt._runtime import Runtime
from ragopt.cache.embeddings import CachedEmbedder
from ragopt.cache.tiers import TieredCache
from ragopt.codecs import Precision
from ragopt.embedders.base import BaseEmbedder
from ragopt.errors import InvalidInput
from ragopt.keys import settings_of
from ragopt.protocols import Embedder, KVStore
from ragopt.types import EmbedderSpec, EmbeddingBatch, Output, Role

# Fields of a BaseEmbedding that do not change its vectors.
_NEUTRAL = {"callback_manager", "embed_batch_size", "num_workers", "embeddings_cache"}


class EmbedderEmbedding(BaseEmbedding):
    """Any ragopt ``Embedder`` as a LlamaIndex embedding, in both colours.

    Args:
        embedder: The model.
        options: Fields of ``BaseEmbedding``, such as ``embed_batch_size``.
    """

    _embedder: Embedder = PrivateAttr()

    def __init__(self, embedder: Embedder, **options: Any) -> None:
        if "model_name" not in options:  # a specification may need the model's files
            options["model_name"] = embedder.spec.model
        super().__init__(**options)
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "EmbedderEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embedder.embed([query], role="query").to_lists()[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._embedder.aembed([query], role="query")).to_lists()[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embedder.embed([text], role="document").to_lists()[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._embedder.aembed([text], role="document")).to_lists()[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed(texts, role="document").to_lists()

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return (await self._embedder.aembed(texts, role="document")).to_lists()


class CachedEmbedding(EmbedderEmbedding):
    """An embedding with a cache in front: every text is computed once.

    Args:
        embedding: The LlamaIndex embedding (or ragopt embedder) that you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        model: Name of the model in cache keys; the embedding's own name if None. Two models must
            never share a name.
        ttl: Seconds that an embedding is kept; None until it is evicted.
        precision: ``float32`` is exact; ``float16`` and ``int8`` save space.
        batch_size: Texts that are computed and then stored at a time.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
        options: Fields of ``BaseEmbedding``, such as ``embed_batch_size``.

    Raises:
        InvalidInput: No name of the model could be found and none was given.

    Examples:
        >>> Settings.embed_model = CachedEmbedding(OpenAIEmbedding())
    """

    def __init__(
        self,
        embedding: BaseEmbedding | Embedder,
        cache: KVStore | None = None,
        *,
        model: str | None = None,
        ttl: float | None = 86_400,
        precision: Precision = "float32",
        batch_size: int = 256,
        namespace: str = "default",
        tenant: str | None = None,
        **options: Any,
    ) -> None:
        embedder = as_embedder(embedding, model=model)
        if embedder.spec.model in ("", "unknown"):
            raise InvalidInput(
                f"{type(embedding).__name__} does not say which model it is.",
                fix='Name it: CachedEmbedding(..., model="provider/model-name").',
            )
        if isinstance(embedding, BaseEmbedding):
            options.setdefault("model_name", embedding.model_name)
            options.setdefault("embed_batch_size", embedding.embed_batch_size)
            options.setdefault("callback_manager", embedding.callback_manager)
        cached = CachedEmbedder(
            embedder,
            cache,
            ttl=ttl,
            precision=precision,
            batch_size=batch_size,
            namespace=namespace,
            tenant=tenant,
        )
        super().__init__(cached, **options)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "CachedEmbedding"

    @property
    def cache(self) -> TieredCache:
        """Where the embeddings are kept, with its statistics."""
        assert isinstance(self._embedder, CachedEmbedder)
        return self._embedder.cache


class _Borrowed(BaseEmbedder):
    """LlamaIndex's embedding as a ragopt embedder.

    It is called by its public methods: its own batching, rate limit and events apply to what is
    really computed.
    """

    def __init__(self, embedding: BaseEmbedding, model: str | None) -> None:
        self._embedding = embedding
        name = embedding.model_name
        if name not in ("", "unknown"):
            name = f"{type(embedding).__module__}.{type(embedding).__qualname__}:{name}"
        fields = type(embedding).model_fields.keys() - _NEUTRAL
        self._spec = EmbedderSpec(model or name, params=settings_of(embedding, fields))

    @property
    def spec(self) -> EmbedderSpec:
        return self._spec

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        inner = self._embedding
        if role == "document":
            vectors = await io.call(
                inner.get_text_embedding_batch, inner.aget_text_embedding_batch, texts
            )
        else:
            vectors = await io.gather(
                io.call(inner.get_query_embedding, inner.aget_query_embedding, text)
                for text in texts
            )
        return EmbeddingBatch.of_dense(vectors)


def as_embedder(embedding: BaseEmbedding | Embedder, *, model: str | None = None) -> Embedder:
    """Return an embedding of either kind as an ``Embedder``, without a detour over lists."""
    if isinstance(embedding, EmbedderEmbedding):
        return embedding._embedder
    if isinstance(embedding, BaseEmbedding):
        return _Borrowed(embedding, model)
    if isinstance(embedding, Embedder):
        return embedding
    raise InvalidInput(
        f"An embedding of type {type(embedding).__name__} was given.",
        fix="Pass a LlamaIndex BaseEmbedding or a ragopt Embedder.",
    )
