"""The 10 nearest of 5,000 vectors of 1024 dimensions in an HNSW index on a Redis server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis
import redis.asyncio
from langchain_redis import RedisConfig, RedisVectorStore
from tests.services import redis_server

from benchmarks.data import KnownLists, passages, vectors
from benchmarks.harness import Bound, Contender, Line, Row
from ragopt import Embedding, EmbeddingBatch, RecordBatch
from ragopt.indexes.redis import RedisIndex

_K = 10
_QUERIES = 16
_SAMPLE = "The quick brown fox jumps over the lazy dog"  # the peer asks for its dimension
_BOUND = Bound(factor=1.25)


@contextmanager
def rows(_: Path, number: int = 5_000) -> Iterator[Sequence[Row]]:
    """Fill an index of ours and one of the peer; yield a row for each colour."""
    texts, array = passages(number), vectors(number)
    ids = [str(row) for row in range(number)]
    metadatas = [{"source": f"file-{row % 50}.md", "page": row} for row in range(number)]
    # Each is so near to one vector that the graphs, built apart, agree on it.
    queries = np.ascontiguousarray(array[:: number // _QUERIES][:_QUERIES] * 0.9)
    queries += 0.1 * vectors(_QUERIES)[:, ::-1]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    lists = queries.tolist()

    # Not asyncio.Runner, which prepares for an interrupt at every call: that takes a millisecond.
    loop = asyncio.new_event_loop()
    wait = loop.run_until_complete
    with redis_server() as url, closing(loop):
        # RESP2, in which the driver hands the reply on as it came.
        raw: Any = redis.Redis.from_url(url, protocol=2)
        araw: Any = redis.asyncio.Redis.from_url(url, protocol=2)
        index = RedisIndex(url, "ours", metric="cosine")
        index.add(RecordBatch(ids, texts, EmbeddingBatch(dense=array), metadatas))
        peer = RedisVectorStore(
            KnownLists([_SAMPLE, *texts], np.concatenate([array[:1], array])),
            config=RedisConfig(
                index_name="peer",
                redis_url=url,
                indexing_algorithm="HNSW",
                metadata_schema=[
                    {"name": "source", "type": "tag"},
                    {"name": "page", "type": "numeric"},
                ],
            ),
        )
        peer.add_texts(texts, metadatas, ids=ids)

        def words(row: int) -> tuple[Any, ...]:
            # What the index itself sends.
            return (
                *("FT.SEARCH", "ragopt:{ours}"),
                f"*=>[KNN {_K} @vector $q EF_RUNTIME 100 AS distance]",
                *("PARAMS", 2, "q", queries[row].tobytes()),
                *("RETURN", 4, "distance", "text", "metadata", "document"),
                *("SORTBY", "distance", "LIMIT", 0, _K, "DIALECT", 2),
            )

        asked = [words(row) for row in range(_QUERIES)]

        def of_raw(reply: list[Any]) -> list[str]:
            keys = [key.rpartition(b":")[2].decode() for key in reply[1::2]]
            assert [fields[3].decode() for fields in reply[2::2]] == [texts[int(k)] for k in keys]
            return [keys[0], str(len(keys))]

        def of_hits(hits: list[Any]) -> list[str]:
            for hit in hits:
                assert hit.text == texts[int(hit.id)]
                assert hit.metadata == metadatas[int(hit.id)]
            return [hits[0].id, str(len(hits))]

        def of_documents(found: list[Any]) -> list[str]:
            assert found[0].page_content == texts[int(found[0].metadata["page"])]
            return [str(int(found[0].metadata["page"])), str(len(found))]

        async def read(row: int) -> Any:
            return await araw.execute_command(*asked[row])

        async def asearch(row: int) -> Any:
            return await index.asearch(Embedding(queries[row]), k=_K)

        title = f"search Redis HNSW, {number:,} x {array.shape[1]}, k={_K}"
        try:
            yield (
                Row(
                    title,
                    [
                        Contender("raw", lambda i: raw.execute_command(*asked[i]), of_raw),
                        Contender(
                            "langchain-redis",
                            lambda i: peer.similarity_search_by_vector(lists[i], k=_K),
                            of_documents,
                        ),
                        Contender(
                            "RedisIndex",
                            lambda i: index.search(Embedding(queries[i]), k=_K),
                            of_hits,
                        ),
                    ],
                    [Line("RedisIndex.search", "RedisIndex", "raw", "langchain-redis", _BOUND)],
                    inputs=_QUERIES,
                ),
                Row(
                    f"{title}, async",
                    [
                        Contender("raw", lambda i: wait(read(i)), of_raw),
                        Contender("RedisIndex", lambda i: wait(asearch(i)), of_hits),
                    ],
                    [Line("RedisIndex.asearch", "RedisIndex", "raw", None, _BOUND)],
                    inputs=_QUERIES,
                ),
            )
        finally:
            wait(araw.aclose())
            wait(index.aclose())
            raw.close()
            peer.config.redis().close()
