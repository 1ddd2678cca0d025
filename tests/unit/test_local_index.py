"""Indexes in this process: functions as filters, and numbers that single precision cannot hold."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from ragopt import Embedding, FaissIndex, MemoryIndex
from ragopt.errors import InvalidInput
from ragopt.filters import Where
from ragopt.indexes.local import LocalIndex
from ragopt.testing.records import batch, vectors

KINDS = [MemoryIndex, FaissIndex]
Kind = type[MemoryIndex] | type[FaissIndex]


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_may_read_what_it_filters(kind: Kind) -> None:
    """Also while somebody waits to write, who would otherwise go first."""
    index: LocalIndex = kind()
    index.add(batch(["a"], vectors(1)))
    asked, writes = threading.Event(), threading.Event()
    writer = threading.Thread(target=lambda: (asked.wait(), index.add(batch(["b"], vectors(1)))))

    def allowed(_: Mapping[str, Any]) -> bool:
        asked.set()
        while not index._lock._writers_waiting:
            writes.wait(0.001)
        return index.get(["a"]) != [None]

    writer.start()
    hits = index.search(Embedding(vectors(1)[0]), where=Where(allowed))
    writer.join(10)
    assert not writer.is_alive()
    assert [hit.id for hit in hits] == ["a"]
    assert index.count() == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_cannot_change_what_it_filters(kind: Kind) -> None:
    index: LocalIndex = kind()
    index.add(batch(["a"], vectors(1), [{"n": 1}]))

    def sets(metadata: Any) -> bool:
        metadata["n"] = 2
        return True

    def clears(_: Any) -> bool:
        return index.delete(Where(lambda _: True)) > 0

    assert index.search(Embedding(vectors(1)[0]), where=Where(sets))[0].metadata == {"n": 1}
    with pytest.raises(InvalidInput, match="tried to change the index"):
        index.count(Where(clears))
    assert index.count() == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_the_length_of_a_vector_is_no_part_of_its_cosine(kind: Kind, scale: float) -> None:
    matrix, query = vectors(50), vectors(1, seed=1)[0]
    plain, scaled, both = (kind() for _ in range(3))
    ids = [f"r{row}" for row in range(50)]
    plain.add(batch(ids, matrix))
    for index in (scaled, both):
        index.add(batch(ids, np.float32(scale) * matrix))
    expected = plain.search(Embedding(query))
    for index, asked in ((scaled, query), (both, np.float32(scale) * query)):
        hits = index.search(Embedding(asked))
        assert [hit.id for hit in hits] == [hit.id for hit in expected]
        assert [h.score for h in hits] == pytest.approx([h.score for h in expected], abs=1e-6)


def test_an_instant_that_utc_has_not_is_counted() -> None:
    index, tokyo = MemoryIndex(), timezone(timedelta(hours=9))
    first = datetime(1, 1, 1, tzinfo=tokyo)
    index.add(batch(["a", "b"], vectors(2), [{"at": first}, {"at": [first, first]}]))
    assert index.counts("at") == [(first, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_is_found_once_however_far_it_is(kind: Kind) -> None:
    points = np.array([[1, 0], [0, 1], [1e20, 0], [0, -1e20], [2, 2]], np.float32)
    index = kind(metric="l2")
    index.add(batch(list("abcde"), points))
    hits = index.search(Embedding(points[0]), k=5)
    assert [hit.id for hit in hits] == ["a", "b", "e", "c", "d"]
    assert [hit.score for hit in hits[3:]] == [-np.inf] * 2
    among = index.search(Embedding(points[0]), k=5, where=Where(lambda m: True))
    assert [hit.id for hit in among] == ["a", "b", "e", "c", "d"]
    assert [hit.id for hit in index.search(Embedding(-points[2]), k=5)] == list("abcde")
