"""Workers that ask while documents are edited, for the tests of lineage.

Texts are numbers in memory that all processes share: the version of each document. An editor
changes a document, tells the lineage, and only then writes down that the edit has returned.
"""

import random
import threading
import time
from typing import Any

from ragopt import Lineage, MemoryStore, TieredCache, ValueCache
from ragopt.sources import used
from tests.faults.computing import shared

DOCUMENTS = 1_000
QUESTIONS = 300


def sources(question: int) -> list[int]:
    """Return the documents that answer a question: always the same three."""
    return random.Random(question).sample(range(DOCUMENTS), 3)


def answers(where: str, max_staleness: float, namespace: str) -> ValueCache:
    cache = TieredCache(MemoryStore(), shared(where))
    lineage = Lineage(cache, namespace=namespace, max_staleness=max_staleness)
    return ValueCache("answer", cache, ttl=600, lineage=lineage, namespace=namespace)


def work(
    where: str,
    max_staleness: float,
    namespace: str,
    texts: Any,
    returned: Any,
    begun: Any,
    stop: Any,
    found: Any,
) -> None:
    """Ask with two threads until told to stop; report asks, hits and how late old answers were."""
    cache = answers(where, max_staleness, namespace)
    asks: list[int] = []
    late: list[float] = []

    def ask() -> None:
        picked = random.Random()
        while not stop.is_set():
            question = min(int(picked.paretovariate(0.8)), QUESTIONS) - 1
            documents = sources(question)

            def compute(documents: list[int] = documents) -> list[int]:
                used(map(str, documents))
                return [texts[each] for each in documents]

            # What every answer from now on must be built on at least, and since when.
            known = [(returned[2 * each], returned[2 * each + 1]) for each in documents]
            begun = time.monotonic()
            answer = cache.get_or_compute(question, compute)
            asks.append(question)
            for version, (least, since) in zip(answer, known, strict=True):
                if version < least:
                    late.append(begun - since)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    begun.wait(60)
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    stats = cache.cache.stats
    found.put(
        {
            "asks": len(asks),
            "hits": stats.total("answer", "hit"),
            "dead": stats.total("answer", "dead"),
            "old": len(late),
            "latest": max(late, default=0.0),
        }
    )


def edit(cache: ValueCache, tell: bool, texts: Any, returned: Any, document: int) -> None:
    """Change one document; write down that it is changed when every process must know."""
    texts[document] += 1
    if tell:
        assert cache.lineage is not None
        cache.lineage.changed(str(document))
    returned[2 * document + 1] = time.monotonic()
    returned[2 * document] = texts[document]
