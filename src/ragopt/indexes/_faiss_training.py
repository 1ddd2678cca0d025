"""What an index learns from the records: its codes or lists, and how hard it has to search."""

from __future__ import annotations

from typing import Any

import numpy as np

from ragopt.indexes._faiss_engine import Engine
from ragopt.indexes._faiss_kinds import Settings, knobs
from ragopt.indexes._table import Rows

_SAMPLE = 10_240  # 40 vectors for each centroid of eight bits, 640 for each of four
_FOR_EACH_LIST = 64
_QUERIES = 128
_K = 10


def training_rows(index: Any, rows: Rows) -> Rows:
    """Return the rows that an untrained index is trained on, of those there are."""
    lists = max((knob.most for knob in knobs(index) if knob.name == "nprobe"), default=0)
    return _some(rows, max(_SAMPLE, _FOR_EACH_LIST * lists))


def tune(engine: Engine, settings: Settings, source: Engine, rows: Rows) -> None:
    """Turn the knobs that were not set as low as the recall allows.

    The queries are records, whose neighbours other than themselves are looked for. Real
    questions lie farther off, so half of the misses that are allowed are left to them. Where
    even the most work does not find that many, as with short codes, the goal is what it finds.

    Args:
        engine: What to tune.
        settings: The recall, and the knobs which were set.
        source: The same vectors, exact.
        rows: The rows of records.
    """
    free = [knob for knob in knobs(engine.index) if getattr(settings, knob.name) is None]
    k = min(_K + 1, len(rows))
    if not free:
        return
    own = _some(rows, _QUERIES)
    queries = source.vectors(own)
    truth = _others(own, source.exactly(queries, k, None)[1])

    def found() -> float:
        return _share(_others(own, engine.nearest(queries, k, None)[1]), truth)

    for knob in free:
        knob.set(knob.most)
    goal = min(1 - (1 - settings.recall) / 2, found())
    for knob in free:
        for value in knob.values():
            knob.set(value)
            if found() >= goal:
                break


def _some(rows: Rows, most: int) -> Rows:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _others(own: Rows, found: Rows) -> list[set[int]]:
    return [set(places) - {row} for row, places in zip(own.tolist(), found.tolist(), strict=True)]


def _share(found: list[set[int]], truth: list[set[int]]) -> float:
    common = sum(len(a & b) for a, b in zip(found, truth, strict=True))
    return common / max(1, sum(map(len, truth)))
