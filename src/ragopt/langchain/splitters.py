"""Text splitters, and other document transformers, that read each document once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import BaseDocumentTransformer, Document

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.chunks import ChunkCache
from ragopt.cache.identity import identity
from ragopt.cache.tiers import TieredCache
from ragopt.errors import InvalidInput
from ragopt.langchain.plain import from_plain, to_plain
from ragopt.protocols import KVStore


class CachedSplitter(BaseDocumentTransformer):
    """A text splitter that splits each document once.

    The key is the class of the splitter and its settings, as they are now and without secrets,
    and the document: id, text, metadata. So an edited document alone is split again, and two
    splitters with other settings never share. Each document is given to the splitter on its own:
    a transformer that looks at several, such as one that drops duplicates, is not for this class.
    A document with metadata that cannot be stored is split every time and counted as
    ``uncacheable``.

    Args:
        splitter: The text splitter (any document transformer) that you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        name: Stands for settings that no key can hold. Change it when they change.
        ttl: Seconds that chunks are kept; None until they are evicted.
        batch_size: Documents that are split and then stored at a time.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Raises:
        UnkeyableValue: A setting cannot be part of a key, and no name was given.

    Examples:
        >>> splitter = CachedSplitter(RecursiveCharacterTextSplitter(chunk_size=800), cache)
        >>> chunks = splitter.split_documents(loader.load())
    """

    def __init__(
        self,
        splitter: BaseDocumentTransformer,
        cache: KVStore | None = None,
        *,
        name: str | None = None,
        ttl: float | None = 86_400,
        batch_size: int = 256,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        self.splitter = splitter
        self._chunks = ChunkCache(
            cache,
            ttl=ttl,
            batch_size=batch_size,
            settings=identity(splitter, name=name),
            encode=_encode,
            decode=from_plain,
            namespace=namespace,
            tenant=tenant,
        )

    @property
    def cache(self) -> TieredCache:
        """Where the chunks are kept, with its statistics."""
        return self._chunks.cache

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """Return the chunks of the documents, in their order. The documents are not changed."""
        return run(self._split(SYNC, documents, kwargs))

    async def atransform_documents(
        self, documents: Sequence[Document], **kwargs: Any
    ) -> list[Document]:
        """Return the chunks of the documents, in their order. The documents are not changed."""
        return await self._split(ASYNC, documents, kwargs)

    def split_documents(self, documents: Iterable[Document]) -> list[Document]:
        """Return the chunks of the documents, as LangChain's text splitters do."""
        return self.transform_documents(list(documents))

    def clear(self) -> None:
        """Forget the chunks of this namespace and tenant, of every splitter."""
        self._chunks.clear()

    async def aclear(self) -> None:
        """Forget the chunks of this namespace and tenant, of every splitter."""
        await self._chunks.aclear()

    async def _split(
        self, io: Runtime, documents: Sequence[Document], kwargs: dict[str, Any]
    ) -> list[Document]:
        async def compute(missing: list[int]) -> list[list[Document]]:
            inner = self.splitter
            return [
                list(
                    await io.call(
                        inner.transform_documents,
                        inner.atransform_documents,
                        [documents[i].model_copy(deep=True)],  # some write into what they are given
                        **kwargs,
                    )
                )
                for i in missing
            ]

        payloads = [(kwargs, to_plain(document)) for document in documents]
        chunks = await self._chunks.resolve(io, payloads, compute)
        return [chunk for chunks_of_one in chunks for chunk in chunks_of_one]


def _encode(chunks: list[Document]) -> Any:
    plain = to_plain(chunks)
    if from_plain(plain) != chunks:
        raise InvalidInput(
            "A chunk has no plain form that is exactly the same.", fix="It is not cached."
        )
    return plain
