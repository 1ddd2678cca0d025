"""Run the benchmarks: ``python -m benchmarks [row ...] [--json FILE] [--repeat N]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.harness import Result, measure, results, table
from benchmarks.report import Table

_ROWS = {
    "embeddings": "256 cached embeddings of 1024 dimensions, in memory and on disk",
    "faiss-add": "adding 20,000 vectors to a flat FAISS index",
    "faiss-search": "searching it, k=10",
    "llm-cache": "an exact answer of 2 KB from the cache, on disk and in memory",
    "llm-redis": "the same out of Redis",
    "redis-search": "searching 5,000 vectors in an HNSW index on Redis, k=10",
    "postgres": "adding 2,000 records to PostgreSQL, and searching 5,000 with HNSW",
}
_LONG_ROWS = {
    "bge-m3": "BGE-M3 at full size on a CPU: 64 texts, in each engine",
    "bge-m3-question": "the same model: one question",
    "postgres-hybrid": "a hybrid search in PostgreSQL, against all of it in one statement",
}
_REPORTS = {
    "int8": "what int8 changes in the vectors of a real model, and what it brings",
    "batching": "concurrent questions to a real model, one by one and gathered",
    "faiss-auto": "one question to 50,000 x 1,024 in FAISS: what auto saves and misses",
    "faiss-open": "a saved FAISS index of 100,000 x 384, read and mapped into memory",
    "scale": "100,000 vectors of a real model in FAISS, PostgreSQL and Redis, and what is found",
    "postgres-kinds": "the same vectors in PostgreSQL behind each kind of index",
    "redis-sparse": "sparse vectors and texts in Redis: memory, and searches of 100,000 records",
    "redis-cluster": "the same exact search on one Redis server and on a cluster of three",
    "event-loop": "200 searches at once on one event loop, and how long they keep it",
    "text": "search by words: what it finds in public collections, and how fast",
    "zipf": "a Zipf stream of questions through ragopt's caches",
    "policies": "what a full memory store keeps, against other policies",
    "inserts": "memory and throughput over a million inserts",
    "faults": "a Redis server that is killed, hangs, is full... under a load",
}
_PACKAGES = (
    "ragopt",
    "numpy",
    "asyncpg",
    "faiss-cpu",
    "FlagEmbedding",
    "onnxruntime",
    "torch",
    "transformers",
    "langchain-core",
    "langchain-classic",
    "langchain-community",
    "langchain-redis",
    "redisvl",
    "redis",
    "llama-index-core",
    "llama-index-vector-stores-faiss",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows that were asked for and print one table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare ragopt with the raw drivers and with other packages, in turns.",
        epilog=f"rows: {_listed(_ROWS)}. Rows that take many minutes and run only if they are "
        f"named: {_listed(_LONG_ROWS)}. Reports, which run only if they are named and have a "
        f"table of their own: {_listed(_REPORTS)}.",
    )
    parser.add_argument("rows", nargs="*", metavar="row", help="all rows if none is named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round to a file")
    parser.add_argument("--repeat", type=int, default=21, metavar="N", help="rounds (21)")
    options = parser.parse_args(arguments)
    unknown = set(options.rows) - {*_ROWS, *_LONG_ROWS, *_REPORTS}
    if unknown or options.repeat < 1:
        names = ", ".join([*_ROWS, *_LONG_ROWS, *_REPORTS])
        parser.error(f"choose rows from {names}, and one round or more")

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before FAISS: one thread is steadier
    environment = _environment()
    measured: list[Result] = []
    tables: list[Table] = []
    for name in options.rows or _ROWS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            module = import_module(f"benchmarks.{name.replace('-', '_')}")
        except ModuleNotFoundError as error:
            print(f"{error.name} is not installed; run `make bench`.", file=sys.stderr)
            return 2
        warnings.simplefilter("ignore")  # the peers' own, about what they deprecate
        with tempfile.TemporaryDirectory() as folder:
            if name in _REPORTS:
                tables += module.tables(Path(folder))
                continue
            with module.rows(Path(folder)) as rows:
                for row in rows:
                    measured += results(row, measure(row, options.repeat))

    after = _load()
    before = environment["load_before"]
    print(f"{environment['machine']}, load {before} before and {after} after")
    if measured:
        print(f"{options.repeat} rounds; a time is the median round (and the best)\n")
        print(table(measured))
    for each in tables:
        print(f"\n{each}")
    if options.json:
        report = {
            "environment": environment,
            "load_after": after,
            "rounds": options.repeat,
            "lines": [each.as_json() for each in measured],
            "tables": [each.as_json() for each in tables],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _listed(names: dict[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in names.items())


def _environment() -> dict[str, object]:
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "machine": f"Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} CPUs",
        "packages": packages,
        "load_before": _load(),
    }


def _load() -> float:
    return round(os.getloadavg()[0], 2)


if __name__ == "__main__":
    sys.exit(main())
