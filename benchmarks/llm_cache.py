"""An answer of 2 KB that is already in the cache: the exact hit of a language model's cache."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain_community.cache import SQLiteCache
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation

from benchmarks.data import passages
from benchmarks.harness import Bound, Contender, Line, Row
from ragopt import MemoryStore, SqliteStore
from ragopt.langchain import LLMCache

ENTRIES = 200
# 60 µs on a machine where the peer takes 402.
_BOUND = Bound(peer=0.15)
MODEL = json.dumps({"model": "benchmark-large", "temperature": 0.0, "max_tokens": 512})


@contextmanager
def rows(folder: Path) -> Iterator[Sequence[Row]]:
    """Fill every cache with the same answers; yield one row."""
    asked = [json.dumps([{"type": "human", "content": text}]) for text in passages(ENTRIES, 150)]
    answers = [answer(i, text) for i, text in enumerate(passages(ENTRIES, 300))]

    raw = sqlite3.connect(folder / "raw.db", isolation_level=None)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("CREATE TABLE entry (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
    raw.executemany(
        "INSERT INTO entry VALUES (?, ?)",
        [(key, dumps(each[0]).encode()) for key, each in zip(asked, answers, strict=True)],
    )
    sqlite = SqliteStore(folder / "ours.db")
    peer = SQLiteCache(str(folder / "peer.db"))
    on_disk, in_memory = LLMCache(sqlite, ttl=None), LLMCache(MemoryStore(), ttl=None)
    for key, each in zip(asked, answers, strict=True):
        for cache in (peer, on_disk, in_memory):
            cache.update(key, MODEL, each)

    def read_raw(number: int) -> list[tuple[bytes]]:
        return raw.execute("SELECT value FROM entry WHERE key = ?", (asked[number],)).fetchall()

    def of_raw(found: list[tuple[bytes]]) -> list[Generation]:
        return [loads(value.decode(), allowed_objects="core") for (value,) in found]

    def hit(name: str, cache: Any) -> Contender:
        return Contender(name, lambda number: cache.lookup(asked[number], MODEL), list)

    try:
        yield (
            Row(
                "exact LLM cache hit, 2 KB",
                [
                    Contender("sqlite3 SELECT", read_raw, of_raw),
                    hit("SQLiteCache", peer),
                    hit("disk", on_disk),
                    hit("memory", in_memory),
                ],
                [
                    Line("on disk", "disk", "sqlite3 SELECT", "SQLiteCache", _BOUND),
                    Line("in memory", "memory", "sqlite3 SELECT", "SQLiteCache"),
                ],
                inputs=ENTRIES,
            ),
        )
    finally:
        raw.close()
        sqlite.close()
        peer.engine.dispose()


def answer(number: int, text: str) -> list[Generation]:
    """An answer as a provider's chat model returns it."""
    message = AIMessage(
        content=text[:2048],
        id=f"run-{number:08d}",
        response_metadata={
            "model_name": "benchmark-large",
            "finish_reason": "stop",
            "system_fingerprint": "fp_benchmark",
            "logprobs": None,
        },
        usage_metadata={"input_tokens": 250, "output_tokens": 410, "total_tokens": 660},
    )
    return [ChatGeneration(message=message, generation_info={"finish_reason": "stop"})]
