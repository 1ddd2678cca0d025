"""Adding 20,000 vectors of 1024 dimensions to a flat FAISS index, in batches of 1,000."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy

from benchmarks.data import DIMENSION, Known, KnownLists, passages, vectors
from benchmarks.harness import Bound, Contender, Line, Row
from ragopt import EmbeddingBatch, FaissIndex, RecordBatch
from ragopt.langchain import FaissVectorStore

_BATCH = 1_000


@contextmanager
def rows(_: Path, number: int = 20_000) -> Iterator[Sequence[Row]]:
    """Yield one row for the inner product and one for the cosine, which scales every vector."""
    texts, array = passages(number), vectors(number)
    lists, arrays = KnownLists(texts, array), Known(texts, array)
    ids = [str(row) for row in range(number)]
    metadatas = [{"source": f"file-{row % 50}.md", "page": row} for row in range(number)]
    cuts = [slice(start, start + _BATCH) for start in range(0, number, _BATCH)]
    queries = array[::997]

    def add_raw(index: Any) -> Any:
        for cut in cuts:
            index.add(array[cut])
        return index

    def add_raw_scaled(index: Any) -> Any:
        for cut in cuts:
            scaled = array[cut].copy()
            faiss.normalize_L2(scaled)
            index.add(scaled)
        return index

    def add_texts(store: Any) -> Any:
        for cut in cuts:
            store.add_texts(texts[cut], metadatas[cut], ids=ids[cut])
        return store

    def add_records(index: FaissIndex) -> FaissIndex:
        for cut in cuts:
            index.add(
                RecordBatch(ids[cut], texts[cut], EmbeddingBatch(dense=array[cut]), metadatas[cut])
            )
        return index

    def new_peer(_: int) -> FAISS:
        return FAISS(
            lists,
            faiss.IndexFlatIP(DIMENSION),
            InMemoryDocstore(),
            {},
            distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT,
        )

    def stored(index: Any) -> tuple[int, list[list[int]]]:
        """How many vectors there are, and which are nearest to some queries."""
        return index.ntotal, index.search(queries, 5)[1].tolist()

    def stored_peer(store: FAISS) -> tuple[int, list[list[int]]]:
        assert [store.index_to_docstore_id[row] for row in range(number)] == ids
        assert store.get_by_ids(ids[:1])[0].metadata == metadatas[0]
        return stored(store.index)

    def stored_ours(index: FaissIndex) -> tuple[int, list[list[int]]]:
        (first,) = index.get(ids[:1])
        assert first is not None
        assert first.metadata == metadatas[0]
        hits = index.search_batch(EmbeddingBatch(dense=queries), k=5)
        return index.count(), [[int(hit.id) for hit in each] for each in hits]

    def contender(name: str, work: Callable[[Any], Any], new: Callable[[], Any]) -> Contender:
        def outcome(made: Any) -> Any:
            return stored_ours(made if isinstance(made, FaissIndex) else made.index)

        return Contender(name, work, outcome, lambda _: new())

    def new_raw(_: int) -> Any:
        return faiss.IndexFlatIP(DIMENSION)

    bound = Bound(factor=3)
    yield (
        Row(
            f"add {number:,} to FAISS flat, inner product",
            [
                Contender("raw", add_raw, stored, new_raw),
                Contender("community FAISS", add_texts, stored_peer, new_peer),
                contender("records", add_records, lambda: FaissIndex(metric="ip")),
                contender("arrays", add_texts, lambda: FaissVectorStore(arrays, metric="ip")),
                contender("lists", add_texts, lambda: FaissVectorStore(lists, metric="ip")),
            ],
            [
                Line("FaissIndex.add", "records", "raw", "community FAISS", bound),
                Line("add_texts, model gives arrays", "arrays", "raw", "community FAISS", bound),
                Line("add_texts, model gives lists", "lists", "raw", "community FAISS"),
            ],
        ),
        Row(
            f"add {number:,} to FAISS flat, cosine",
            [
                Contender("raw", add_raw_scaled, stored, new_raw),
                contender("records", add_records, FaissIndex),
                contender("arrays", add_texts, lambda: FaissVectorStore(arrays)),
            ],
            [
                Line("FaissIndex.add", "records", "raw", None, bound),
                Line("add_texts, model gives arrays", "arrays", "raw", None, bound),
            ],
        ),
    )
