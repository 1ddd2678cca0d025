"""The 10 nearest of 20,000 vectors of 1024 dimensions in a flat FAISS index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult
from llama_index.vector_stores.faiss import FaissVectorStore as LlamaPeer

from benchmarks.data import Known, KnownLists, passages, vectors
from benchmarks.harness import Bound, Contender, Line, Row
from ragopt import Embedding, EmbeddingBatch, FaissIndex, RecordBatch
from ragopt.langchain import FaissVectorStore
from ragopt.llama_index import FaissVectorStore as LlamaStore

_K = 10
_QUERIES = 16
_BOUND = Bound(factor=1.05, seconds=50e-6)


@contextmanager
def rows(_: Path, number: int = 20_000) -> Iterator[Sequence[Row]]:
    """Yield one row for the index and LangChain, and one for LlamaIndex."""
    texts, array = passages(number), vectors(number)
    noise = vectors(_QUERIES)[:, ::-1]
    queries = np.ascontiguousarray(array[:: number // _QUERIES][:_QUERIES] + noise)
    lists = queries.tolist()
    yield (_langchain(texts, array, queries, lists), _llama(texts, array, queries, lists))


def _langchain(texts: list[str], array: Any, queries: Any, lists: list[list[float]]) -> Row:
    ids, metadatas = _ids(len(texts)), _metadatas(len(texts))
    index = FaissIndex(metric="ip")
    index.add(RecordBatch(ids, texts, EmbeddingBatch(dense=array), metadatas))
    model = Known(texts, array)
    ours = FaissVectorStore(model, index=index)
    # All search the very same vectors in memory: where they lie is worth several per cent.
    raw = index._index
    documents = zip(ids, texts, metadatas, strict=True)
    peer = FAISS(
        KnownLists(texts[:1], array[:1]),
        raw,
        InMemoryDocstore(
            {id_: Document(id=id_, page_content=text, metadata=m) for id_, text, m in documents}
        ),
        dict(enumerate(ids)),
        distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT,
    )

    def of_documents(found: list[Document]) -> list[str]:
        for each in found:
            row = int(each.id or -1)
            assert each.page_content == texts[row]
            assert each.metadata == metadatas[row]
        return [each.id or "" for each in found]

    return Row(
        f"search FAISS flat, {len(texts):,} x {array.shape[1]}, k={_K}",
        [
            Contender("raw", lambda i: raw.search(queries[i : i + 1], _K), _of_rows),
            Contender(
                "community FAISS",
                lambda i: peer.similarity_search_by_vector(lists[i], k=_K),
                of_documents,
            ),
            Contender(
                "FaissIndex",
                lambda i: index.search(Embedding(dense=queries[i]), k=_K),
                lambda hits: [hit.id for hit in hits],
            ),
            Contender(
                "FaissVectorStore",
                lambda i: ours.similarity_search_by_vector(lists[i], k=_K),
                of_documents,
            ),
        ],
        [
            Line("FaissIndex.search", "FaissIndex", "raw", "community FAISS", _BOUND),
            Line("LangChain by vector", "FaissVectorStore", "raw", "community FAISS", _BOUND),
        ],
        inputs=_QUERIES,
    )


def _llama(texts: list[str], array: Any, queries: Any, lists: list[list[float]]) -> Row:
    ids, metadatas = _ids(len(texts)), _metadatas(len(texts))
    ours = LlamaStore(metric="ip")
    for start in range(0, len(texts), 1_000):
        ours.add(
            [
                TextNode(
                    id_=ids[row],
                    text=texts[row],
                    metadata=metadatas[row],
                    embedding=array[row].tolist(),
                )
                for row in range(start, min(start + 1_000, len(texts)))
            ]
        )
    assert isinstance(ours.client, FaissIndex)
    raw = ours.client._index
    peer = LlamaPeer(faiss_index=raw)

    def query(store: Any, number: int) -> VectorStoreQueryResult:
        asked = VectorStoreQuery(query_embedding=lists[number], similarity_top_k=_K)
        result: VectorStoreQueryResult = store.query(asked)
        return result

    def of_nodes(result: VectorStoreQueryResult) -> list[str]:
        for node in result.nodes or []:
            assert node.metadata == metadatas[int(node.node_id)]
            assert node.get_content() == texts[int(node.node_id)]
        return list(result.ids or [])

    return Row(
        f"search FAISS flat, {len(texts):,} x {array.shape[1]}, k={_K}",
        [
            Contender("raw", lambda i: raw.search(queries[i : i + 1], _K), _of_rows),
            Contender("LlamaIndex FAISS, no texts", lambda i: query(peer, i), of_nodes),
            Contender("FaissVectorStore, nodes", lambda i: query(ours, i), of_nodes),
        ],
        [
            Line(
                "LlamaIndex query",
                "FaissVectorStore, nodes",
                "raw",
                "LlamaIndex FAISS, no texts",
                _BOUND,
            )
        ],
        inputs=_QUERIES,
    )


def _of_rows(found: tuple[Any, Any]) -> list[str]:
    return [str(row) for row in found[1][0]]


def _ids(number: int) -> list[str]:
    return [str(row) for row in range(number)]


def _metadatas(number: int) -> list[dict[str, Any]]:
    return [{"source": f"file-{row % 50}.md", "page": row} for row in range(number)]
