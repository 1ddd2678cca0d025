"""A process that asks for one answer many times at once, for the tests of who computes it.

``python -m tests.faults.computing WHERE LOG SECONDS THREADS TASKS`` waits for a line on its
standard input, then asks; each computation appends a line to the log when it begins. It prints
how many got the answer, and in how many seconds.
"""

import asyncio
import json
import os
import sys
import threading
import time

from ragopt import MemoryStore, RedisStore, SqliteStore, TieredCache, ValueCache
from ragopt.stores.coordinating import CoordinatingStore

_TIMEOUT = 10.0  # seconds: a store that a busy machine makes slow is no fault that is meant here


def shared(where: str) -> CoordinatingStore:
    kind = RedisStore if where.startswith("redis://") else SqliteStore
    return kind(where, timeout=_TIMEOUT)


def main(where: str, log: str, seconds: float, threads: int, tasks: int) -> None:
    cache = ValueCache("answer", TieredCache(MemoryStore(), shared(where)), ttl=60)
    answers: list[str] = []

    def begin() -> None:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")

    def compute() -> str:
        begin()
        time.sleep(seconds)
        return "the answer"

    async def acompute() -> str:
        begin()
        await asyncio.sleep(seconds)
        return "the answer"

    async def ask_in_tasks() -> None:
        answers.extend(
            await asyncio.gather(*(cache.aget_or_compute(log, acompute) for _ in range(tasks)))
        )

    askers = [
        threading.Thread(target=lambda: answers.append(cache.get_or_compute(log, compute)))
        for _ in range(threads)
    ]
    askers.append(threading.Thread(target=lambda: asyncio.run(ask_in_tasks())))
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    for each in askers:
        each.start()
    for each in askers:
        each.join()
    took = time.monotonic() - start
    print(json.dumps({"right": answers.count("the answer"), "all": len(answers), "took": took}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
