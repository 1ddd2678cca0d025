import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from ragopt import CachedEmbedder, EmbeddingBatch, HashingEmbedder
from ragopt._runtime import Runtime
from ragopt.embedders import batching
from ragopt.embedders.base import BaseEmbedder
from ragopt.embedders.batching import BatchingEmbedder
from ragopt.errors import BackendUnavailable, InvalidInput
from ragopt.testing import EmbedderContract
from ragopt.types import OUTPUTS, EmbedderSpec, Output, Role

PLAIN = HashingEmbedder(8)


class TestContract(EmbedderContract):
    def make_embedder(self) -> BatchingEmbedder:
        return BatchingEmbedder(HashingEmbedder(64))


class TestContractWhereCallsPassThrough(EmbedderContract):
    def make_embedder(self) -> BatchingEmbedder:
        return BatchingEmbedder(HashingEmbedder(64), max_batch=3, max_queue=3)


class Gated(BaseEmbedder):
    """A model that remembers its batches, and holds each of them until it is let go.

    A text with "bad" in it makes its batch fail, one with "down" as if the server were down.
    """

    def __init__(self, *, open: bool = False, seconds: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.asked: list[tuple[Role, frozenset[Output]]] = []
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.seconds = seconds
        self.most_at_once = self._at_once = 0
        if open:
            self.go.set()

    @property
    def spec(self) -> EmbedderSpec:
        return PLAIN.spec

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        return await io.cpu(self._compute, texts, role, outputs)

    def _compute(self, texts: list[str], role: Role, outputs: frozenset[Output]) -> EmbeddingBatch:
        self.batches.append(texts)
        self.asked.append((role, outputs))
        self.threads.add(threading.get_ident())
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        assert self.go.wait(30)
        time.sleep(self.seconds)
        self._at_once -= 1
        for text in texts:
            if "down" in text:
                raise ConnectionError("no route to the model")
            if "bad" in text:
                raise ValueError(f"cannot read {text}")
        return PLAIN.embed(texts, role=role, outputs=outputs)

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


@pytest.fixture
def gated() -> Iterator[Gated]:
    model = Gated()
    yield model
    model.go.set()  # no thread is left behind by a test that failed


class Threads:
    """Starts a thread for each call. A test that hangs does not wait for them in the end."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def map(self, work: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        return [future.result(40) for future in [self.submit(work, item) for item in items]]


@pytest.fixture
def pool() -> Threads:
    return Threads()


def same(batch: EmbeddingBatch, texts: list[str]) -> bool:
    return np.array_equal(np.asarray(batch.dense), np.asarray(PLAIN.embed(texts).dense))


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


async def auntil(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def hold(embedder: BatchingEmbedder, model: Gated, pool: Threads) -> Any:
    """Let a thread compute one text, so that all that follows is queued."""
    first = pool.submit(embedder.embed, ["first"])
    until(lambda: model.batches)
    return first


# Few calls


def test_threads_share_batches(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated)
    asked = [pool.submit(embedder.embed, [f"text {i}"]) for i in range(100)]
    until(lambda: embedder.stats.queued == 99)
    gated.go.set()
    for i, future in enumerate(asked):
        assert same(future.result(20), [f"text {i}"])
    assert [len(batch) for batch in gated.batches] == [1, 64, 35]
    stats = embedder.stats
    assert (stats.calls, stats.texts, stats.batches, stats.queued) == (100, 100, 3, 0)
    assert stats.mean_batch == pytest.approx(100 / 3)


async def test_tasks_share_batches(gated: Gated) -> None:
    embedder = BatchingEmbedder(gated, max_batch=32)
    tasks = [asyncio.create_task(embedder.aembed([f"text {i}"])) for i in range(100)]
    await auntil(lambda: embedder.stats.calls == 100 and gated.batches)
    gated.go.set()
    for i, batch in enumerate(await asyncio.gather(*tasks)):
        assert same(batch, [f"text {i}"])
    assert len(gated.batches) <= 5
    assert max(len(batch) for batch in gated.batches) == 32
    assert gated.most_at_once == 1


def test_control_without_it_every_call_is_computed_alone(pool: Threads) -> None:
    model = Gated(open=True)
    pool.map(model.embed, [[f"text {i}"] for i in range(100)])
    assert len(model.batches) == 100


def test_threads_and_tasks_of_two_loops_share_batches(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated)

    async def many(name: str) -> list[EmbeddingBatch]:
        return await asyncio.gather(*(embedder.aembed([f"{name} {i}"]) for i in range(20)))

    first = hold(embedder, gated, pool)
    loops = [pool.submit(asyncio.run, many(name)) for name in ("one", "two")]
    threads = [pool.submit(embedder.embed, [f"thread {i}"]) for i in range(20)]
    until(lambda: embedder.stats.queued == 60)
    gated.go.set()
    assert same(first.result(20), ["first"])
    for name, loop in zip(("one", "two"), loops, strict=True):
        assert all(same(batch, [f"{name} {i}"]) for i, batch in enumerate(loop.result(20)))
    assert all(same(each.result(20), [f"thread {i}"]) for i, each in enumerate(threads))
    assert [len(batch) for batch in gated.batches] == [1, 60]


def test_under_load_every_caller_gets_what_is_his(pool: Threads) -> None:
    model = Gated(open=True, seconds=0.002)
    embedder = BatchingEmbedder(model, max_batch=16, max_queue=32)

    def caller(i: int) -> None:
        for j in range(20):
            texts = [f"{i} {j} {k}" for k in range(1 + (i + j) % 5)] + ["shared"]
            assert same(embedder.embed(texts), texts)

    async def acaller(i: int) -> None:
        for j in range(20):
            texts = [f"{i} {j} {k}" for k in range(1 + (i + j) % 5)] + ["shared"]
            assert same(await embedder.aembed(texts), texts)

    async def acallers(start: int) -> None:
        await asyncio.gather(*(acaller(start + i) for i in range(10)))

    work = [pool.submit(caller, i) for i in range(20)]
    work += [pool.submit(asyncio.run, acallers(start)) for start in (100, 200)]
    for each in work:
        each.result(40)
    assert embedder.stats.queued == 0
    assert embedder.stats.mean_batch > 4
    assert model.most_at_once == 1


# Alone


def test_a_lone_call_is_computed_in_its_own_thread() -> None:
    model = Gated(open=True)
    embedder = BatchingEmbedder(model, max_wait=30)
    for i in range(3):
        assert same(embedder.embed([f"text {i}"]), [f"text {i}"])
    assert model.threads == {threading.get_ident()}
    assert embedder._queue.worker is None


async def test_a_lone_task_waits_for_nobody() -> None:
    model = Gated(open=True)
    embedder = BatchingEmbedder(model, max_wait=30)
    async with asyncio.timeout(20):
        for i in range(3):
            assert same(await embedder.aembed([f"text {i}"]), [f"text {i}"])
    assert model.threads.isdisjoint({threading.get_ident()})  # the loop was not blocked


def test_control_what_comes_while_something_is_computed_does_wait(
    gated: Gated, pool: Threads
) -> None:
    embedder = BatchingEmbedder(gated, max_wait=0.5)
    first = hold(embedder, gated, pool)
    start = time.monotonic()
    second = pool.submit(embedder.embed, ["second"])
    until(lambda: embedder.stats.queued == 1)
    gated.go.set()
    first.result(20)
    second.result(20)
    assert time.monotonic() - start >= 0.5


def test_a_full_batch_does_not_wait(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated, max_wait=3000, max_batch=3)
    first = hold(embedder, gated, pool)
    others = [pool.submit(embedder.embed, [f"text {i}"]) for i in range(2)]
    until(lambda: embedder.stats.queued == 2)
    gated.go.set()
    first.result(20)
    others.append(pool.submit(embedder.embed, ["text 2"]))
    for i, each in enumerate(others):
        assert same(each.result(20), [f"text {i}"])


def test_the_thread_ends_when_there_is_nothing_to_do(
    gated: Gated, pool: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_IDLE", 0.01)
    embedder = BatchingEmbedder(gated)
    for _ in range(3):
        gated.go.clear()
        gated.batches.clear()
        first = hold(embedder, gated, pool)
        second = pool.submit(embedder.embed, ["second"])
        until(lambda: embedder.stats.queued)
        until(lambda: embedder._queue.worker is not None)
        gated.go.set()
        assert same(first.result(20), ["first"])
        assert same(second.result(20), ["second"])
        until(lambda: embedder._queue.worker is None)


# What may share a batch


def test_roles_and_outputs_are_not_mixed(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated)
    first = hold(embedder, gated, pool)
    kinds: list[tuple[Role, list[Output]]] = [
        ("query", ["dense"]),
        ("document", ["dense"]),
        ("document", ["dense", "sparse"]),
        ("document", ["sparse", "dense"]),
        ("query", ["multi"]),
    ]
    asked = [
        pool.submit(embedder.embed, ["the same text", f"text {i}"], role=role, outputs=outputs)
        for i in range(5)
        for role, outputs in kinds
    ]
    until(lambda: embedder.stats.queued == 4 + 20)
    gated.go.set()
    first.result(20)
    for i, future in enumerate(asked):
        role, outputs = kinds[i % 5]
        found = future.result(20)
        right = PLAIN.embed(["the same text", f"text {i // 5}"], role=role, outputs=outputs)
        assert [n for n in OUTPUTS if getattr(found, n) is not None] == sorted(outputs)
        assert found.dense is None or np.array_equal(found.dense, np.asarray(right.dense))
        assert list(found.sparse or []) == list(right.sparse or [])
        for mine, theirs in zip(found.multi or [], right.multi or [], strict=True):
            assert np.array_equal(mine, theirs)
    assert len(gated.batches) == 1 + 4
    assert len(set(gated.asked[1:])) == 4


@pytest.mark.parametrize("roles", [("query", "document"), ("document", "query")])
def test_who_waits_longest_is_computed_first(
    gated: Gated, pool: Threads, roles: tuple[Role, Role]
) -> None:
    embedder = BatchingEmbedder(gated, max_wait=0)
    first = hold(embedder, gated, pool)
    futures = []
    for i in range(6):
        role = roles[i > 0]  # one call, and more and more that came later
        futures.append(pool.submit(embedder.embed, [f"text {i}"], role=role))
        until(lambda: embedder.stats.queued == len(futures))
    gated.go.set()
    for future in [first, *futures]:
        future.result(20)
    assert [role for role, _ in gated.asked[1:]] == list(roles)


def test_the_same_text_is_computed_once(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated)
    first = hold(embedder, gated, pool)
    # Some of them ask for what is under way, some for what is queued, some for both.
    asked = [["first"], ["a"], ["a", "first", "a"], ["b", "a"], ["first", "c", "b"]] * 4
    futures = [pool.submit(embedder.embed, texts) for texts in asked]
    until(lambda: embedder.stats.calls == 21)
    gated.go.set()
    assert same(first.result(20), ["first"])
    for texts, future in zip(asked, futures, strict=True):
        assert same(future.result(20), texts)
    assert sorted(gated.texts) == ["a", "b", "c", "first"]


def test_the_arrays_are_the_callers_own(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated)
    first = hold(embedder, gated, pool)
    futures = [pool.submit(embedder.embed, ["a", "a"], outputs=OUTPUTS) for _ in range(3)]
    until(lambda: embedder.stats.calls == 4)
    gated.go.set()
    first.result(20)
    right = PLAIN.embed(["a", "a"], outputs=OUTPUTS)
    assert right.sparse
    assert right.multi
    for future in futures:
        found = future.result(20)
        assert found.dense is not None
        assert found.sparse
        assert found.multi
        assert np.array_equal(found.dense, np.asarray(right.dense))
        assert list(found.sparse) == list(right.sparse)
        assert np.array_equal(found.multi[0], right.multi[0])
        assert found.dense.base is None or found.dense.base.shape == found.dense.shape
        found.dense[:] = 7
        found.sparse[0].values[:] = 7
        found.multi[0][:] = 7
        assert found.sparse[1] == right.sparse[1]
        assert np.array_equal(found.multi[1], right.multi[1])


def test_a_large_call_passes_through(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated, max_batch=4)
    first = hold(embedder, gated, pool)
    queued = [pool.submit(embedder.embed, [f"text {i}"]) for i in range(8)]
    until(lambda: embedder.stats.queued == 8)
    texts = [f"large {i}" for i in range(5)]
    large = pool.submit(embedder.embed, texts)
    until(lambda: texts in gated.batches)  # at once, though a batch is under way
    assert embedder.stats.queued == 8
    gated.go.set()
    assert same(large.result(20), texts)
    assert same(first.result(20), ["first"])
    assert all(same(each.result(20), [f"text {i}"]) for i, each in enumerate(queued))
    assert embedder.stats.passed == 1
    assert embedder.stats.texts == 9


def test_it_works_below_a_cache(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated)
    cached = CachedEmbedder(embedder)
    asked = [[f"text {i % 30}", f"text {i % 7}"] for i in range(100)]
    futures = [pool.submit(cached.embed, texts) for texts in asked]
    until(lambda: len(gated.texts) + embedder.stats.queued == 30)
    gated.go.set()
    for texts, future in zip(asked, futures, strict=True):
        assert same(future.result(20), texts)
    assert len(gated.batches) < 10


# Cancellation


async def test_a_task_cancelled_in_the_queue_takes_its_texts_with_it(gated: Gated) -> None:
    embedder = BatchingEmbedder(gated)
    first = asyncio.create_task(embedder.aembed(["first"]))
    await auntil(lambda: gated.batches)
    tasks = [asyncio.create_task(embedder.aembed([f"text {i}", "common"])) for i in range(5)]
    alone = asyncio.create_task(embedder.aembed(["alone"]))
    await auntil(lambda: embedder.stats.queued == 7)
    tasks[2].cancel()
    alone.cancel()
    await auntil(lambda: embedder.stats.queued == 5)
    gated.go.set()
    done = await asyncio.gather(first, *tasks, alone, return_exceptions=True)
    assert [isinstance(each, EmbeddingBatch) for each in done] == [
        i not in (3, 6) for i in range(7)
    ]
    assert gated.texts == ["first", "text 0", "common", "text 1", "text 3", "text 4"]


@pytest.mark.parametrize("victim", range(4))
async def test_a_task_cancelled_while_its_text_is_computed(gated: Gated, victim: int) -> None:
    """The first one among them, whose call started the batch."""
    embedder = BatchingEmbedder(gated)
    tasks = [asyncio.create_task(embedder.aembed([f"text {i}", "a"])) for i in range(4)]
    await auntil(lambda: gated.batches and embedder.stats.calls == 4)
    tasks[victim].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[victim]  # at once: it does not wait for the model
    gated.go.set()
    async with asyncio.timeout(20):
        for i, task in enumerate(tasks):
            if i != victim:
                assert same(await task, [f"text {i}", "a"])
        assert same(await embedder.aembed(["after"]), ["after"])
    assert gated.texts.count("a") == 1


async def test_all_are_cancelled(gated: Gated) -> None:
    embedder = BatchingEmbedder(gated, max_batch=2, max_queue=4)
    tasks = [asyncio.create_task(embedder.aembed([f"text {i}"])) for i in range(20)]
    await auntil(lambda: gated.batches and embedder.stats.waits)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert embedder.stats.queued == 0
    gated.go.set()
    async with asyncio.timeout(20):
        assert same(await embedder.aembed(["after"]), ["after"])
    assert len(gated.texts) <= 3


def test_a_loop_that_ends_takes_nothing_with_it(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated)

    async def impatient() -> None:
        async with asyncio.timeout(0.05):
            await embedder.aembed(["a", "b"])

    loop = pool.submit(asyncio.run, impatient())
    until(lambda: gated.batches)
    other = pool.submit(embedder.embed, ["a"])
    with pytest.raises(TimeoutError):
        loop.result(20)
    gated.go.set()
    assert same(other.result(20), ["a"])
    assert gated.texts == ["a", "b"]


@pytest.mark.parametrize("shared", [True, False])
def test_a_thread_that_computes_is_interrupted(gated: Gated, pool: Threads, shared: bool) -> None:
    """Who asked for the same text, or for another one, goes on without it."""

    class Interrupted(Gated):
        def _compute(self, texts: list[str], *rest: Any) -> EmbeddingBatch:
            found = super()._compute(texts, *rest)
            if len(self.batches) == 1:
                raise KeyboardInterrupt
            return found

    model = Interrupted()
    embedder = BatchingEmbedder(model)
    first = hold(embedder, model, pool)
    texts = ["other", "first"] if shared else ["other"]
    other = pool.submit(embedder.embed, texts)
    until(lambda: embedder.stats.calls == 2)
    model.go.set()
    with pytest.raises(KeyboardInterrupt):
        first.result(20)
    assert same(other.result(20), texts)
    assert same(embedder.embed(["after"]), ["after"])


# Errors


@pytest.mark.parametrize("places", [[0], [31], [63], [0, 32, 17], [5, 6, 7, 8], range(1, 64)])
def test_only_those_whose_texts_fail_get_an_error(
    gated: Gated, pool: Threads, places: list[int]
) -> None:
    embedder = BatchingEmbedder(gated, max_batch=200)
    first = hold(embedder, gated, pool)
    asked = [[f"text {i}", f"bad {i}" if i in places else f"good {i}", "shared"] for i in range(64)]
    futures = [pool.submit(embedder.embed, texts) for texts in asked]
    until(lambda: embedder.stats.calls == 65)
    gated.go.set()
    first.result(20)
    for i, future in enumerate(futures):
        if i in places:
            with pytest.raises(ValueError, match=f"cannot read bad {i}$"):
                future.result(20)
        else:
            assert same(future.result(20), asked[i])
    if len(places) == 1:  # and not one attempt for each
        assert len(gated.batches) <= 2 + 3 + 2 * 7
    assert embedder.stats.queued == 0
    assert same(embedder.embed(["text 1"]), ["text 1"])


def test_the_error_of_a_lone_call_is_passed_on() -> None:
    model = Gated(open=True)
    embedder = BatchingEmbedder(model)
    with pytest.raises(ValueError, match="cannot read bad") as raised:
        embedder.embed(["good", "bad", "fine"])
    assert type(raised.value) is ValueError
    assert len(model.batches) == 1
    assert same(embedder.embed(["good"]), ["good"])


def test_who_shares_a_text_with_a_call_that_fails(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated)
    failing = pool.submit(embedder.embed, ["good", "bad", "fine"])
    until(lambda: gated.batches)
    others = [pool.submit(embedder.embed, texts) for texts in (["good"], ["fine", "new"], ["bad"])]
    until(lambda: embedder.stats.calls == 4)
    gated.go.set()
    with pytest.raises(ValueError, match="cannot read bad"):
        failing.result(20)
    assert same(others[0].result(20), ["good"])
    assert same(others[1].result(20), ["fine", "new"])
    with pytest.raises(ValueError, match="cannot read bad"):
        others[2].result(20)


@pytest.mark.parametrize(
    ("name", "error", "attempts"), [("down", ConnectionError, 1), ("bad", ValueError, 4)]
)
def test_what_fails_for_everybody_is_not_tried_for_each(
    gated: Gated, pool: Threads, name: str, error: type[Exception], attempts: int
) -> None:
    embedder = BatchingEmbedder(gated)
    first = hold(embedder, gated, pool)
    futures = [pool.submit(embedder.embed, [f"{name} {i}"]) for i in range(64)]
    until(lambda: embedder.stats.queued == 64)
    gated.go.set()
    first.result(20)
    for future in futures:
        with pytest.raises(error):
            future.result(20)
    assert len(gated.batches) == 1 + attempts
    assert same(embedder.embed(["after"]), ["after"])


def test_a_server_that_goes_down_during_the_search(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated)
    first = hold(embedder, gated, pool)
    names = ["good 0", "bad", *(f"good {i}" for i in range(10)), "x", *"abcdefgh"]
    futures = {}
    for name in names:
        futures[name] = pool.submit(embedder.embed, [name])
        until(lambda: embedder.stats.queued == len(futures))
    inner = gated._compute

    def failing(texts: list[str], *rest: Any) -> EmbeddingBatch:
        if len(gated.batches) >= 4:
            gated.batches.append(texts)
            raise ConnectionError("no route to the model")
        return inner(texts, *rest)

    gated._compute = failing  # type: ignore[method-assign, assignment]
    gated.go.set()
    first.result(20)
    outcomes = [future.exception(20) for future in futures.values()]
    assert sum(outcome is None for outcome in outcomes) == 2
    assert sum(isinstance(outcome, ConnectionError) for outcome in outcomes) == len(futures) - 2
    assert len(gated.batches) == 5


def test_the_search_for_a_text_ends(
    gated: Gated, pool: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_SEARCH", 0.0)
    monkeypatch.setattr(batching, "_SEARCH_RATIO", 0.0)
    embedder = BatchingEmbedder(gated)
    first = hold(embedder, gated, pool)
    futures = [pool.submit(embedder.embed, [text]) for text in ("a", "b", "bad", "c")]
    until(lambda: embedder.stats.queued == 4)
    gated.go.set()
    first.result(20)
    for future in futures:
        with pytest.raises(ValueError, match="cannot read bad"):
            future.result(20)
    assert len(gated.batches) == 2


async def test_a_timeout_of_the_model_is_its_own(gated: Gated) -> None:
    class Late(Gated):
        def _compute(self, *rest: Any) -> EmbeddingBatch:
            raise TimeoutError("the model took too long")

    embedder = BatchingEmbedder(Late())
    for _ in range(2):
        with pytest.raises(TimeoutError, match="the model took too long"):
            await embedder.aembed(["a"])
        with pytest.raises(TimeoutError, match="the model took too long"):
            embedder.embed(["a"])


async def test_a_model_that_ends_its_thread_does_not_leave_anybody_waiting() -> None:
    class Exiting(Gated):
        def _compute(self, texts: list[str], *rest: Any) -> EmbeddingBatch:
            if "exit" in texts:
                raise GeneratorExit
            return super()._compute(texts, *rest)

    embedder = BatchingEmbedder(Exiting(open=True))
    with pytest.raises(GeneratorExit):
        await embedder.aembed(["exit"])
    assert same(await embedder.aembed(["after"]), ["after"])


def test_a_model_that_returns_too_few_vectors(gated: Gated, pool: Threads) -> None:
    """Nobody gets those of somebody else."""

    class Short(Gated):
        def _compute(self, texts: list[str], *rest: Any) -> EmbeddingBatch:
            whole = super()._compute(texts, *rest)
            return whole if len(texts) == 1 else EmbeddingBatch(np.asarray(whole.dense)[:-1])

    model = Short()
    embedder = BatchingEmbedder(model)
    first = hold(embedder, model, pool)
    futures = [pool.submit(embedder.embed, [f"text {i}"]) for i in range(4)]
    pair = pool.submit(embedder.embed, ["one", "two"])
    until(lambda: embedder.stats.queued == 6)
    model.go.set()
    first.result(20)
    assert all(same(each.result(20), [f"text {i}"]) for i, each in enumerate(futures))
    with pytest.raises(InvalidInput, match="returned 1 dense vectors for 2 texts"):
        pair.result(20)


# Back-pressure


def test_a_full_queue_lets_callers_wait(gated: Gated, pool: Threads) -> None:
    embedder = BatchingEmbedder(gated, max_batch=2, max_queue=4)
    first = hold(embedder, gated, pool)
    asked = [[f"a {i}", f"b {i}"] if i % 2 else [f"c {i}"] for i in range(20)]
    futures = [pool.submit(embedder.embed, texts) for texts in asked]
    until(lambda: embedder.stats.calls == 21)
    assert embedder.stats.queued <= 4
    assert embedder.stats.waits >= 15
    gated.go.set()
    assert same(first.result(20), ["first"])
    assert all(same(f.result(20), texts) for f, texts in zip(futures, asked, strict=True))
    assert sorted(gated.texts) == sorted(["first", *(text for texts in asked for text in texts)])


@pytest.mark.parametrize("patience", [0, 0.05])
async def test_who_gets_no_room_in_time_gets_a_sentence(
    gated: Gated, pool: Threads, patience: float
) -> None:
    embedder = BatchingEmbedder(gated, max_batch=2, max_queue=2, timeout=patience)
    first = hold(embedder, gated, pool)
    queued = asyncio.create_task(embedder.aembed(["a", "b"]))
    await auntil(lambda: embedder.stats.queued == 2)
    with pytest.raises(BackendUnavailable, match="2 texts wait, and there was no room for 1 more"):
        await embedder.aembed(["c"])
    with pytest.raises(BackendUnavailable, match="larger max_queue or timeout"):
        embedder.embed(["d"])
    known = pool.submit(embedder.embed, ["b", "first"])  # for this no room is needed
    await auntil(lambda: embedder.stats.calls == 5)
    gated.go.set()
    async with asyncio.timeout(20):
        assert same(await queued, ["a", "b"])
        assert same(first.result(20), ["first"])
        assert same(known.result(20), ["b", "first"])
        assert same(await embedder.aembed(["e"]), ["e"])
    assert sorted(gated.texts) == ["a", "b", "e", "first"]


async def test_a_call_cancelled_in_line_makes_room_for_the_next(gated: Gated) -> None:
    embedder = BatchingEmbedder(gated, max_batch=3, max_queue=3)
    first = asyncio.create_task(embedder.aembed(["first"]))
    await auntil(lambda: gated.batches)
    two = asyncio.create_task(embedder.aembed(["a", "b"]))
    await auntil(lambda: embedder.stats.queued == 2)
    large = asyncio.create_task(embedder.aembed(["c", "d", "e"]))
    small = asyncio.create_task(embedder.aembed(["f"]))  # does not overtake the large one
    await auntil(lambda: embedder.stats.waits == 2)
    assert embedder.stats.queued == 2
    large.cancel()
    await auntil(lambda: embedder.stats.queued == 3)
    gated.go.set()
    async with asyncio.timeout(20):
        assert same(await first, ["first"])
        assert same(await two, ["a", "b"])
        assert same(await small, ["f"])
    assert gated.texts == ["first", "a", "b", "f"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 0},
        {"max_batch": 8, "max_queue": 7},
        {"max_wait": -1},
        {"max_wait": float("nan")},
        {"timeout": float("inf")},
    ],
)
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="Give a max_batch of 1 or more"):
        BatchingEmbedder(PLAIN, **options)


# Fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_queue_of_its_own(pool: Threads) -> None:
    model = Gated(open=True, seconds=0.002)
    embedder = BatchingEmbedder(model, max_batch=8, max_queue=16)
    going = threading.Event()
    going.set()

    def caller(i: int) -> None:
        j = 0
        while going.is_set():
            j += 1
            assert same(embedder.embed([f"{i} {j}", "shared"]), [f"{i} {j}", "shared"])

    work = [pool.submit(caller, i) for i in range(30)]
    until(lambda: embedder.stats.waits and embedder.stats.queued)
    children = []
    for _ in range(5):
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # it has no other end if it hangs
            try:
                assert same(embedder.embed(["shared"]), ["shared"])

                async def many() -> list[EmbeddingBatch]:
                    return await asyncio.gather(*(embedder.aembed([f"{i}"]) for i in range(20)))

                assert all(same(each, [f"{i}"]) for i, each in enumerate(asyncio.run(many())))
                assert embedder.stats.queued == 0
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
        time.sleep(0.01)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
    going.clear()
    for each in work:
        each.result(20)
    assert same(embedder.embed(["after"]), ["after"])
