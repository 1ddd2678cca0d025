"""Transformations of an ingestion pipeline that compute each node once."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, Literal, get_args

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.extractors import BaseExtractor
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode, TransformComponent

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.chunks import ChunkCache
from ragopt.cache.identity import identity
from ragopt.cache.tiers import TieredCache
from ragopt.errors import CorruptData, InvalidInput
from ragopt.keys import encode
from ragopt.llama_index.nodes import from_plain, to_plain
from ragopt.protocols import KVStore

Unit = Literal["node", "document", "batch"]


class CachedTransformation(TransformComponent):
    """A splitter, an embedding or an extractor that computes each node once.

    The key is the class of the transformation and its settings, as they are now and without its
    secrets, and the whole node: id, content, metadata, relationships. So an edited document alone
    is computed again, and two transformations with other settings never share. A node that has
    no plain form is computed every time and counted as ``uncacheable``.

    What is computed together is the ``unit``:

    - ``"node"``: each node on its own. Right for splitters of documents.
    - ``"document"``: nodes in a row that come from one document, looked up and computed together.
      Right for what looks at a node's neighbours: extractors, splitters of nodes.
    - ``"batch"``: looked up one by one; all that are missing are computed in one call. Right for
      embeddings, and for whatever returns one node for each and looks at nothing else.

    Give documents ids of their own: without one, LlamaIndex makes up a new id each time, and
    nothing is found again. Cache the splitter too, since it makes up the ids of its nodes. Let an
    extractor raise its errors, as it does by default: what it returns instead would be kept. The
    pipeline's own cache is of no use beside this one: ``disable_cache=True``.

    Args:
        transformation: What you put into the pipeline today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        name: Stands for settings that no key can hold. Change it when they change.
        unit: See above; ``"batch"`` for embeddings, ``"document"`` for extractors, ``"node"`` for
            all others if None.
        ttl: Seconds that nodes are kept; None until they are evicted.
        batch_size: Units that are computed and then stored at a time.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Raises:
        UnkeyableValue: A setting cannot be part of a key, and no name was given.
        InvalidInput: The unit is none of the three, or the batch size is below 1.

    Examples:
        >>> splitter = CachedTransformation(SentenceSplitter(), cache)
        >>> embedding = CachedTransformation(OpenAIEmbedding(), cache)
        >>> pipeline = IngestionPipeline(
        ...     transformations=[splitter, embedding], disable_cache=True
        ... )
    """

    fingerprint: str = ""
    """A hash of the transformation and its settings, in place of them: they may hold secrets."""

    _transformation: TransformComponent = PrivateAttr()
    _unit: Unit = PrivateAttr()
    _chunks: ChunkCache = PrivateAttr()

    def __init__(
        self,
        transformation: TransformComponent,
        cache: KVStore | None = None,
        *,
        name: str | None = None,
        unit: Unit | None = None,
        ttl: float | None = 86_400,
        batch_size: int = 256,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        unit = _unit_of(transformation) if unit is None else unit
        if unit not in get_args(Unit):
            raise InvalidInput(
                f"A cached transformation was given the unit {unit!r}.",
                fix='Pass "node", "document" or "batch".',
            )
        settings = (identity(transformation, name=name), unit)
        fields = {"fingerprint": blake2b(encode(settings), digest_size=16).hexdigest()}
        super().__init__(**fields)
        self._transformation = transformation
        self._unit = unit
        self._chunks = ChunkCache(
            cache,
            ttl=ttl,
            batch_size=batch_size,
            settings=settings,
            encode=_encode,
            decode=_decode,
            namespace=namespace,
            tenant=tenant,
        )

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "CachedTransformation"

    @property
    def cache(self) -> TieredCache:
        """Where the nodes are kept, with its statistics."""
        return self._chunks.cache

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Return what the nodes are turned into, in their order. They are not changed."""
        return run(self._transform(SYNC, nodes, kwargs))

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Return what the nodes are turned into, in their order. They are not changed."""
        return await self._transform(ASYNC, nodes, kwargs)

    def clear(self) -> None:
        """Forget the nodes of this namespace and tenant, of every transformation."""
        self._chunks.clear()

    async def aclear(self) -> None:
        """Forget the nodes of this namespace and tenant, of every transformation."""
        await self._chunks.aclear()

    async def _transform(
        self, io: Runtime, nodes: Sequence[BaseNode], kwargs: dict[str, Any]
    ) -> list[BaseNode]:
        units = [[node] for node in nodes]
        if self._unit == "document":
            units = [list(each) for _, each in groupby(nodes, key=_document)]
        options = {key: value for key, value in kwargs.items() if key != "show_progress"}
        payloads = [None if (plain := _key(unit)) is None else (options, plain) for unit in units]

        async def compute(missing: list[int]) -> list[list[BaseNode]]:
            # Copies, since embeddings and extractors write into the nodes they are given.
            own = [[node.model_copy(deep=True) for node in units[i]] for i in missing]
            if self._unit == "batch":
                made = await self._call(io, [node for unit in own for node in unit], kwargs)
                return self._one_each(made, len(own))
            # In turn: a transformation has a bound of its own on what it does at once.
            return [await self._call(io, unit, kwargs) for unit in own]

        made = await self._chunks.resolve(io, payloads, compute)
        return [node for unit in made for node in unit]

    async def _call(
        self, io: Runtime, nodes: list[BaseNode], kwargs: dict[str, Any]
    ) -> list[BaseNode]:
        inner = self._transformation
        if _blocks(inner):
            return list(await io.cpu(inner.__call__, nodes, **kwargs))
        return list(await io.call(inner.__call__, inner.acall, nodes, **kwargs))

    def _one_each(self, made: list[BaseNode], number: int) -> list[list[BaseNode]]:
        if len(made) != number:
            raise InvalidInput(
                f"{type(self._transformation).__name__} made {len(made)} nodes of {number}. "
                "None of them was cached.",
                fix='Pass unit="node" for what does not return one node for each.',
            )
        return [[node] for node in made]

    def __getstate__(self) -> dict[str, Any]:
        raise InvalidInput(
            "A cached transformation cannot be sent to another process.",
            fix="Run the pipeline without num_workers.",
        )


def _unit_of(transformation: TransformComponent) -> Unit:
    if isinstance(transformation, BaseEmbedding):
        return "batch"
    return "document" if isinstance(transformation, BaseExtractor) else "node"


def _blocks(transformation: TransformComponent) -> bool:
    """Return whether its ``acall`` is LlamaIndex's own, which computes on the event loop."""
    if isinstance(transformation, NodeParser):
        own: type[NodeParser] = type(transformation)
        return own.acall is NodeParser.acall and own._aparse_nodes is NodeParser._aparse_nodes
    return type(transformation).acall is TransformComponent.acall


def _document(node: BaseNode) -> str:
    return node.ref_doc_id or node.node_id


def _key(nodes: list[BaseNode]) -> list[Any] | None:
    try:
        return _encode(nodes)
    except InvalidInput:
        return None


def _encode(nodes: Sequence[BaseNode]) -> list[Any]:
    """Return the nodes as plain values, or raise if they do not tell everything of them."""
    try:
        plain = [to_plain(node) for node in nodes]
        same = _decode(plain) == list(nodes)
    except (ValueError, CorruptData) as error:  # pydantic's too
        raise InvalidInput(f"A node has no plain form ({error}).", fix=_NOT_CACHED) from error
    if not same:
        raise InvalidInput("A node has no plain form that is exactly the same.", fix=_NOT_CACHED)
    return plain


_NOT_CACHED = "It is computed every time."


def _decode(stored: Any) -> list[BaseNode]:
    return [from_plain(fields) for fields in stored]
