"""256 embeddings of 1024 dimensions, all of them in the cache."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path

import numpy as np
from langchain_classic.embeddings.cache import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.stores import InMemoryByteStore

from benchmarks.data import DIMENSION, KnownLists, passages, vectors
from benchmarks.harness import Bound, Contender, Line, Row
from ragopt import CachedEmbedder, MemoryStore, SqliteStore
from ragopt.langchain import CachedEmbeddings
from ragopt.types import Dense

_NUMBER = 256


@contextmanager
def rows(folder: Path) -> Iterator[Sequence[Row]]:
    """Fill every cache; yield one row in memory and one with files."""
    texts = passages(_NUMBER)
    model = KnownLists(texts, vectors(_NUMBER))
    expected = model.embed_documents(texts)

    blobs = {text: np.array(row, "f4").tobytes() for text, row in zip(texts, expected, strict=True)}
    raw_file = sqlite3.connect(folder / "raw.db")
    raw_file.execute("CREATE TABLE entry (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
    raw_file.executemany(
        "INSERT INTO entry VALUES (?, ?)", [(_digest(text), blob) for text, blob in blobs.items()]
    )
    raw_file.commit()
    select = f"SELECT key, value FROM entry WHERE key IN ({','.join('?' * _NUMBER)})"

    def read_memory(_: int) -> Dense:
        return _array([blobs[text] for text in texts])

    def read_file(_: int) -> Dense:
        keys = [_digest(text) for text in texts]
        found = dict(raw_file.execute(select, keys).fetchall())
        return _array([found[key] for key in keys])

    peer_memory = CacheBackedEmbeddings.from_bytes_store(
        model, InMemoryByteStore(), namespace="benchmark", key_encoder="blake2b"
    )
    peer_files = CacheBackedEmbeddings.from_bytes_store(
        model, LocalFileStore(folder / "peer"), namespace="benchmark", key_encoder="blake2b"
    )
    memory, sqlite = MemoryStore(), SqliteStore(folder / "ours.db")
    ours_memory, ours_sqlite = CachedEmbeddings(model, memory), CachedEmbeddings(model, sqlite)
    array_memory, array_sqlite = ours_memory.embedder, ours_sqlite.embedder
    assert isinstance(array_memory, CachedEmbedder)
    for cached in (peer_memory, peer_files, ours_memory, ours_sqlite):
        if cached.embed_documents(texts) != expected:
            raise AssertionError(f"{cached} changed the vectors.")

    try:
        yield (
            Row(
                f"{_NUMBER} embeddings, all hits, in memory",
                [
                    Contender("dict of bytes to array", read_memory, _listed),
                    Contender("dict of bytes to lists", lambda _: read_memory(0).tolist(), list),
                    Contender(
                        "CacheBackedEmbeddings, InMemoryByteStore",
                        lambda _: peer_memory.embed_documents(texts),
                        list,
                    ),
                    Contender("array", lambda _: array_memory.embed(texts).dense, _listed),
                    Contender("lists", lambda _: ours_memory.embed_documents(texts), list),
                ],
                [
                    Line(
                        "CachedEmbeddings, lists",
                        ours="lists",
                        raw="dict of bytes to lists",
                        peer="CacheBackedEmbeddings, InMemoryByteStore",
                        bound=Bound(peer=0.06),
                    ),
                    Line(
                        "CachedEmbedder, one array",
                        ours="array",
                        raw="dict of bytes to array",
                        peer="CacheBackedEmbeddings, InMemoryByteStore",
                        bound=Bound(peer=0.005),
                    ),
                ],
            ),
            Row(
                f"{_NUMBER} embeddings, all hits, on disk",
                [
                    Contender("SELECT to array", read_file, _listed),
                    Contender("SELECT to lists", lambda _: read_file(0).tolist(), list),
                    Contender(
                        "CacheBackedEmbeddings, LocalFileStore",
                        lambda _: peer_files.embed_documents(texts),
                        list,
                    ),
                    Contender("array", lambda _: array_sqlite.embed(texts).dense, _listed),
                    Contender("lists", lambda _: ours_sqlite.embed_documents(texts), list),
                ],
                [
                    Line(
                        "CachedEmbeddings, lists",
                        ours="lists",
                        raw="SELECT to lists",
                        peer="CacheBackedEmbeddings, LocalFileStore",
                    ),
                    Line(
                        "CachedEmbedder, one array",
                        ours="array",
                        raw="SELECT to array",
                        peer="CacheBackedEmbeddings, LocalFileStore",
                    ),
                ],
            ),
        )
    finally:
        raw_file.close()
        sqlite.close()


def _digest(text: str) -> bytes:
    return sha1(text.encode(), usedforsecurity=False).digest()


def _array(blobs: list[bytes]) -> Dense:
    return np.frombuffer(bytearray().join(blobs), np.float32).reshape(len(blobs), DIMENSION)


def _listed(array: Dense) -> list[list[float]]:
    lists: list[list[float]] = array.tolist()
    return lists
