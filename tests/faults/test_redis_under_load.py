"""Redis in trouble under a load: no call fails, none is wrong, few pay, and it is used again.

Bounds on time are generous, since machines that test are busy; docs/faults.md has the figures.
"""

import asyncio
import os
import random
import signal
import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from ragopt import (
    CachedEmbedder,
    HashingEmbedder,
    Lineage,
    MemoryStore,
    RedisStore,
    TieredCache,
    ValueCache,
)
from ragopt._run import run
from ragopt._runtime import SYNC
from ragopt.cache.breaker import Breaker
from ragopt.cache.claims import LEASE
from ragopt.errors import BackendUnavailable, RagoptError, StorageError
from tests.faults.load import (
    FAULTS,
    TASKS,
    WORKERS,
    AsyncLoad,
    Load,
    Rig,
    Story,
    aplay,
    play,
    rig,
    truth,
)

TIMEOUT = 0.25
_UNREACHABLE = {"killed", "stopped", "hung", "too slow"}
_RECOVERY = 10.0  # seconds; the pause between two looks is never longer than 5


@pytest.fixture(scope="module")
def one_rig() -> Iterator[Rig]:
    with rig() as made:
        yield made


@pytest.fixture
def place(one_rig: Rig) -> Iterator[Rig]:
    one_rig.heal()
    yield one_rig
    one_rig.heal()


def tiers(url: str, **options: Any) -> TieredCache:
    return TieredCache(MemoryStore(max_entries=50), RedisStore(url, timeout=TIMEOUT), **options)


def wait_until(condition: Callable[[], object], seconds: float = _RECOVERY) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


# -- what asks ---------------------------------------------------------------------------------


@contextmanager
def answers(cache: TieredCache) -> Iterator[Load]:
    values = ValueCache("answer", cache, ttl=600)
    yield Load(values.get_or_compute)


@contextmanager
def embeddings(cache: TieredCache) -> Iterator[Load]:
    model = HashingEmbedder(64)
    embedder = CachedEmbedder(model, cache)

    def texts(question: str) -> list[str]:
        return [f"{question} {number}" for number in range(4)]

    def right(question: str, vectors: Any, _: float) -> bool:
        return bool((vectors == model.embed(texts(question)).dense).all())

    yield Load(lambda question, _: embedder.embed(texts(question)).dense, right)


@contextmanager
def followed(cache: TieredCache) -> Iterator[Load]:
    """Answers with a lineage, while an editor changes the documents all the time.

    An answer is right if it was made from a text that was the newest when the question came, or
    from a newer one. A change counts from when the log has taken it.
    """
    lineage = Lineage(cache)
    values = ValueCache("answer", cache, ttl=600, lineage=lineage)
    texts = [0] * 20
    changed: list[list[float]] = [[] for _ in texts]  # when the log took each new text
    stop = threading.Event()

    def document(question: str) -> int:
        return zlib.crc32(question.encode()) % len(texts)

    def edit() -> None:
        draw = random.Random(1)
        while not stop.wait(0.01):
            number = draw.randrange(len(texts))
            texts[number] += 1
            while not stop.is_set():
                with suppress(StorageError):
                    lineage.changed(str(number))
                    changed[number].append(time.monotonic())
                    break
                time.sleep(0.01)

    def ask(question: str, compute: Callable[[], str]) -> object:
        number = document(question)

        def answer() -> tuple[str, int]:
            text = texts[number]
            return compute(), text

        return values.get_or_compute(question, answer, documents=lambda _: [str(number)])

    def right(question: str, answer: Any, began: float) -> bool:
        said, text = answer
        return bool(
            said == truth(question) and text >= bisect_right(changed[document(question)], began)
        )

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        yield Load(ask, right)
    finally:
        stop.set()
        editor.join()


_LOADS = {"answers": answers, "embeddings": embeddings, "lineage": followed}


def check(story: Story, fault: str, workers: int = WORKERS) -> None:
    """Hold what has to hold whatever the fault is, and what belongs to this one."""
    tally = story.tally
    assert not tally.errors
    assert not tally.wrong
    assert len(tally.added) > 100
    assert story.recovered_after is not None
    assert story.written_after is not None
    if fault in _UNREACHABLE:
        assert 1 <= story.failed <= workers  # who was under way paid, and then nobody
        assert story.hits_during <= workers
        assert tally.slow(0.8 * TIMEOUT, story.begun - TIMEOUT) <= 2 * workers
    elif fault == "full":
        assert story.failed >= 1
        assert story.hits_during > workers  # what it holds can still be read
    elif fault == "slow":
        assert story.failed == 0
        assert story.hits_during > 0
    elif fault == "evicting":
        assert story.failed == 0
        assert story.evicted > 0
    assert tally.slow(LEASE / 2) == 0


def scene(
    place: Rig, fault: str, load: str = "answers", *, alone: bool = False, during: float = 0.8
) -> None:
    timeout = 4 * TIMEOUT if fault == "slow" else TIMEOUT  # a busy machine must not make it a fault
    store = RedisStore(place.url(fault), timeout=timeout)
    layers = [store] if alone else [MemoryStore(max_entries=50), store]
    with TieredCache(*layers) as cache, _LOADS[load](cache) as running:
        check(play(place, fault, cache, running, during=during), fault)


# -- every fault -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_answers_over_memory_and_redis(place: Rig, fault: str) -> None:
    scene(place, fault)


@pytest.mark.parametrize("fault", ["hung", "restarted"])
def test_answers_over_redis_alone(place: Rig, fault: str) -> None:
    scene(place, fault, alone=True)


@pytest.mark.parametrize("fault", ["stopped", "full"])
def test_embeddings(place: Rig, fault: str) -> None:
    scene(place, fault, "embeddings")


@pytest.mark.parametrize("fault", ["hung", "restarted", "flushed"])
def test_no_answer_is_built_on_an_old_text(place: Rig, fault: str) -> None:
    scene(place, fault, "lineage")


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True], ids=["tiers", "alone"])
@pytest.mark.parametrize("load", _LOADS)
@pytest.mark.parametrize("fault", FAULTS)
def test_everything_for_longer(place: Rig, fault: str, load: str, alone: bool) -> None:
    scene(place, fault, load, alone=alone, during=3.0)


# -- the checks can fail -----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["killed", "hung", "full"])
def test_a_strict_cache_does_raise(place: Rig, fault: str) -> None:
    with tiers(place.url(fault), strict=True) as cache, answers(cache) as load:
        tally = play(place, fault, cache, load, before=0.2, during=0.6, patience=0).tally
    assert tally.errors
    assert all(isinstance(error, RagoptError) for error in tally.errors)


def test_without_a_breaker_everybody_pays(place: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Breaker, "admits", lambda *_: True)
    with tiers(place.url("hung")) as cache, answers(cache) as load:
        story = play(place, "hung", cache, load, before=0.2, during=1.5, patience=0)
    assert story.failed > 2 * WORKERS
    assert story.tally.slow(1.6 * TIMEOUT) > 0  # to read and to claim, each a timeout


def test_a_wrong_answer_is_seen() -> None:
    with Load(lambda question, compute: compute()[1:]) as load:
        wait_until(lambda: load.tally.wrong)
    assert not load.tally.errors


async def test_a_slow_server_can_be_connected_to(place: Rig) -> None:
    place.front.delay(0.2)
    async with RedisStore(place.url("slow"), timeout=0.5) as store:
        assert await store.aget_many([b"key"]) == [None]
        assert await asyncio.to_thread(store.get_many, [b"key"]) == [None]


# -- one request -------------------------------------------------------------------------------


def test_nothing_is_written_after_a_failed_read(place: Rig) -> None:
    """It may hold something newer, which could not be read, by the time it answers again."""
    with tiers(place.url("hung")) as cache:
        values = ValueCache("answer", cache, ttl=600)
        store = cache.layers[1]
        place.front.swallow()

        def compute() -> str:
            place.front.delay(0)
            wait_until(lambda: cache._breakers[1].closed)
            return "answer"

        assert values.get_or_compute("question", compute) == "answer"
        assert store.keys() == []
        assert values.get_or_compute("other", lambda: "answer") == "answer"
        assert len(store.keys()) == 1  # there the read had worked


@pytest.mark.parametrize("who", ["this request", "another request"])
def test_a_claim_that_was_left_behind_keeps_nobody_waiting(place: Rig, who: str) -> None:
    with tiers(place.url("hung")) as cache:
        values = ValueCache("answer", cache, ttl=600)

        def compute() -> str:
            place.front.swallow()
            if who == "another request":  # finds out first, so that nothing is sent any more
                cache.get_many([b"something"])
            return "answer"

        assert values.get_or_compute("question", compute) == "answer"
        place.front.delay(0)
        wait_until(lambda: cache._breakers[1].closed)
        with place.raw() as client:
            assert client.dbsize() == 1  # the claim
        begin = time.monotonic()
        assert values.get_or_compute("question", lambda: "the same") == "the same"
        assert time.monotonic() - begin < LEASE / 2
        assert len(cache.layers[1].keys()) == 1


def test_a_claim_that_was_set_too_late_keeps_nobody_waiting(place: Rig) -> None:
    with (
        RedisStore(place.server.url, timeout=TIMEOUT) as store,
        RedisStore(place.server.url, timeout=TIMEOUT) as other,
    ):
        store.get_many([b"key"])  # connected, so that the claim is sent to the stopped server
        place.server.freeze()
        with pytest.raises(BackendUnavailable):
            store.claim(b"key", seconds=LEASE)
        place.server.thaw()
        with place.raw() as client:
            wait_until(lambda: client.exists(b"key"))
        assert other.claim(b"key", seconds=LEASE) is None
        token = store.claim(b"key", seconds=LEASE)
        assert token is not None
        assert store.claim(b"key", seconds=LEASE) is None  # but that one is alive
        assert store.commit(b"key", token, b"value")


def test_a_server_that_filled_up_meanwhile_keeps_no_claim(place: Rig) -> None:
    with tiers(place.server.url) as cache, place.raw() as client:
        values = ValueCache("answer", cache, ttl=600)

        def compute() -> str:
            assert client.dbsize() == 1
            client.config_set("maxmemory", 1)
            return "answer"

        assert values.get_or_compute("question", compute) == "answer"
        assert cache.stats.total("redis", "error") == 1
        assert client.dbsize() == 0


def test_claims_are_renewed_at_their_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all the time, after one began in the very moment in which the last one had ended."""

    class Counting(MemoryStore):
        extended = 0

        async def _extend(self, *args: Any) -> bool:
            self.extended += 1
            return await super()._extend(*args)

    monkeypatch.setattr("ragopt.cache.claims.LEASE", 0.6)
    store = Counting()
    claims = TieredCache(store).claims
    assert run(claims.take(SYNC, store, b"first"))
    token = store.claim(b"second", seconds=5)
    assert token
    with claims._lock:  # both before the thread that renews could look
        claims._held.clear()
        claims._wake.set()
        claims._held[token] = b"second"
    time.sleep(0.7)  # long enough for a thread that does not rest to renew hundreds of times
    claims.let_go(token)
    assert 1 <= store.extended <= 4


def test_writes_that_fail_together_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("ragopt.cache.breaker.monotonic", lambda: now)
    breaker = Breaker(lambda: None)
    for _ in range(50):
        breaker.failed("write", unreachable=False)
    tried = []
    for step in range(400):
        now = 100.0 + step * 0.05
        if breaker.admits("write"):
            tried.append(round(now - 100, 2))
            breaker.failed("write", unreachable=False)
    pauses = [later - sooner for sooner, later in pairwise([0.0, *tried])]
    assert pauses[:3] == pytest.approx([0.1, 0.1, 0.2], abs=0.06)
    assert pauses[-1] == pytest.approx(5.0, abs=0.06)
    breaker.wrote()
    assert all(breaker.admits("write") for _ in range(3))


# -- tasks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["killed", "hung"])
async def test_tasks(place: Rig, fault: str) -> None:
    async with tiers(place.url(fault)) as cache:
        load = AsyncLoad(ValueCache("answer", cache, ttl=600).aget_or_compute)
        story = await aplay(place, fault, cache, load)
    check(story, fault, TASKS)
    assert _blocked(load) < TASKS / 10  # a busy machine alone may hold it up once or twice


def _blocked(load: AsyncLoad) -> int:
    """Return how often nothing could run for about as long as a timeout."""
    return sum(gap > 0.8 * TIMEOUT for gap in load.gaps)


async def test_a_blocked_loop_is_seen(place: Rig) -> None:
    with RedisStore(place.url("hung"), timeout=TIMEOUT) as store:
        async with AsyncLoad(lambda _, compute: compute(), tasks=1) as load:
            place.front.swallow()
            for _ in range(TASKS // 10):
                await asyncio.sleep(0.02)
                with suppress(BackendUnavailable):
                    store.get_many([b"key"])  # the sync face, on the loop
    assert _blocked(load) >= TASKS / 10


# -- cancellation ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["store", "tiers"])
async def test_cancelled_tasks_leave_nothing_behind(place: Rig, kind: str) -> None:
    most = 8
    place.front.delay(0.01)
    store = RedisStore(place.url("slow"), timeout=5.0, max_connections=most)
    cache = store if kind == "store" else TieredCache(MemoryStore(max_entries=10), store)
    draw = random.Random(1)

    def items(number: int) -> dict[bytes, bytes]:
        return {b"%d-%d" % (number, i): b"value of %d-%d" % (number, i) for i in range(3)}

    def right(number: int, entries: Sequence[Any]) -> bool:
        values = items(number).values()
        return all(
            entry is None or entry.value == value
            for entry, value in zip(entries, values, strict=True)
        )

    async def work(number: int) -> None:
        while True:
            await cache.aset_many(items(number), ttl=60)
            assert right(number, await cache.aget_many(list(items(number))))

    with place.raw() as client:

        def clients() -> int:
            return int(client.info("clients")["connected_clients"])

        for _ in range(3):
            tasks = [asyncio.create_task(work(number)) for number in range(200)]
            for task in draw.sample(tasks, len(tasks)):
                await asyncio.sleep(0.003 * draw.random())
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            # Nobody's reply is somebody else's, and no connection is taken for busy.
            found = await asyncio.gather(*(cache.aget_many(list(items(n))) for n in range(200)))
            assert all(right(number, entries) for number, entries in enumerate(found))
            assert sum(entry is not None for entries in found for entry in entries) > 100
            assert clients() <= most + 1
        await cache.aclose()
        until = time.monotonic() + 5
        while clients() > 1:  # this one
            assert time.monotonic() < until
            await asyncio.sleep(0.01)


# -- fork --------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_a_child_of_a_busy_process_uses_the_cache(place: Rig, turns: int) -> None:
    """Locks that other threads hold while it forks, and their connections, are no trouble."""
    with tiers(place.server.url, max_staleness=0.01) as cache:
        values = ValueCache("answer", cache, ttl=600)
        near = cache.layers[0]
        stop = threading.Event()
        asked = 0

        def work() -> None:
            nonlocal asked
            bulk = {b"%d" % number: b"value" for number in range(300)}
            while not stop.is_set():
                asked += 1
                question = f"{asked % 300}"
                right = truth(question)
                assert values.get_or_compute(question, partial(truth, question)) == right
                near.set_many(bulk)  # which takes its lock for long

        busy = threading.Thread(target=work)
        busy.start()
        try:
            for turn in range(turns):
                child = os.fork()
                if child == 0:
                    _use_and_exit(cache, values, f"child {turn}")
                assert _exit_code(child) == 0
            before = asked
            wait_until(lambda: asked > before + 10)  # the parent goes on
            assert busy.is_alive()
        finally:
            stop.set()
            busy.join()
        assert cache.stats.total("redis", "error") == 0
        last = f"child {turns - 1}"
        assert values.get(last) == truth(last)


@pytest.mark.parametrize("safe", [True, False])
def test_a_lock_that_is_held_at_the_fork(safe: bool) -> None:
    store = MemoryStore()
    if not safe:
        store._lock = threading.Lock()  # one that a fork does not wait for
    held = threading.Event()

    def hold() -> None:
        with store._lock:
            held.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        store.get_many([b"key"])
        os._exit(0)
    assert _exit_code(child, 20.0 if safe else 1.0) == (0 if safe else None)
    holder.join()
    assert store.get_many([b"key"]) == [None]


def _use_and_exit(cache: TieredCache, values: ValueCache, question: str) -> None:
    code = 1
    try:
        questions = ["0", "1", "2", question]
        found = [values.get_or_compute(each, partial(truth, each)) for each in questions]
        right = found == [truth(each) for each in questions]
        cache.close()
        code = 0 if right and not cache.stats.total("redis", "error") else 2
    finally:
        os._exit(code)


def _exit_code(child: int, seconds: float = 20.0) -> int | None:
    """Wait for a child; None if it hangs."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
