"""Progress while texts are embedded, and streams in both colours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints import small

from ragopt import BGEM3Embedder
from ragopt.embedders._torch import TorchEngine
from ragopt.errors import InvalidInput
from ragopt.types import EmbeddingBatch

TEXTS = [f"text number {number}" for number in range(20)]
FIVES = [(done, 20) for done in (4, 8, 12, 16, 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("m3"), layers=1, hidden=16, heads=2)


@pytest.fixture
def embedder(folder: Path) -> BGEM3Embedder:
    return BGEM3Embedder(folder, device="cpu", batch_size=4)


class Enough(Exception):
    """What a caller's own function raises."""


class Told:
    """Keeps what it is told, and raises when it was told so often."""

    def __init__(self, most: int = 10**6) -> None:
        self.calls: list[tuple[int, int | None]] = []
        self.error = Enough("that is enough")
        self._most = most

    def __call__(self, done: int, total: int | None) -> None:
        self.calls.append((done, total))
        if len(self.calls) >= self._most:
            raise self.error


async def each(texts: list[str]) -> AsyncIterator[str]:
    for text in texts:
        await asyncio.sleep(0)
        yield text


# Every way to embed, as one that returns the vectors.


def embed(model: BGEM3Embedder, texts: list[str], progress: Any) -> Any:
    return model.embed(texts, progress=progress).dense


def aembed(model: BGEM3Embedder, texts: list[str], progress: Any) -> Any:
    return asyncio.run(model.aembed(texts, progress=progress)).dense


def stream(model: BGEM3Embedder, texts: list[str], progress: Any) -> Any:
    return np.concatenate([b.dense for _, b in model.stream(texts, window=8, progress=progress)])


def astream(model: BGEM3Embedder, texts: list[str], progress: Any) -> Any:
    async def collect() -> list[Any]:
        parts = model.astream(texts, window=8, progress=progress)
        return [batch.dense async for _, batch in parts]

    return np.concatenate(asyncio.run(collect()))


WAYS = (embed, aembed, stream, astream)
Way = Callable[[BGEM3Embedder, list[str], Any], Any]


# -- what is told ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_texts_are_counted_as_passes_end(way: Way, embedder: BGEM3Embedder) -> None:
    told = Told()
    vectors = way(embedder, TEXTS, told)
    assert told.calls == FIVES
    np.testing.assert_allclose(vectors, embed(embedder, TEXTS, False), atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_text_counts_as_often_as_it_is_there(way: Way, embedder: BGEM3Embedder) -> None:
    told = Told()
    way(embedder, ["a", *["b"] * 6, "a", "c", "b"], told)
    assert [done for done, _ in told.calls][-1] == 10
    assert {total for _, total in told.calls} == {10}


def test_a_text_in_pieces_counts_with_its_last_one(folder: Path) -> None:
    model = BGEM3Embedder(folder, device="cpu", batch_size=2, max_length=8, long_text="split")
    texts = ["one two three. " * 20, "short", "four five six. " * 10]
    pieces = model.embed(texts).dense
    told = Told()
    np.testing.assert_array_equal(model.embed(texts, progress=told).dense, pieces)
    counts = [done for done, _ in told.calls]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 3)
    assert len(counts) > 3


def test_many_texts(folder: Path) -> None:
    model = BGEM3Embedder(folder, device="cpu", batch_size=100)
    texts = [f"{number % 2_500}" for number in range(3_000)]
    told = Told()
    model.embed(texts, progress=told)
    counts = [done for done, _ in told.calls]
    assert counts == sorted(counts)
    assert counts[-1] == 3_000
    assert len(counts) > 3_000 // 1_024, "not only at the end of a window"


def test_batches_that_were_halved(embedder: BGEM3Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TorchEngine.encode

    def encode(self: TorchEngine, texts: Any, outputs: Any, /) -> EmbeddingBatch:
        if len(texts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, texts, outputs)

    monkeypatch.setattr(TorchEngine, "encode", encode)
    told = Told()
    embedder.embed(TEXTS, progress=told)
    counts = [done for done, _ in told.calls]
    assert counts == sorted(set(counts))
    assert counts[-1] == 20


def test_no_texts_are_not_told(embedder: BGEM3Embedder) -> None:
    told = Told()
    assert len(embedder.embed([], progress=told)) == 0
    assert list(embedder.stream([], progress=told)) == []
    assert told.calls == []


def test_texts_without_a_length(embedder: BGEM3Embedder) -> None:
    told = Told()
    list(embedder.stream(iter(TEXTS), window=10, progress=told))
    assert told.calls == [(done, None) for done in (4, 8, 10, 14, 18, 20)]


def test_many_threads_each_hear_of_their_own(embedder: BGEM3Embedder) -> None:
    told = [Told() for _ in range(16)]
    threads = [
        threading.Thread(target=embedder.embed, args=(TEXTS,), kwargs={"progress": each})
        for each in told
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [each.calls for each in told] == [FIVES] * 16


@pytest.mark.parametrize("way", WAYS)
def test_a_bar(way: Way, embedder: BGEM3Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    embedder.load()  # transformers draws a bar of its own meanwhile
    capsys.readouterr()
    way(embedder, TEXTS, False)
    assert capsys.readouterr().err == ""
    way(embedder, TEXTS, True)
    said = capsys.readouterr().err
    assert "20/20" in said
    assert embedder.model in said


# -- what the caller's function raises -------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_an_error_is_the_callers_as_it_is(way: Way, embedder: BGEM3Embedder) -> None:
    told = Told(most=3)
    with pytest.raises(Enough, match=r"^that is enough$") as raised:
        way(embedder, TEXTS, told)
    assert raised.value is told.error
    assert raised.value.__cause__ is None
    assert not hasattr(raised.value, "__notes__"), "it is about no text"
    assert told.calls == FIVES[:3], "the work ended there"
    assert len(way(embedder, TEXTS, Told())) == 20, "and the embedder is as good as before"


def test_what_a_stream_gave_before_stays_good(embedder: BGEM3Embedder) -> None:
    parts = embedder.stream(TEXTS, window=8, progress=Told(most=3))
    first, batch = next(parts)
    with pytest.raises(Enough):
        next(parts)
    assert (first, len(batch)) == (TEXTS[:8], 8)
    with pytest.raises(StopIteration):
        next(parts)


def test_memory_that_runs_out_in_it_halves_no_batch(embedder: BGEM3Embedder) -> None:
    """Only the engine's errors are about batches."""
    told = Told(most=1)
    told.error = MemoryError("the caller's own")  # type: ignore[assignment]
    with pytest.raises(MemoryError, match="the caller's own"):
        embedder.embed(TEXTS, progress=told)
    assert embedder.stats.out_of_memory == 0


async def test_a_task_that_was_cancelled_hears_no_more(embedder: BGEM3Embedder) -> None:
    embedder.load()
    calls: list[int] = []
    began, go_on = threading.Event(), threading.Event()

    def progress(done: int, _: int | None) -> None:
        calls.append(done)
        began.set()
        go_on.wait(20)

    task = asyncio.create_task(embedder.aembed(TEXTS, progress=progress))
    assert await asyncio.to_thread(began.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = embedder.stats.passes
    go_on.set()
    while embedder.stats.passes < before + 4:  # the thread cannot be broken off
        await asyncio.sleep(0.01)
    assert calls == [4]


# -- streams ---------------------------------------------------------------------------------


async def test_an_async_stream_is_what_a_stream_is(embedder: BGEM3Embedder) -> None:
    expected = list(embedder.stream(TEXTS, window=8))
    for texts in (TEXTS, iter(TEXTS), each(TEXTS)):
        found = [part async for part in embedder.astream(texts, window=8)]
        assert [part for part, _ in found] == [TEXTS[:8], TEXTS[8:16], TEXTS[16:]]
        for (_, one), (_, other) in zip(found, expected, strict=True):
            assert one.dense is not None
            np.testing.assert_array_equal(one.dense, other.dense)


async def test_texts_are_read_as_they_are_needed(embedder: BGEM3Embedder) -> None:
    read: list[str] = []

    async def texts() -> AsyncIterator[str]:
        for text in TEXTS:
            read.append(text)
            yield text

    parts = embedder.astream(texts(), window=6)
    assert read == []
    for count in (6, 12):
        await anext(parts)
        assert len(read) == count
    await parts.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(parts)
    assert len(read) == 12


def test_a_stream_that_is_left_early_lets_go(embedder: BGEM3Embedder) -> None:
    closed: list[bool] = []

    def texts() -> Generator[str, None, None]:
        try:
            yield from TEXTS
        finally:
            closed.append(True)

    source = texts()
    parts = embedder.stream(source, window=6)
    next(parts)
    parts.close()
    assert closed == [], "the texts are the caller's"
    assert next(source) == TEXTS[6]
    source.close()


async def test_a_stream_in_a_running_loop(embedder: BGEM3Embedder) -> None:
    assert [len(part) for part, _ in embedder.stream(TEXTS, window=15)] == [15, 5]


async def test_what_a_stream_refuses(embedder: BGEM3Embedder) -> None:
    for wrong, options in (
        (TEXTS, {"window": 0}),
        ("one text", {}),
        (["a", 1], {}),
        (TEXTS, {"role": "nonsense"}),
        (TEXTS, {"outputs": ["nonsense"]}),
    ):
        arguments: dict[str, Any] = {"texts": wrong, **options}
        with pytest.raises(InvalidInput):
            next(embedder.stream(**arguments))
        with pytest.raises(InvalidInput):
            await anext(embedder.astream(**arguments))
