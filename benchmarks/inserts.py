"""A million values into a bounded memory store: the memory of the process, and the throughput.

``python -m benchmarks.inserts [NUMBER]`` prints the figures of one run as JSON. It has to be a
process of its own: what another benchmark left behind would be counted too.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from benchmarks.report import Table

BOUND = 64 * 2**20

_INSERTS = 1_000_000
_LENGTHS = (512, 1536)  # bytes of a value: a kilobyte, more or less
_PARTS = 10


def fill(inserts: int, bound: int = BOUND) -> dict[str, float]:
    """Set ``inserts`` values of about 1 KB, one at a time, with one look-up for every four.

    Returns:
        ``memory``: the most that the process grew by, as a part of the bound, by its resident
        memory and so by no bookkeeping of ours. ``tenth 1`` to ``tenth 10``: sets in a second,
        look-ups and the making of values left out.
    """
    import psutil

    from ragopt import MemoryStore

    resident = psutil.Process().memory_info
    draw = random.Random(1)
    store = MemoryStore(max_bytes=bound)
    store.get_many([b"loads what a look-up needs"])
    before, peak = resident().rss, 0
    seconds = [0.0] * _PARTS
    for number in range(inserts):
        items = {number.to_bytes(32, "big"): draw.randbytes(draw.randrange(*_LENGTHS))}
        start = perf_counter()
        store.set_many(items, ttl=3600)
        seconds[number * _PARTS // inserts] += perf_counter() - start
        if number % 4 == 0:
            store.get_many([draw.randrange(number + 1).to_bytes(32, "big")])
        if number % 500 == 0:
            peak = max(peak, resident().rss)
    return {
        "memory": (peak - before) / bound,
        "entries": store.count(),
        "evictions": store.evictions,
        **{f"tenth {i}": inserts / _PARTS / spent for i, spent in enumerate(seconds, 1)},
    }


def fill_apart(inserts: int) -> dict[str, float]:
    """Do it in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(inserts)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def tables(_folder: Path) -> Iterator[Table]:
    """Fill a store of 64 MiB with a million values."""
    got = fill_apart(_INSERTS)
    tenths = [f"tenth {i}" for i in (1, 2, 5, _PARTS)]
    yield Table(
        f"{_INSERTS:,} inserts of about 1 KB into MemoryStore(max_bytes=64 MiB), sets a second",
        ("memory / bound", "entries kept", *tenths, "last / second tenth"),
        [
            (
                got["memory"],
                round(got["entries"]),
                *(round(got[tenth]) for tenth in tenths),
                got[tenths[-1]] / got[tenths[1]],
            )
        ],
        (
            "Memory is the growth of the process's resident memory at its most.",
            "The store is full before the first tenth ends; from then on every set evicts.",
        ),
    )


if __name__ == "__main__":
    print(json.dumps(fill(int(sys.argv[1]) if len(sys.argv) > 1 else _INSERTS)))
