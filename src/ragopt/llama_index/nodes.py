"""LlamaIndex nodes to records and plain values, and back."""

from __future__ import annotations

from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    Node,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)

from ragopt.errors import CorruptData, InvalidInput
from ragopt.types import EmbeddingBatch, Hit, Record, RecordBatch

# The only classes that stored data can bring to life.
_CLASSES: dict[str, type[BaseNode]] = {
    cls.class_name(): cls for cls in (TextNode, ImageNode, IndexNode, Node, Document)
}

# Beside the user's own metadata in a record: everything of the node that is not its text,
# metadata or embedding. Metadata of this name is refused, so nothing of the user's is lost.
NODE_KEY = "_ragopt_node"


def to_records(nodes: list[BaseNode]) -> RecordBatch:
    """Turn nodes with embeddings into records. The nodes are not changed.

    Raises:
        InvalidInput: A node has no embedding, or metadata under a reserved name.
    """
    for node in nodes:
        if node.embedding is None:
            raise InvalidInput(
                f"The node {node.node_id!r} has no embedding. Nothing was stored.",
                fix="Add it through a VectorStoreIndex, or embed it first.",
            )
        if NODE_KEY in node.metadata:
            raise InvalidInput(
                f"The node {node.node_id!r} has metadata named {NODE_KEY!r}. Nothing was stored.",
                fix="Rename that metadata.",
            )
    return RecordBatch(
        ids=[node.node_id for node in nodes],
        texts=[_text(node) or "" for node in nodes],
        embeddings=EmbeddingBatch.of_dense([node.embedding for node in nodes]),  # type: ignore[arg-type]
        metadatas=[{**node.metadata, NODE_KEY: _rest(node)} for node in nodes],
        document_ids=[node.ref_doc_id for node in nodes],
    )


def from_record(record: Record | Hit) -> BaseNode:
    """Turn a record back into its node, with the embedding where the record carries one."""
    metadata = dict(record.metadata)
    fields = metadata.pop(NODE_KEY, None)
    if fields is None:  # written by something else than a LlamaIndex store
        return TextNode(id_=record.id, text=record.text, metadata=metadata)
    fields["metadata"] = metadata  # the record is the caller's own copy
    node = from_plain(fields, text=record.text)
    if record.embedding is not None and record.embedding.dense is not None:
        node.embedding = record.embedding.dense.tolist()
    return node


def to_plain(node: BaseNode) -> dict[str, Any]:
    """Return a node as JSON-like values, or raise for a class that could not be read back."""
    name = node.class_name()
    if type(node) is not _CLASSES.get(name):
        raise InvalidInput(
            f"Nodes of type {type(node).__name__} cannot be stored.",
            fix=f"Use one of: {', '.join(sorted(_CLASSES))}.",
        )
    try:
        fields = node.model_dump(
            mode="json", exclude_defaults=True, exclude={"metadata", "extra_info", "relationships"}
        )
        related = {
            str(kind.value): [_related(each) for each in info]
            if isinstance(info, list)
            else _related(info)
            for kind, info in node.relationships.items()
        }
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"The node {node.node_id!r} cannot be stored ({error}).",
            fix="Keep strings, numbers, booleans, None, dates, and lists and dicts of them in it.",
        ) from error
    if related:
        fields["relationships"] = related
    # JSON mode would turn dates into strings; records keep metadata as it is.
    return {**fields, "metadata": node.metadata, "class_name": name}


def _related(info: RelatedNodeInfo) -> dict[str, Any]:
    fields = info.model_dump(mode="json", exclude_defaults=True, exclude={"metadata"})
    return {**fields, "metadata": info.metadata} if info.metadata else fields


def from_plain(fields: dict[str, Any], *, text: str | None = None) -> BaseNode:
    """Build a node from what ``to_plain`` made."""
    try:
        cls = _CLASSES[fields["class_name"]]
        if text is not None and issubclass(cls, TextNode):
            fields = {**fields, "text": text}
        node = cls.model_validate(fields)
        if isinstance(node, IndexNode) and isinstance(node.obj, dict):
            pointed_at = node.obj.get("__data__", node.obj)  # as LlamaIndex wraps it, or not
            if isinstance(pointed_at, dict) and pointed_at.get("class_name") in _CLASSES:
                node.obj = from_plain(pointed_at)
        return node
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptData(
            f"A stored node cannot be read ({type(error).__name__}).", fix="Add the document again."
        ) from error


def encode_nodes(nodes: list[NodeWithScore]) -> list[Any]:
    """Return JSON-like values, or raise InvalidInput for a class that could not be read back."""
    return [[to_plain(each.node), each.score] for each in nodes]


def decode_nodes(stored: Any) -> list[NodeWithScore]:
    """Build the nodes from what ``encode_nodes`` made."""
    return [NodeWithScore(node=from_plain(fields), score=score) for fields, score in stored]


def names_of(nodes: list[NodeWithScore]) -> list[str]:
    """Return the ids of nodes and of the documents that they were cut from."""
    return [
        name
        for each in nodes
        for name in (each.node.node_id, each.node.ref_doc_id)
        if name is not None
    ]


def _text(node: BaseNode) -> str | None:
    if isinstance(node, TextNode):
        return node.text
    resource = getattr(node, "text_resource", None)
    return None if resource is None else resource.text


def _rest(node: BaseNode) -> dict[str, Any]:
    fields = to_plain(node)
    for stored_elsewhere in ("metadata", "embedding"):
        fields.pop(stored_elsewhere, None)
    if isinstance(node, TextNode):
        fields.pop("text", None)
    return fields
