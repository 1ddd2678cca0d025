"""Concurrent questions to a real model, gathered by a ``BatchingEmbedder``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from tests.checkpoints import sentences

from benchmarks.report import Table
from ragopt import BatchingEmbedder, TransformersEmbedder

_QUESTIONS, _ROUNDS, _LONE = 100, 21, 300


def tables(_: Path) -> Iterator[Table]:
    """Yield a table of 100 questions at the same time and one of a lone question."""
    torch.set_num_threads(os.cpu_count() or 1)
    model = TransformersEmbedder.minilm(device="cpu")
    gathered = BatchingEmbedder(model)
    asked = list(sentences(_QUESTIONS, seed=5))
    model.load()

    def batch() -> None:
        model.embed(asked, role="query")

    def tasks() -> None:
        async def ask() -> None:
            await asyncio.gather(*(gathered.aembed([text], role="query") for text in asked))

        asyncio.run(ask())

    with ThreadPoolExecutor(_QUESTIONS) as pool:

        def threads() -> None:
            list(pool.map(lambda text: gathered.embed([text], role="query"), asked))

        def one_by_one() -> None:
            list(pool.map(lambda text: model.embed([text], role="query"), asked))

        ways = {
            "one batch of 100": batch,
            "100 tasks, gathered": tasks,
            "100 threads, gathered": threads,
            "100 threads, each its own pass": one_by_one,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(_ROUNDS + 1):
            for name, way in ways.items():
                start = perf_counter()
                way()
                if number:
                    times[name].append(perf_counter() - start)
    whole = median(times["one batch of 100"])
    yield Table(
        f"{_QUESTIONS} questions at the same time to all-MiniLM-L6-v2, {_ROUNDS} rounds in turns",
        ("", "median ms", "best ms", "/ one batch"),
        [
            (name, 1e3 * median(found), 1e3 * min(found), median(found) / whole)
            for name, found in times.items()
        ],
    )

    lone: dict[str, list[float]] = {"the model": [], "gathered": []}
    for number in range(_LONE):
        text = [asked[number % _QUESTIONS]]
        for name, embedder in (("the model", model), ("gathered", gathered)):
            start = perf_counter()
            embedder.embed(text, role="query")
            lone[name].append(perf_counter() - start)
    direct = median(lone["the model"])
    yield Table(
        f"One question at a time, {_LONE} of them in turns",
        ("asked", "p50 ms", "more than the model's p50, ms"),
        [
            (name, 1e3 * median(found), 1e3 * (median(found) - direct))
            for name, found in lone.items()
        ],
    )
